"""The estimators against scikit-learn's own: the same fits, with the same numbers, in turns."""
