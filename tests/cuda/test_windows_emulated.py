"""Samples that come to the fake GPU in windows, from host memory and from streams: steps are captured once."""

from __future__ import annotations

import numpy as np
import pytest

from fusedmlp import ArrayStream, BatchStream, Network
from fusedmlp.backends.cupy import captured_engine
from fusedmlp.backends.cupy.captured_steps import CapturedSteps
from fusedmlp.engines.options import EpochOptions, EpochPosition
from fusedmlp.model.optimizers import Adam, OptimizerState

M, BATCH_SIZE = 700, 20
RNG = np.random.default_rng(0)
X, Y, WEIGHT = RNG.normal(size=(5, M)), (RNG.random((1, M)) < 0.5).astype(float), RNG.random(M) + 0.5
SIZES = {"block_bytes": 800, "window_bytes": 12_000}  # blocks of 20 samples, windows of 200


@pytest.fixture(params=["captured", "resident"])
def way(request, monkeypatch):
    """How a small network is trained."""
    if request.param == "captured":
        monkeypatch.setattr(captured_engine, "stays_resident", lambda *_: False)
    return request.param


@pytest.fixture
def captures(monkeypatch):
    """What was captured."""
    made, capture = [], captured_engine.CapturedEngine._capture

    def capturing(self, *given):
        made.append(capture(self, *given))
        return made[-1]

    monkeypatch.setattr(captured_engine.CapturedEngine, "_capture", capturing)
    return made


def network(backend, chunk=None):
    net = Network([5, 7, 1], "tanh", dtype="float64", backend=backend, random_state=0)
    if chunk is not None:
        backend.resident_bytes = 0
        net.engine._chunk = chunk
    return net


def fit(net, *samples, **arguments):
    return net.fit(*samples, **({"epochs": 3, "batch_size": BATCH_SIZE, "random_state": 1, "alpha": 0.1} | arguments))


@pytest.mark.parametrize("weighted", [False, True])
def test_host_memory(emulated, way, captures, weighted):
    """Two rooms for full windows and one for the last: three captures, however many windows and epochs there are."""
    weight = WEIGHT if weighted else None
    net, other = network(emulated, chunk=110), network("numpy")
    history = fit(net, X, Y, sample_weight=weight, epochs=4)
    expected = fit(other, X, Y, sample_weight=weight, epochs=4)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-11)
    np.testing.assert_allclose(net.parameters.flat.get(), other.parameters.flat, rtol=1e-9, atol=1e-12)
    assert len(captures) == 2 if M % 100 == 0 else 3
    if way == "captured":
        assert all(isinstance(each, CapturedSteps) for each in captures)
        assert all(any(graph.launched > 1 for graph in each._graphs.values()) for each in captures)


def test_an_epoch_in_parts(emulated, way):
    """Wherever a pass ends, the next one goes on, within a window too."""
    results = []
    for ends in ([None], [3, 5, 6, 20, None], [*range(1, 35), None]):
        net = network(emulated, chunk=110)
        samples = net._samples(X, Y)
        state, position = OptimizerState(Adam(), emulated.xp, net.parameters), EpochPosition()
        order = np.random.default_rng(2).permutation(M)
        for end in ends:
            position.end = end
            options = EpochOptions(0.1, position=position)
            net.engine.train_epoch(net.parameters, state, samples.X, samples.Y, None, order, BATCH_SIZE, options)
        results.append((net.parameters.flat.get().tobytes(), position.batches, position.loss))
    assert results[0][:2] == results[1][:2] == results[2][:2]
    assert results[1][2] == pytest.approx(results[0][2], rel=1e-12)
    assert results[2][2] == pytest.approx(results[0][2], rel=1e-12)


def test_memory_that_runs_out(emulated, way, monkeypatch):
    """The windows become smaller in the middle of an epoch; no step is done twice, none is left out."""
    calls, capture = [], captured_engine.CapturedEngine._capture

    def failing(self, *given):
        calls.append(given)
        if len(calls) == 2:
            raise emulated.memory_errors[0]("none left")
        return capture(self, *given)

    monkeypatch.setattr(captured_engine.CapturedEngine, "_capture", failing)
    net, other = network(emulated, chunk=610), network("numpy")
    history = fit(net, X, Y, batch_size=60)
    expected = fit(other, X, Y, batch_size=60)
    assert net.engine._chunk == 305
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-11)
    np.testing.assert_allclose(net.parameters.flat.get(), other.parameters.flat, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["array", "weighted", "batches"])
def test_streams(emulated, way, captures, kind):
    make = {
        "array": lambda: ArrayStream(X, Y, **SIZES),
        "weighted": lambda: ArrayStream(X, Y, WEIGHT, **SIZES),
        "batches": lambda: BatchStream([(X[:, i : i + 90], Y[:, i : i + 90]) for i in range(0, M, 90)], **WINDOW),
    }[kind]
    net, other = network(emulated), network("numpy")
    history = fit(net, make(), validation_data=(X, Y))
    expected = fit(other, make(), validation_data=(X, Y))
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-11)
    np.testing.assert_allclose(history.validation_loss, expected.validation_loss, rtol=1e-11)
    np.testing.assert_allclose(net.parameters.flat.get(), other.parameters.flat, rtol=1e-9, atol=1e-12)
    assert len(captures) <= 3


WINDOW = {"window_bytes": 12_000}


def test_a_checkpoint_of_a_stream_moves_between_backends(emulated, tmp_path):
    """From the fake GPU to the CPU, in the middle of a window."""
    from fusedmlp import TrainingState
    from fusedmlp.engines.options import GradientPhase

    class Interrupting(GradientPhase):
        count = 0

        def apply(self, gradient, sums):
            self.count += 1
            if self.count == 48:
                raise KeyboardInterrupt

    whole, first, second, state = network("numpy"), network(emulated), network("numpy"), TrainingState()
    expected = fit(whole, ArrayStream(X, Y, **SIZES))
    with pytest.raises(KeyboardInterrupt):
        fit(first, ArrayStream(X, Y, **SIZES), state=state, gradient_phase=Interrupting())
    assert state.batch == 12
    second.parameters.flat[...] = first.parameters.flat.get()
    state = TrainingState.from_dict(state.to_dict())
    history = fit(second, ArrayStream(X, Y, **SIZES), state=state, random_state=None, epochs=2)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-11)
    np.testing.assert_allclose(second.parameters.flat, whole.parameters.flat, rtol=1e-9, atol=1e-12)
