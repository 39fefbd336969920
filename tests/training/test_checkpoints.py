"""A training that goes on from a checkpoint has the bits of one that was not interrupted."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest

from fusedmlp import Network, ReduceOnPlateau, TrainingState
from fusedmlp.checkpoints import Checkpoint, FileRecorder
from fusedmlp.errors import CheckpointError
from fusedmlp.files.checkpoint_files import load_checkpoint
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.training.recording import Every
from fusedmlp.training.schedules import SCHEDULES
from machine import require

GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(6, 173))
Y = (GENERATOR.random((1, 173)) < 0.4).astype(float)
BATCH_SIZE, EPOCHS = 4, 4


def network(backend="numpy", seed=3, dtype="float32"):
    return Network([6, 8, 1], backend=require(backend), dtype=dtype, random_state=seed)


def fit(net, **arguments):
    arguments = {"batch_size": BATCH_SIZE, "epochs": EPOCHS} | arguments
    return net.fit(X, Y, **arguments)


def outcome(net):
    history = net.history
    return (
        net.parameters.flat.tobytes(), history.loss, history.validation_loss, history.learning_rate,
        history.best_epoch, history.stopped, len(history.seconds),
    )  # fmt: skip


@pytest.fixture
def snapshots(monkeypatch, tmp_path):
    """Every checkpoint that is written, kept."""
    kept, write = [], FileRecorder.write

    def writing(self, *arguments):
        write(self, *arguments)
        kept.append(shutil.copy(self.path, tmp_path / f"kept-{len(kept)}"))

    monkeypatch.setattr(FileRecorder, "write", writing)
    return kept


def assert_every_snapshot_goes_on(snapshots, tmp_path, backend, whole, **arguments):
    """Each of the checkpoints, in a new network with other weights and seed, comes to the whole's outcome."""
    monkey, kept = tmp_path / "going-on", list(snapshots)
    assert len(kept) > 2
    for number, snapshot in enumerate(kept):
        shutil.copy(snapshot, monkey)
        again = network(backend, seed=100 + number, dtype=whole.architecture.dtype)
        fit(again, checkpoint=monkey, **arguments)
        assert outcome(again) == outcome(whole), f"checkpoint {number}"


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("every", [1, "10 batches"])
def test_resuming_anywhere(backend, optimizer, every, snapshots, tmp_path):
    arguments = {"optimizer": optimizer, "schedule": "cosine", "sample_weight": np.linspace(0.5, 2, 173)}
    whole, written = network(backend), network(backend)
    fit(whole, **arguments)
    fit(written, checkpoint=tmp_path / "run", checkpoint_every=every, **arguments)
    assert outcome(written) == outcome(whole)
    assert len(snapshots) == (EPOCHS if every == 1 else EPOCHS * 4 + 1)
    assert_every_snapshot_goes_on(snapshots, tmp_path, backend, whole, **arguments)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule(schedule, snapshots, tmp_path):
    whole = network()
    fit(whole, schedule=schedule)
    fit(network(), schedule=schedule, checkpoint=tmp_path / "run", checkpoint_every="25 batches")
    assert_every_snapshot_goes_on(snapshots, tmp_path, "numpy", whole, schedule=schedule)


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"validation_fraction": 0.2, "early_stopping": True, "patience": 2, "learning_rate": 0.3, "epochs": 12},
        {"early_stopping": True, "patience": 1, "tolerance": 0.05, "epochs": 9},
        {"dropout": [0.1, 0.5], "clip_norm": 0.1, "optimizer": "adamw", "alpha": 0.01},
        {"callbacks": [ReduceOnPlateau(patience=1, tolerance=0.02)], "epochs": 6},
        {"shuffle": False, "optimizer": "nesterov"},
        {"batch_size": 500},
    ],
    ids=["validation", "early-stopping", "dropout", "plateau", "unshuffled", "full-batch"],
)
def test_whatever_a_training_remembers(backend, arguments, snapshots, tmp_path):
    whole = network(backend, dtype="float64")
    fit(whole, **arguments)
    written = network(backend, dtype="float64")
    every = 1 if "batch_size" in arguments else "17 batches"
    fit(written, checkpoint=tmp_path / "run", checkpoint_every=every, **arguments)
    assert_every_snapshot_goes_on(snapshots, tmp_path, backend, whole, **arguments)


