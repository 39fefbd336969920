"""The estimators on the fake GPU: scikit-learn's numbers, and a way back to a machine without one."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.model_selection import GridSearchCV

import fusedmlp
from fusedmlp import MLPClassifier, MLPEnsembleClassifier, MLPEnsembleRegressor, MLPGridSearchCV
from fusedmlp.backends.cupy import CupyBackend

sys.path.insert(0, str(Path(__file__).parents[1] / "estimators"))

from test_same_numbers import DIGITS, SOLVERS, TARGETS, WEIGHTS, assert_same, both, quiet

TOLERANCE = 1e-8
FEW = 90


@pytest.fixture(autouse=True)
def on_cupy(cupy):
    with fusedmlp.use_backend("cupy"):
        yield
    assert cupy.launches


@pytest.mark.parametrize("solver", ["adam", "nesterov", "invscaling", "early stopping", "two hidden layers", "L2"])
def test_solvers(solver):
    X, y = DIGITS[0][:FEW], DIGITS[1][:FEW] % 3
    pair = both("MLPClassifier", max_iter=3, batch_size=40, **SOLVERS[solver])
    ours, theirs = (quiet(e.fit, X, y, WEIGHTS[:FEW]) for e in pair)
    assert_same(ours, theirs, X, TOLERANCE)


@pytest.mark.parametrize("target", TARGETS)
def test_targets(target):
    name, (X, y), parameters = TARGETS[target]
    pair = both(name, max_iter=2, activation="tanh", **parameters)
    ours, theirs = (quiet(e.fit, X[:FEW], y[:FEW]) for e in pair)
    assert_same(ours, theirs, X[:FEW], TOLERANCE)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_array])
def test_sparse(kind):
    X, y = DIGITS[0][:FEW], DIGITS[1][:FEW] % 3
    ours, theirs = (quiet(e.fit, kind(X), y) for e in both("MLPClassifier", max_iter=3, batch_size=40))
    assert_same(ours, theirs, X, TOLERANCE)
    np.testing.assert_allclose(ours.predict_proba(kind(X)), theirs.predict_proba(X), rtol=0, atol=1e-8)


def test_lbfgs_and_float32():
    X, y = DIGITS[0][:FEW], DIGITS[1][:FEW] % 3
    ours, theirs = (quiet(e.fit, X, y) for e in both("MLPClassifier", solver="lbfgs", max_iter=5, activation="tanh"))
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-8)
    ours, theirs = (quiet(e.fit, X.astype(np.float32), y) for e in both("MLPClassifier", max_iter=3, batch_size=40))
    for mine, other in zip(ours.coefs_, theirs.coefs_, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)


def test_a_pickle_goes_on_without_a_gpu():
    X, y = DIGITS[0][:FEW], DIGITS[1][:FEW] % 3
    ours, theirs = both("MLPClassifier", max_iter=2, warm_start=True)
    quiet(ours.fit, X, y)
    quiet(theirs.fit, X, y)
    text = pickle.dumps(ours)
    assert b"cupy" not in text
    with fusedmlp.use_backend("numba-cpu"):
        ours = pickle.loads(text)
        quiet(ours.partial_fit, X, y)
    quiet(theirs.partial_fit, X, y)
    assert_same(ours, theirs, X, TOLERANCE)


SEARCHED = {"hidden_layer_sizes": [(9,), (12, 5)], "alpha": [1e-4, 0.5], "solver": ["adam", "sgd"]}


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_search_has_the_scores_of_one_after_the_other(cupy, early_stopping):
    X, y = DIGITS[0][:FEW], DIGITS[1][:FEW] % 3
    estimator = MLPClassifier(random_state=0, max_iter=4, batch_size=20, early_stopping=early_stopping)
    found = quiet(MLPGridSearchCV(estimator, SEARCHED, cv=2).fit, X, y)
    together = len(cupy.launches)
    expected = quiet(GridSearchCV(estimator, SEARCHED, cv=2).fit, X, y)
    for name in ("mean_test_score", "std_test_score", "rank_test_score"):
        np.testing.assert_array_equal(found.cv_results_[name], expected.cv_results_[name])
    for mine, other in zip(found.best_estimator_.coefs_, expected.best_estimator_.coefs_, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert found.best_estimator_.loss_curve_ == expected.best_estimator_.loss_curve_
    assert together < len(cupy.launches) - together


@pytest.mark.parametrize("kind", [MLPEnsembleClassifier, MLPEnsembleRegressor])
def test_an_ensemble_has_the_members_of_one_after_the_other(cupy, monkeypatch, kind):
    X, y = DIGITS[0][:FEW], DIGITS[1][:FEW] % 3
    ensembles = []
    for crowd in (CupyBackend.crowd, lambda self: None):
        monkeypatch.setattr(CupyBackend, "crowd", crowd)
        ensemble = kind(3, bootstrap=True, random_state=0, hidden_layer_sizes=(9,), max_iter=3, batch_size=20)
        ensembles.append(quiet(ensemble.fit, X, y))
    for mine, other in zip(*(ensemble.estimators_ for ensemble in ensembles), strict=True):
        np.testing.assert_array_equal(mine.coefs_[0], other.coefs_[0])
        np.testing.assert_array_equal(mine.intercepts_[-1], other.intercepts_[-1])
        assert mine.loss_curve_ == other.loss_curve_
