"""A regression with quantiles: not only what to expect, but between which numbers nine of ten values will lie.

python examples/quantile_regression.py
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusedmlp import MLPRegressor

QUANTILES = (0.05, 0.5, 0.95)


def main() -> None:
    """Train a network for each quantile, and count how many new values lie in between."""
    X, y = load_diabetes(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    center, scale = y_train.mean(), y_train.std()
    predictions = {}
    for quantile in QUANTILES:
        network = MLPRegressor(
            "quantile",
            (16,),
            quantile=quantile,
            learning_rate_init=0.01,
            alpha=1.0,
            max_iter=300,
            n_iter_no_change=300,
            random_state=0,
        )
        model = make_pipeline(StandardScaler(), network).fit(X_train, (y_train - center) / scale)
        predictions[quantile] = center + scale * model.predict(X_test)
        below = np.mean(y_test < predictions[quantile])
        print(f"quantile {quantile}: {below:.0%} of the new values are below it")
    low, middle, high = predictions.values()
    inside = np.mean((low <= y_test) & (y_test <= high))
    print(f"between the outer two: {inside:.0%}; mean width {np.mean(high - low):.0f}")
    print(f"median of the absolute error of the middle one: {np.median(np.abs(middle - y_test)):.0f}")


if __name__ == "__main__":
    main()
