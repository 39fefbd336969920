"""The numbers of scikit-learn's own MLPs: weights, curves and predictions after twenty epochs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import scale

import fusedmlp
from fusedmlp.backends.numpy_backend import NumpyBackend
from fusedmlp.estimators.patching import sklearn_class
from machine import require

TOLERANCE = {"numpy": 1e-12, "numba-cpu": 1e-8, "cupy": 1e-8}
DIGITS = load_digits(return_X_y=True)
DIGITS = DIGITS[0][:500] / 16, DIGITS[1][:500]
CANCER = load_breast_cancer(return_X_y=True)
CANCER = scale(CANCER[0]), np.array(["malignant", "benign"])[CANCER[1]]
DIABETES = load_diabetes(return_X_y=True)
DIABETES = scale(DIABETES[0]), scale(DIABETES[1])
RNG = np.random.default_rng(0)
LABELS = (DIGITS[0], (DIGITS[0][:, 20:25] > 0.3).astype(int))
OUTPUTS = (DIABETES[0], np.c_[DIABETES[1], DIABETES[0][:, 2] ** 2, RNG.normal(size=len(DIABETES[1]))])
COUNTS = (DIABETES[0], RNG.poisson(np.exp(0.5 * DIABETES[0][:, 2])))
WEIGHTS = RNG.uniform(0.2, 3.0, size=2000)

SGD = {"solver": "sgd", "learning_rate_init": 0.05}
SOLVERS = {
    "adam": {},
    "adam, other numbers": {"learning_rate_init": 0.01, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-4, "alpha": 0.1},
    "sgd": SGD | {"momentum": 0},
    "momentum": SGD | {"nesterovs_momentum": False},
    "nesterov": SGD,
    "momentum 1": SGD | {"momentum": 1.0, "learning_rate_init": 1e-4},
    "invscaling": SGD | {"learning_rate": "invscaling", "power_t": 0.2},
    "adaptive": SGD | {"learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 2},
    "L2": SGD | {"alpha": 2.0},
    "stops by itself": {"tol": 0.05, "n_iter_no_change": 2},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.2},
    "early stopping, sgd": SGD | {"early_stopping": True, "n_iter_no_change": 2, "tol": 0.01},
    "no shuffling": {"shuffle": False, "batch_size": 64},
    "two hidden layers": {"hidden_layer_sizes": (20, 10)},
    "no hidden layer": {"hidden_layer_sizes": ()},
    "whole batch": {"batch_size": 10_000},
}
TARGETS = {
    "classes": ("MLPClassifier", DIGITS, {}),
    "two classes": ("MLPClassifier", CANCER, {}),
    "labels": ("MLPClassifier", LABELS, {}),
    "numbers": ("MLPRegressor", DIABETES, {}),
    "outputs": ("MLPRegressor", OUTPUTS, {}),
    "counts": ("MLPRegressor", COUNTS, {"loss": "poisson"}),
}


@pytest.fixture(params=TOLERANCE)
def backend(request):
    require(request.param)
    with fusedmlp.use_backend(request.param):
        yield request.param


def both(name, **parameters):
    """An estimator of each class."""
    parameters = {"random_state": 3, "max_iter": 20, "hidden_layer_sizes": (25,)} | parameters
    return getattr(fusedmlp, name)(**parameters), sklearn_class(name)(**parameters)


def quiet(call, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "Got `batch_size`")
        return call(*arguments, **keywords)


def assert_same(ours, theirs, X, tolerance):
    """Weights, curves, counters and predictions."""
    pairs = zip([*ours.coefs_, *ours.intercepts_], [*theirs.coefs_, *theirs.intercepts_], strict=True)
    for mine, other in pairs:
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)
    counters = "n_iter_", "t_", "n_outputs_", "n_layers_", "out_activation_", "n_features_in_", "_no_improvement_count"
    for name in counters:
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (other is None), name
        if other is not None:
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12, err_msg=name)
    predict = "predict_proba" if hasattr(ours, "predict_proba") else "predict"
    np.testing.assert_allclose(getattr(ours, predict)(X), getattr(theirs, predict)(X), rtol=0, atol=100 * tolerance)
    assert np.array_equal(ours.predict(X), theirs.predict(X)) or predict == "predict"


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers(backend, solver, weighted):
    X, y = DIGITS
    weight = WEIGHTS[: len(y)] if weighted else None
    ours, theirs = (quiet(e.fit, X, y, weight) for e in both("MLPClassifier", **SOLVERS[solver]))
    assert_same(ours, theirs, X, TOLERANCE[backend])


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets(backend, target, activation):
    name, (X, y), parameters = TARGETS[target]
    early = {"early_stopping": activation in ("tanh", "relu"), "batch_size": 33}
    pair = both(name, activation=activation, **early, **parameters)
    ours, theirs = (quiet(e.fit, X, y, WEIGHTS[: len(y)]) for e in pair)
    assert_same(ours, theirs, X, TOLERANCE[backend])
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-8)
    if name == "MLPClassifier":
        assert np.array_equal(ours.classes_, theirs.classes_)


@pytest.mark.parametrize("solver", ["adam", "nesterov", "invscaling", "adaptive", "early stopping"])
def test_warm_starts(backend, solver):
    X, y = DIGITS
    ours, theirs = both("MLPClassifier", warm_start=True, **SOLVERS[solver])
    for epochs in (3, 5):
        for estimator in (ours, theirs):
            quiet(estimator.set_params(max_iter=epochs).fit, X, y)
    assert_same(ours, theirs, X, TOLERANCE[backend])


@pytest.mark.parametrize("target", ["classes", "two classes", "labels", "outputs"])
@pytest.mark.parametrize("solver", ["adam", "nesterov", "invscaling"])
def test_partial_fits(backend, solver, target):
    name, (X, y), parameters = TARGETS[target]
    ours, theirs = both(name, **SOLVERS[solver], **parameters)
    for part in np.array_split(np.arange(len(y)), 7):
        for estimator in (ours, theirs):
            classes = np.arange(5) if target == "labels" else np.unique(y)
            more = {"classes": classes} if name == "MLPClassifier" else {}
            quiet(estimator.partial_fit, X[part], y[part], WEIGHTS[part], **more)
    assert_same(ours, theirs, X, TOLERANCE[backend])


def test_a_fit_goes_on_by_partial_fits(backend):
    X, y = DIGITS
    ours, theirs = (quiet(e.fit, X, y) for e in both("MLPClassifier"))
    for estimator in (ours, theirs):
        for _ in range(3):
            estimator.partial_fit(X, y)
    assert_same(ours, theirs, X, TOLERANCE[backend])


@pytest.mark.parametrize("takes_sparse", [True, False], ids=["", "made dense"])
@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("parameters", [{}, {"early_stopping": True}, {"solver": "lbfgs", "max_iter": 10}], ids=str)
def test_sparse(backend, kind, parameters, takes_sparse, monkeypatch):
    """Also by a backend that takes no sparse X, a part of which is made dense at a time."""
    if not takes_sparse:
        if backend != "numpy":
            pytest.skip("it takes sparse X")
        monkeypatch.setattr(NumpyBackend, "takes_sparse", False)
        monkeypatch.setattr(NumpyBackend, "workspace_bytes", 1)
    X, y = DIGITS
    ours, theirs = both("MLPClassifier", batch_size=60, **parameters)
    quiet(ours.fit, kind(X), y, WEIGHTS[: len(y)])
    quiet(theirs.fit, kind(X), y, WEIGHTS[: len(y)])
    if "solver" in parameters:
        assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-6)
    else:
        assert_same(ours, theirs, X, TOLERANCE[backend])
    np.testing.assert_allclose(ours.predict_proba(kind(X)), ours.predict_proba(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("target", TARGETS)
def test_lbfgs(backend, target, weighted):
    """The path of a line search amplifies rounding: the loss is compared after few iterations, and where it ends."""
    name, (X, y), parameters = TARGETS[target]
    weight = WEIGHTS[: len(y)] if weighted else None
    for iterations, tolerance in ((5, 1e-8), (30, 1e-5)):
        both_of = both(name, solver="lbfgs", activation="tanh", alpha=0.1, **parameters | {"max_iter": iterations})
        ours, theirs = (quiet(e.fit, X, y, weight) for e in both_of)
        assert ours.loss_ == pytest.approx(theirs.loss_, rel=tolerance)
        assert (ours.n_iter_, ours.coefs_[0].dtype) == (theirs.n_iter_, theirs.coefs_[0].dtype)


def test_lbfgs_ends_at_the_same_loss(backend):
    X, y = CANCER
    both_of = both("MLPClassifier", solver="lbfgs", activation="logistic", alpha=1.0, max_iter=5000, tol=1e-6)
    ours, theirs = (e.fit(X, y) for e in both_of)
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-6)


@pytest.mark.parametrize("solver", ["stops by itself", "early stopping, sgd", "adaptive"])
def test_what_is_printed(backend, solver, capsys):
    X, y = DIGITS
    printed = []
    for estimator in both("MLPClassifier", verbose=True, **SOLVERS[solver]):
        quiet(estimator.fit, X, y)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert len(printed[0].splitlines()) > 4


def test_another_solver_goes_on(backend):
    """From float32, too: lbfgs works in float64."""
    X, y = DIGITS
    ours, theirs = (quiet(e.fit, X.astype(np.float32), y) for e in both("MLPClassifier", warm_start=True))
    for estimator in (ours, theirs):
        quiet(estimator.set_params(solver="lbfgs", max_iter=2, alpha=0.1).fit, X.astype(np.float32), y)
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-5)
    assert ours.coefs_[0].dtype == theirs.coefs_[0].dtype == np.float64
    quiet(ours.set_params(solver="adam").fit, X, y)


@pytest.mark.parametrize("target", ["classes", "outputs"])
def test_float32(backend, target):
    name, (X, y), parameters = TARGETS[target]
    X = X.astype(np.float32)
    ours, theirs = (quiet(e.fit, X, y) for e in both(name, **parameters))
    for mine, other in zip(ours.coefs_, theirs.coefs_, strict=True):
        assert mine.dtype == other.dtype == np.float32
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-4)
    assert ours.predict(X).dtype == theirs.predict(X).dtype
