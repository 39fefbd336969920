"""How a training ends: callbacks, interruption, deadlines, divergence; and what the network holds afterwards."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fusedmlp import SGD, Callback, GradientPhase, Network, StopAfter, TrainingDivergedError, TrainingState
from machine import require

GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(6, 90))
Y = (GENERATOR.random((1, 90)) < 0.4).astype(float)
BACKENDS = ["numpy", "numba-cpu"]


def network(backend="numpy", **arguments):
    return Network([6, 8, 1], backend=require(backend), dtype="float64", random_state=3, **arguments)


class Sums(GradientPhase):
    """Remembers the sums that it is given."""

    def __init__(self):
        self.seen = []

    def apply(self, gradient, sums):
        self.seen.append((gradient.copy(), sums.copy()))


class Halves(GradientPhase):
    """Stands for a second process with the same samples: every sum doubles, and J and its gradient stay."""

    def apply(self, gradient, sums):
        gradient *= 2
        sums *= 2


# The gradient phase ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_phase_sees_sums_that_nothing_has_scaled(backend):
    net, phase, weight = network(backend), Sums(), np.linspace(0.5, 2, 90)
    J, gradients = net.loss_and_gradients(X, Y, weight)
    net.fit(X, Y, SGD(0.1), 1, 90, sample_weight=weight, gradient_phase=phase, alpha=0.5)
    ((gradient, sums),) = phase.seen
    np.testing.assert_allclose(sums, [J * weight.sum(), weight.sum(), 90], rtol=1e-12)
    np.testing.assert_allclose(gradient, gradients.flat * weight.sum(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight", [None, np.linspace(0.5, 2, 90)], ids=["no weights", "weights"])
def test_scale_and_loss_follow_from_what_the_phase_leaves(backend, weight):
    alone, doubled = network(backend), network(backend)
    arguments = {"optimizer": SGD(0.1, 0.9), "epochs": 3, "batch_size": 16, "sample_weight": weight, "shuffle": False}
    losses = alone.fit(X, Y, **arguments).loss
    np.testing.assert_allclose(doubled.fit(X, Y, gradient_phase=Halves(), **arguments).loss, losses, rtol=1e-12)
    np.testing.assert_allclose(doubled.parameters.flat, alone.parameters.flat, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_in_the_phase_reaches_the_caller(backend):
    class Broken(GradientPhase):
        def apply(self, gradient, sums):
            raise OSError("the other process is gone")

    net = network(backend)
    before = net.parameters.flat.copy()
    with pytest.raises(OSError, match="the other process is gone"):
        net.fit(X, Y, epochs=2, gradient_phase=Broken())
    assert np.array_equal(net.parameters.flat, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_clipping(backend, optimizer):
    """The same as a gradient phase that clips: as torch.nn.utils.clip_grad_norm_."""
    weight, alpha, m = np.linspace(0.5, 2, 90), 0.3, 90
    net, other = network(backend), network()

    class Clip(GradientPhase):
        def apply(self, gradient, sums):
            for W, (start, end) in zip(other.weights, other.architecture.weight_ranges, strict=True):
                gradient[start:end] += W.reshape(-1) * (alpha / m) * weight.sum()
            norm = np.linalg.norm(gradient) / weight.sum()
            gradient *= min(1.0, 0.05 / (norm + 1e-6))

    arguments = {"optimizer": optimizer, "epochs": 4, "batch_size": 90, "sample_weight": weight}
    net.fit(X, Y, clip_norm=0.05, alpha=alpha, **arguments)
    other.fit(X, Y, gradient_phase=Clip(), **arguments)
    np.testing.assert_allclose(net.parameters.flat, other.parameters.flat, rtol=1e-9, atol=1e-12)


# Callbacks ------------------------------------------------------------------------------------------------------------


def test_stop_before_the_first_epoch_trains_none():
    class Never(Callback):
        def on_fit_begin(self, training):
            training.stop("not today")

    net = network()
    before = net.parameters.flat.copy()
    history = net.fit(X, Y, callbacks=[Never()])
    assert history.stopped == "not today"
    assert history.epochs == 0
    assert np.array_equal(net.parameters.flat, before)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda training: training.stop(""), "reason: expected a text"),
        (lambda training: setattr(training, "rate_factor", -1), "rate_factor: expected a number"),
        (lambda training: setattr(training, "rate_factor", math.nan), "rate_factor: expected a number"),
    ],
)
def test_wrong_orders_of_callbacks(callback, message):
    with pytest.raises(ValueError, match=message):
        network().fit(X, Y, epochs=3, callbacks=[callback])


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_a_callback_breaks_in_the_last_epoch(backend):
    net = network(backend)

    def break_them(training):
        if training.epoch == 2:
            training.parameters.flat[3] = np.nan

    with pytest.raises(TrainingDivergedError, match="the weights became NaN or infinite in epoch 3"):
        net.fit(X, Y, epochs=3, callbacks=[break_them])
    assert np.isfinite(net.parameters.flat).all()


def test_two_trainings_of_one_network_at_once_are_an_error():
    net = network()
    with pytest.raises(RuntimeError, match="fit: this network is being trained already"):
        net.fit(X, Y, epochs=1, callbacks=[lambda training: net.fit(X, Y)])
    net.fit(X, Y, epochs=1)  # it is free again

    started, errors = threading.Event(), []

    def train():
        net.fit(X, Y, epochs=1, callbacks=[lambda training: (started.set(), time.sleep(0.3))])

    thread = threading.Thread(target=train)
    thread.start()
    started.wait(10)
    with pytest.raises(RuntimeError, match="by another thread"):
        net.fit(X, Y, epochs=1)
    thread.join()
    assert not errors


# Divergence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("rate", [3.0, 30.0, 1e5, 1e30])
def test_what_is_put_back_is_no_worse_than_the_first_weights(rate, early_stopping):
    net = Network([6, 8, 3], loss="squared_error", hidden_activation="relu", backend="numpy", random_state=3)
    Y3 = GENERATOR.normal(size=(3, 90))
    first = net.loss(X, Y3)
    try:
        net.fit(X, Y3, SGD(rate), epochs=12, batch_size=8, early_stopping=early_stopping, patience=3)
    except TrainingDivergedError as error:
        claimed = float(str(error).partition("whose loss is ")[2].partition(")")[0])
        assert claimed == pytest.approx(net.loss(X, Y3), rel=1e-4)
    else:
        if not early_stopping:
            return
    assert np.isfinite(net.parameters.flat).all()
    assert net.loss(X, Y3) <= first * (1 + 1e-6)


# Interruption ---------------------------------------------------------------------------------------------------------

LONG_TRAINING = """
import sys, time
import numpy as np
from fusedmlp import Network, TrainingState
backend, m, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
net = Network([64, 256, 1], backend=backend, random_state=0)
generator = np.random.default_rng(0)
X, Y = generator.random((64, m), "float32"), (generator.random((1, m)) < 0.5).astype("float32")
state = TrainingState()
net.loss(X[:, :9], Y[:, :9])
before = net.parameters.flat.copy()
print("ready", flush=True)
try:
    net.fit(X, Y, epochs=100000, batch_size=batch_size, state=state)
