"""A fit that nobody watches goes by several epochs at a time: what comes of it is that of one epoch at a time."""

from __future__ import annotations

import signal
import threading
import time
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import fusedmlp
from fusedmlp import MLPClassifier, MLPRegressor
from fusedmlp.backends.numba_cpu.tiled_engine import TiledEngine
from fusedmlp.backends.numba_cpu.workers import threads
from machine import require

require("numba-cpu")
X, Y = load_digits(return_X_y=True)
X, Y = X[:650] / 16, Y[:650]
WEIGHTS = np.random.default_rng(0).random(len(X))
ATTRIBUTES = "loss_", "loss_curve_", "best_loss_", "n_iter_", "t_"
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Training interrupted"),
]


@pytest.fixture(autouse=True)
def backend():
    with fusedmlp.use_backend("numba-cpu"):
        yield


@pytest.fixture(params=[1, 2, 3])
def workers(request, monkeypatch):
    monkeypatch.setattr(threads, "_count", request.param)


@pytest.fixture
def epochs_in_python(monkeypatch):
    """The number of epochs that are calls of the engine."""
    calls = []
    train_epoch = TiledEngine.train_epoch
    monkeypatch.setattr(TiledEngine, "train_epoch", lambda *given: calls.append(1) or train_epoch(*given))
    return calls


def flat(estimator):
    return np.concatenate([np.ravel(part) for part in (*estimator.coefs_, *estimator.intercepts_)])


CASES = {
    "defaults": {},
    "float32": {"dtype": np.float32},
    "patience": {"n_iter_no_change": 2, "tol": 0.05, "max_iter": 200},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.02, "max_iter": 60},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1, "momentum": 0.5},
    "plain": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1},
    "no shuffle": {"shuffle": False},
    "weights": {"sample_weight": WEIGHTS},
    "dropout": {"dropout": (0.1, 0.3)},
    "clipped": {"clip_norm": 0.1, "weight_decay": 0.01},
    "schedule": {"schedule": "cosine"},
    "sparse": {"sparse": True},
    "whole batches": {"batch_size": 650},
    "tanh, two layers": {"hidden_layer_sizes": (70, 40), "activation": "tanh"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_one_epoch_at_a_time(case, workers, epochs_in_python, capsys):
    settings = {"hidden_layer_sizes": (120,), "max_iter": 25, "random_state": 0} | CASES[case]
    table, weight = X.astype(settings.pop("dtype", float)), settings.pop("sample_weight", None)
    table = sparse.csr_matrix(table) if settings.pop("sparse", False) else table
    together = MLPClassifier(**settings).fit(table, Y, sample_weight=weight)
    assert not epochs_in_python
    watched = MLPClassifier(verbose=True, **settings).fit(table, Y, sample_weight=weight)
    assert len(epochs_in_python) == watched.n_iter_
    np.testing.assert_array_equal(flat(together), flat(watched))
    for name in ATTRIBUTES:
        assert getattr(together, name) == getattr(watched, name)
    np.testing.assert_array_equal(*(each._random_state.random(3) for each in (together, watched)))


def test_a_second_fit_goes_on_from_the_first(workers, capsys):
    settings = {"warm_start": True, "keep_optimizer": True, "max_iter": 8, "random_state": 0}
    together, watched = MLPClassifier(**settings), MLPClassifier(verbose=True, **settings)
    for _ in range(2):
        together.fit(X, Y)
        watched.fit(X, Y)
    together.partial_fit(X, Y)
    watched.partial_fit(X, Y)
    np.testing.assert_array_equal(flat(together), flat(watched))


@pytest.mark.parametrize("rate", [0.025, 0.05, 1e200])
def test_a_divergence_is_found_in_its_epoch(rate, workers, capsys):
    found = []
    for verbose in (False, True):
        model = MLPRegressor(
            solver="sgd", learning_rate_init=rate, activation="identity", random_state=0, verbose=verbose
        )
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite parameter weights") as error:
            model.fit(X, Y.astype(float))
        found.append((str(error.value), model.n_iter_, repr(model.loss_curve_), flat(model).tolist()))
    assert found[0] == found[1]


def test_ctrl_c_keeps_what_was_reached(workers):
    """The signal comes in the middle of a stretch; the fit ends between two batches."""
    many = np.tile(X, (40, 1)), np.tile(Y, 40)
    model = MLPClassifier(hidden_layer_sizes=(150,), max_iter=100_000, tol=0.0, n_iter_no_change=100_000)
    main = threading.main_thread().ident
    timer = threading.Timer(0.7, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(*many)
    assert time.monotonic() - began < 10
    assert model.n_iter_ == len(model.loss_curve_)
    assert np.isfinite(flat(model)).all()
    batches = -(-len(many[0]) // 200)
    assert model.n_iter_ * batches <= model._optimizer.saved()[0] <= (model.n_iter_ + 1) * batches


def test_validation_is_scored_after_every_epoch(epochs_in_python):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier(early_stopping=True, max_iter=12, random_state=0).fit(X, Y)
    assert len(model.validation_scores_) == model.n_iter_ == len(epochs_in_python)
