"""A fit that goes on from a checkpoint has the attributes, to the bit, of one that was not interrupted."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_iris

from fusedmlp import MLPClassifier, MLPRegressor, use_backend
from fusedmlp.checkpoints import FileRecorder
from fusedmlp.errors import CheckpointError
from machine import require

X, y = load_iris(return_X_y=True)
FITS = {
    "adam": {"solver": "adam"},
    "sgd": {
        "solver": "sgd",
        "learning_rate": "adaptive",
        "learning_rate_init": 0.2,
        "n_iter_no_change": 2,
        "tol": 0.05,
    },
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.3},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "learning_rate_init": 0.01},
    "dropout": {"dropout": 0.2, "clip_norm": 0.1, "alpha": 0.1},
    "cosine": {"schedule": "cosine", "weight_decay": 0.01},
    "unshuffled": {"shuffle": False},
}


@pytest.fixture(params=["numpy", "numba-cpu"])
def backend(request):
    require(request.param)
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def snapshots(monkeypatch, tmp_path):
    """Every checkpoint that is written, kept."""
    kept, write = [], FileRecorder.write

    def writing(self, *arguments):
        write(self, *arguments)
        kept.append(shutil.copy(self.path, tmp_path / f"kept-{len(kept)}"))

    monkeypatch.setattr(FileRecorder, "write", writing)
    return kept


def estimator(kind=MLPClassifier, **parameters):
    return kind(**({"hidden_layer_sizes": (9,), "batch_size": 20, "max_iter": 9, "random_state": 4} | parameters))


def fitted(model, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y.astype(float) if isinstance(model, MLPRegressor) else y, **arguments)


def outcome(model):
    names = ["loss_curve_", "n_iter_", "t_", "loss_", "best_loss_", "validation_scores_", "best_validation_score_"]
    return [getattr(model, name) for name in names], [W.tobytes() for W in (*model.coefs_, *model.intercepts_)]


def assert_each_goes_on(snapshots, tmp_path, whole, **parameters):
    kept = list(snapshots)
    assert len(kept) > 1
    for snapshot in kept:
        path = shutil.copy(snapshot, tmp_path / "going-on")
        assert outcome(fitted(estimator(type(whole), **parameters), checkpoint=path)) == outcome(whole)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("name", FITS)
def test_resuming_after_every_epoch(kind, name, backend, snapshots, tmp_path):
    whole = fitted(estimator(kind, **FITS[name]))
    written = fitted(estimator(kind, **FITS[name]), checkpoint=tmp_path / "run")
    assert outcome(written) == outcome(whole)
    assert_each_goes_on(snapshots, tmp_path, whole, **FITS[name])


def test_resuming_in_the_middle_of_an_epoch(backend, monkeypatch, snapshots, tmp_path):
    whole = fitted(estimator())
    polls = []

    def poll(self):
        polls.append(None)
        if len(polls) in (4, 9, 23):
            raise KeyboardInterrupt

    monkeypatch.setattr("fusedmlp.training.interrupts.Interrupts.poll", poll)
    for _ in range(4):
        model = estimator()
        try:
            fitted(model, checkpoint=tmp_path / "run", checkpoint_every="1h")
        except KeyboardInterrupt:
            continue
        break
    assert outcome(model) == outcome(whole)
    assert len(snapshots) == 1 + (len(polls) >= 4) + (len(polls) >= 9) + (len(polls) >= 23)


def test_more_iterations_go_on(backend, tmp_path):
    fitted(estimator(max_iter=4), checkpoint=tmp_path / "run")
    assert outcome(fitted(estimator(), checkpoint=tmp_path / "run")) == outcome(fitted(estimator()))
    again = fitted(estimator(), checkpoint=tmp_path / "run")  # it is over
    assert outcome(again) == outcome(fitted(estimator()))
    assert again.score(X, y) > 0.3


def test_mistakes(tmp_path):
    path = tmp_path / "run"
    fitted(estimator(), checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"alpha: 0.0001 there, 0.1 here"):
        fitted(estimator(alpha=0.1), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"X: \(4, 150\) numbers with the checksum"):
        estimator().fit(X + 1, y, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"estimator: MLPClassifier there, MLPRegressor here"):
        fitted(estimator(MLPRegressor), checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint: expected a solver that works in epochs, 'sgd' or 'adam'"):
        fitted(estimator(solver="lbfgs"), checkpoint=tmp_path / "other")
    with pytest.raises(ValueError, match="checkpoint_every: expected epochs or a time; got '3 batches'"):
        fitted(estimator(), checkpoint=tmp_path / "other", checkpoint_every="3 batches")
    assert path.read_bytes() == content
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_sigterm_ends_a_script_with_143(tmp_path):
    code = """
import numpy as np
from fusedmlp import MLPRegressor
X = np.random.default_rng(0).normal(size=(500, 5))
MLPRegressor(max_iter=10**6, n_iter_no_change=10**6).fit(X, X[:, 0], checkpoint="run")
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run").exists():
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "run: a checkpoint of epoch" in err
    assert not np.isnan(np.fromfile(tmp_path / "run", np.uint8)).any()