except KeyboardInterrupt:
    done = time.time()
    assert np.isfinite(net.parameters.flat).all()
    assert net.history.stopped == f"interrupted in epoch {net.history.epochs + 1}", net.history.stopped
    print(done, state.steps, np.array_equal(before, net.parameters.flat), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [32, 10**7], ids=["batches", "one long batch"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_ends_a_long_epoch_at_once(backend, batch_size):
    command = [sys.executable, "-c", LONG_TRAINING, backend, "400000", str(batch_size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.7)
        sent = time.time()
        os.kill(process.pid, signal.SIGINT)
        words = process.stdout.readline().split()
    assert float(words[0]) - sent < 2.0  # 0.1 s on a machine with nothing else to do
    steps, unchanged = int(words[1]), words[2] == "True"
    assert unchanged == (steps == 0)
    assert process.returncode == 0


@pytest.mark.parametrize("where", ["main", "handled", "thread"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deadline_ends_a_training_of_short_epochs(backend, where):
    net = Network([3, 1], backend=require(backend), random_state=0)

    def fit():
        net.fit(X[:3, :40], Y[:, :40], epochs=10**5, callbacks=[StopAfter(0.2)])

    if where == "thread":
        thread = threading.Thread(target=fit)
        thread.start()
        thread.join(30)
    elif where == "handled":  # Ctrl-C belongs to somebody else
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            fit()
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        fit()
    assert net.history.stopped.startswith("the deadline passed in epoch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deadline_ends_an_epoch(backend):
    net = Network([64, 256, 1], backend=require(backend), random_state=0)
    many = np.random.default_rng(0).normal(size=(64, 100_000)).astype(np.float32)
    net.fit(many[:, :50], np.ones(50), epochs=1)  # compiles
    state = TrainingState()
    start = time.monotonic()
    history = net.fit(many, np.ones(100_000), epochs=10**6, callbacks=[StopAfter(0.3)], batch_size=16, state=state)
    assert time.monotonic() - start < 5
    assert history.stopped.startswith("the deadline passed in epoch")
    assert history.epochs == state.epoch
    assert state.steps > 0
