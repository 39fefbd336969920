"""One measurement in a process of its own: a library, a case, the seconds and what came out."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from bench.estimators.cases import CASES, GRID, Case, quietly

CALLS = 200
"""Predictions of one row; the median counts."""


def classifier(library: str, case: Case) -> Any:
    """An estimator that is not fitted."""
    if library == "fusedmlp":
        from fusedmlp import MLPClassifier
    else:
        from sklearn.neural_network import MLPClassifier
    return MLPClassifier(random_state=0, **case.parameters)


def measure(library: str, name: str) -> dict[str, Any]:
    """Time a case.

    Parameters
    ----------
    library : {"fusedmlp", "scikit-learn"}
    name : str
        A key of `CASES`.

    Returns
    -------
    dict
        seconds; score, n_iter, loss and a few weights where something was fitted.
    """
    from sklearn.base import clone
    from sklearn.metrics import roc_auc_score

    case = CASES[name]
    X, y, X_test, y_test = case.data()
    model = classifier(library, case)
    some = np.r_[[np.flatnonzero(y == label)[0] for label in np.unique(y)], :20]
    quietly(clone(model).set_params(max_iter=2).fit, X[some], y[some])  # compiles, loads libraries
    if case.what == "grid search":
        return _grid_search(model, X, y, jobs=int(name[-1]))
    seconds = _seconds(lambda: quietly(model.fit, X, y))
    if case.what == "one row":
        model.predict(X_test[:1])
        seconds = float(np.median([_seconds(lambda: model.predict(X_test[:1])) for _ in range(CALLS)]))
    elif case.what == "all rows":
        model.predict(X_test)
        seconds = float(np.median([_seconds(lambda: model.predict(X_test)) for _ in range(7)]))
    two = len(model.classes_) == 2
    score = roc_auc_score(y_test, model.predict_proba(X_test)[:, 1]) if two else model.score(X_test, y_test)
    weights = np.concatenate([np.ravel(W)[:: max(1, W.size // 50)] for W in model.coefs_]).astype(float)
    return {
        "seconds": seconds,
        "score": float(score),
        "n_iter": int(model.n_iter_),
        "loss": float(model.loss_),
        "weights": weights.tolist(),
    }


def _grid_search(model: Any, X: Any, y: np.ndarray, jobs: int) -> dict[str, Any]:
    """A search over `GRID`; joblib says how many threads each of its processes has."""
    from joblib.externals.loky import get_reusable_executor
    from sklearn.model_selection import GridSearchCV

    for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
        del os.environ[name]
    search = GridSearchCV(model, GRID, n_jobs=jobs)
    seconds = _seconds(lambda: quietly(search.fit, X, y))
    get_reusable_executor().shutdown(wait=True)  # its processes would keep this one alive for minutes
    return {"seconds": seconds, "score": float(search.best_score_)}


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
