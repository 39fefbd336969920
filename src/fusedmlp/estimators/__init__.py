"""The estimators: `MLPClassifier` and `MLPRegressor` with scikit-learn's interface, on the engines of this package.

A row is a sample here, as in scikit-learn; the core takes the transposed view.
"""