def test_a_checkpoint_moves_between_backends(snapshots, tmp_path, caplog):
    whole = network("numpy", dtype="float64")
    fit(whole)
    fit(network("numpy", dtype="float64"), checkpoint=tmp_path / "run", checkpoint_every="30 batches")
    for snapshot in list(snapshots)[:-1]:
        again = network("numba-cpu", seed=9, dtype="float64")
        with caplog.at_level(logging.WARNING, "fusedmlp"):
            fit(again, checkpoint=snapshot)
        np.testing.assert_allclose(again.parameters.flat, whole.parameters.flat, rtol=1e-9)
        np.testing.assert_allclose(again.history.loss, whole.history.loss, rtol=1e-12)
    assert "written with the numpy backend, and now it is the numba-cpu backend" in caplog.text


def test_what_is_over_stays_as_it_is_and_may_be_longer(tmp_path):
    path = tmp_path / "run"
    once = network()
    fit(once, checkpoint=path)
    content = path.read_bytes()
    again = network(seed=9)
    assert fit(again, checkpoint=path).epochs == EPOCHS
    assert outcome(again) == outcome(once)
    assert path.read_bytes() == content
    fit(again, checkpoint=path, epochs=EPOCHS + 2)
    longer = network()
    fit(longer, epochs=EPOCHS + 2)
    assert outcome(again) == outcome(longer)
    with pytest.raises(CheckpointError, match="epochs: expected more than the 6 that are done; got 5"):
        fit(network(), checkpoint=path, epochs=5)


DIFFERENCES = {
    "batch_size: 4 there, 8 here": {"batch_size": 8},
    "alpha: 0.0 there, 0.1 here": {"alpha": 0.1},
    "optimizer: Adam.* there, SGD.* here": {"optimizer": "sgd"},
    "schedule: Constant.* there, CosineDecay.* here": {"schedule": "cosine"},
    "dropout: nothing there": {"dropout": 0.1},
    "callbacks": {"callbacks": [print]},
    "sample_weight: nothing there, .1, 173. numbers": {"sample_weight": np.ones(173)},
    "validation_X: nothing there": {"validation_data": (X, Y)},
}


@pytest.mark.parametrize("message", DIFFERENCES)
def test_another_training_is_refused_by_what_differs(message, tmp_path):
    path = tmp_path / "run"
    fit(network(), checkpoint=path, epochs=1)
    content, net = path.read_bytes(), network()
    before = net.parameters.flat.copy()
    with pytest.raises(CheckpointError, match=f"the checkpoint is another training's: .*{message}"):
        fit(net, checkpoint=path, **DIFFERENCES[message])
    assert path.read_bytes() == content
    assert np.array_equal(before, net.parameters.flat)


def test_other_networks_and_data_are_refused(tmp_path):
    path = tmp_path / "run"
    fit(network(), checkpoint=path, epochs=1)
    with pytest.raises(CheckpointError, match="dtype: float32 there, float64 here"):
        fit(network(dtype="float64"), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"X: \(6, 173\) numbers with the checksum \w+ there, \(6, 173\) numbers"):
        network().fit(X + 1, Y, checkpoint=path, batch_size=BATCH_SIZE)
    with pytest.raises(CheckpointError, match=r"Y: .* there, .* here"):
        network().fit(X, 1 - Y, checkpoint=path, batch_size=BATCH_SIZE)


def test_bad_arguments(tmp_path):
    class Mine(Optimizer):
        def update(self, xp, state, theta, gradient):
            theta -= 0.1 * gradient

    path = tmp_path / "run"
    for value in (0, -1, True, "often", "0s", "1.5 batches", "-3s", 1.5, timedelta(0), None):
        with pytest.raises(ValueError, match="checkpoint_every: expected a number of epochs, a time such as"):
            fit(network(), checkpoint=path, checkpoint_every=value)
    with pytest.raises(ValueError, match="checkpoint: expected a path or a Checkpoint; got 3"):
        fit(network(), checkpoint=3)
    with pytest.raises(ValueError, match="state: expected None where checkpoint is given"):
        fit(network(), checkpoint=path, state=TrainingState())
    with pytest.raises(ValueError, match="optimizer: expected one of SGD, Adam, AdamW to write"):
        fit(network(), checkpoint=path, optimizer=Mine(0.1))
    with pytest.raises(OSError, match="No such file or directory"):
        fit(network(), checkpoint=tmp_path / "none" / "run")
    with pytest.raises(ValueError, match="expected the name of a new file or of a regular one; got a folder"):
        fit(network(), checkpoint=Checkpoint(tmp_path, 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, Every(epochs=3)), ("3", Every(epochs=3)), ("2 epochs", Every(epochs=2)), ("1 epoch", Every(epochs=1)),
        ("200 batches", Every(batches=200)), ("1batch", Every(batches=1)), ("30s", Every(seconds=30.0)),
        ("1.5min", Every(seconds=90.0)), ("2 h", Every(seconds=7200.0)), (timedelta(minutes=1), Every(seconds=60.0)),
    ],
)  # fmt: skip
def test_intervals(value, expected):
    assert Every.of("checkpoint_every", value) == expected


def test_by_time(snapshots, tmp_path):
    net = Network([64, 128, 1], backend="numpy", random_state=0)
    many = np.random.default_rng(0).normal(size=(64, 20_000)).astype(np.float32)
    net.fit(many, (many[:1] > 0).astype(float), epochs=2, checkpoint=tmp_path / "run", checkpoint_every="0.05s")
    assert len(snapshots) > 2  # in the middle of epochs, as each takes longer
    assert any(load_checkpoint(snapshot).state["batch"] for snapshot in snapshots)


def test_what_a_caller_keeps_with_it(tmp_path):
    extra = {"names": ["a", "b"], "center": np.arange(3.0), "note": {"from": "elsewhere", "far": float("inf")}}
    fit(network(), checkpoint=Checkpoint(tmp_path / "run", "5 epochs", extra))
    found = load_checkpoint(tmp_path / "run").extra
    assert found["names"] == extra["names"]
    assert found["note"] == extra["note"]
    np.testing.assert_array_equal(found["center"], extra["center"])


INTERRUPTED = """
import sys
import numpy as np
from fusedmlp import Network
net = Network([20, 64, 1], backend=sys.argv[1], random_state=1)
generator = np.random.default_rng(0)
X = generator.normal(size=(20, 3000)).astype("float32")
Y = (X[:1] > 0).astype("float32")

def tell(training):
    # Say once that the training has begun.
    if not told:
        told.append(print("training", flush=True))

told = []
arguments = {"checkpoint": sys.argv[3], "checkpoint_every": "1h", "callbacks": [tell]}
net.fit(X, Y, epochs=int(sys.argv[2]), batch_size=8, **arguments)
print(net.parameters.flat.sum(), net.history.loss[-1], len(net.history.loss))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "number", "status"),
    [("numpy", signal.SIGINT, -signal.SIGINT), ("numba-cpu", signal.SIGTERM, 143)],
)
def test_a_signal_writes_a_checkpoint(backend, number, status, tmp_path):
    require(backend)
    path, epochs = tmp_path / "run", {"numpy": 12, "numba-cpu": 600}[backend]
    command = [sys.executable, "-c", INTERRUPTED, backend, str(epochs)]
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, check=True)
    runs = 0
    while True:
        with subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            assert run.stdout.readline() == "training\n"
            if runs < 2:
                run.send_signal(number)
            out, err = run.communicate(timeout=120)
        if run.returncode == 0:
            break
        assert run.returncode == status, err
        assert f"{path}: a checkpoint of epoch" in err
        assert path.is_file()
        runs += 1
    assert runs
    assert "training\n" + out == whole.stdout
