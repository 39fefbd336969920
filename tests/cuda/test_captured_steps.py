"""Mini-batch steps in CUDA graphs, on the fake GPU: the same training as without, and nothing from the host between."""

from __future__ import annotations

import gc
import itertools
import logging
import types

import numpy as np
import pytest
from harness import fake_cupy

from fusedmlp import Network
from fusedmlp.backends.cupy.captured_engine import CapturedEngine
from fusedmlp.backends.cupy.captured_steps import CapturedSteps
from fusedmlp.engines.options import PLAIN, EpochOptions, GradientPhase
from fusedmlp.model.optimizers import SGD, Adam, AdamW, OptimizerState

pytestmark = pytest.mark.usefixtures("never_resident")
M = 170
SIZES = [(5, 20, 1), (3, 140, 3), (5, 20, 7), (4, 9, 11, 3)]  # narrow with one tile and with two, middle, deep


def data(sizes, loss="binary_cross_entropy"):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(sizes[0], M))
    Y = rng.normal(size=(sizes[-1], M)) if loss == "squared_error" else rng.integers(0, 2, (sizes[-1], M))
    return X, Y, rng.uniform(0, 2, M)


def trained(backend, sizes, **arguments):
    """(parameters, losses) of a training in float64, its engine, and its captured steps."""
    loss = arguments.pop("loss", "binary_cross_entropy")
    X, Y, weight = data(sizes, loss)
    if arguments.pop("weighted", False):
        arguments["sample_weight"] = weight
    net = Network(sizes, "tanh", loss, dtype="float64", backend=backend, random_state=0)
    kept = []
    history = net.fit(X, Y, epochs=3, callbacks=[lambda training: kept.append(training.optimizer_state)], **arguments)
    (steps,) = net.engine._steps.get(kept[0], [None]) if hasattr(net.engine, "_steps") else [None]
    return net.backend.to_numpy(net.parameters.flat), np.array(history.loss), net.engine, steps


TRAININGS = {
    "adam": {"batch_size": 10},
    "remainder, weights, L2": {"batch_size": 32, "weighted": True, "alpha": 0.3, "optimizer": "nesterov"},
    "in order": {"batch_size": 64, "shuffle": False, "optimizer": "momentum", "learning_rate": 0.1},
    "all at once": {"batch_size": 1000, "alpha": 0.1},
    "of a sum, by a schedule": {"batch_size": 50, "loss": "sum_squared_error", "schedule": "cosine", "weighted": True},
    "adamw, clipped": {"batch_size": 32, "optimizer": "adamw", "clip_norm": 0.1, "alpha": 0.3, "weighted": True},
    "dropout": {"batch_size": 50, "dropout": 0.3, "optimizer": "momentum"},
    "plain": {"batch_size": 100, "loss": "squared_error", "optimizer": "sgd", "learning_rate": 0.01},
}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(name, SIZES[(number + i) % 4], marks=[pytest.mark.every_kernel] if i else [])
        for number, name in enumerate(TRAININGS)
        for i in (0, number // 4 + 1)
    ],
)
def test_training_is_numpys(emulated, cupy, name, sizes):
    """Every training on two engines, every engine with four trainings."""
    flat, losses, engine, steps = trained(emulated, sizes, **TRAININGS[name])
    assert (steps is not None) == (name != "dropout")
    expected, expected_losses, *_ = trained("numpy", sizes, **TRAININGS[name])
    np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    assert engine.kind == "fused"
    assert ("finish_float64" in cupy.launches) == (name != "dropout")


def epochs_of(backend, n=1, options=PLAIN, batch_size=10):
    """A network after some epochs straight from its engine, its optimizer's state, and the last loss."""
    net = Network((5, 20, 1), "tanh", dtype="float64", backend=backend, random_state=0)
    X, Y, weight = (net.backend.asarray(np.atleast_2d(x), "float64") for x in data((5, 20, 1)))
    state = OptimizerState(AdamW(0.01), net.backend.xp, net.parameters)
    for _ in range(n):
        loss = net.engine.train_epoch(net.parameters, state, X, Y, weight, None, batch_size, options)
    return net, state, loss


def test_graphs_hold_one_step_and_sixteen(emulated):
    net, state, _ = epochs_of(emulated, 3)
    launched = {key: graph.launched for key, graph in net.engine._steps[state][0]._graphs.items()}
    # 17 batches an epoch; the very first is not captured.
    assert launched == {(10, 16): 3, (10, 1): 2}


class Halves(GradientPhase):
    """Stands for the sum over processes: half of the gradient and of the samples."""

    def apply(self, gradient, sums):
        gradient *= 0.5
        sums *= 0.5


@pytest.mark.parametrize(
    "options",
    [
        EpochOptions(alpha=0.2, mean_weight=1.3, clip_norm=0.05),
        EpochOptions(clip_norm=1e9),
        EpochOptions(alpha=0.2, gradient_phase=Halves(), clip_norm=0.05),
        EpochOptions(alpha=0.2, loss_factor=0.25),
        EpochOptions(alpha=0.2, penalty_by_weight=True),
    ],
    ids=["mean weight", "not clipped", "gradient phase", "loss factor", "penalty by weight"],
)
def test_options_of_epochs_are_numpys(emulated, options):
    results = []
    for backend in (emulated, "numpy"):
        net, state, loss = epochs_of(backend, 2, options)
        results.append(np.r_[loss, state.t, net.backend.to_numpy(net.parameters.flat)])
    np.testing.assert_allclose(*results, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seconds", [0, 1])
def test_an_epoch_is_interrupted_between_steps(emulated, monkeypatch, seconds):
    """All steps that were launched are taken and counted, however many there are between two polls.

    By a clock that goes on by so many seconds whenever it is looked at.
    """
    clock = itertools.count(0, seconds)
    looked_at = types.SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("fusedmlp.backends.cupy.captured_steps.time", looked_at)
    calls = []

    def poll():
        calls.append(1)
        if len(calls) == (3 if seconds else 2):
            raise KeyboardInterrupt

    interrupted = []
    train_epoch = CapturedEngine.train_epoch

    def caught(engine, parameters, state, *arguments):
        try:
            return train_epoch(engine, parameters, state, *arguments)
        except KeyboardInterrupt:
            interrupted.append(state.t)
            return 0.0

    monkeypatch.setattr(CapturedEngine, "train_epoch", caught)
    net, state, _ = epochs_of(emulated, 1, EpochOptions(poll=poll), batch_size=5)
    (steps,) = interrupted
    assert steps == (4 if seconds else 18)
    expected = Network((5, 20, 1), "tanh", dtype="float64", backend="numpy", random_state=0)
    X, Y, weight = data((5, 20, 1))
    own = OptimizerState(AdamW(0.01), np, expected.parameters)
    expected.engine.train_epoch(expected.parameters, own, X, Y.astype(float), weight[None], np.arange(5 * steps), 5)
    assert own.t == state.t == steps
    np.testing.assert_allclose(net.backend.to_numpy(net.parameters.flat), expected.parameters.flat, rtol=0, atol=1e-11)


def test_a_step_in_a_graph_has_the_bits_of_one_that_is_not(emulated, monkeypatch):
    """Captured or launched one by one, whatever the graphs are cut into."""
    flats = []
    for cut in ((16, 1), (1,), (5, 2, 1)):
        monkeypatch.setattr("fusedmlp.backends.cupy.captured_steps._STEPS_OF_A_GRAPH", cut)
        flats.append(trained(emulated, (5, 20, 7), batch_size=32, weighted=True)[0])

    def run(steps, state, size, count):
        for _ in range(count):
            steps._step(state, size)
        steps._taken += count

    monkeypatch.setattr(CapturedSteps, "_run", run)
    flats.append(trained(emulated, (5, 20, 7), batch_size=32, weighted=True)[0])
    assert all(np.array_equal(flat, flats[0]) for flat in flats[1:])


def test_losses_of_large_batches_are_summed_by_many_blocks(emulated, cupy, monkeypatch):
    small = trained(emulated, (5, 20, 1), batch_size=100, weighted=True)
    assert "losses_float64" not in cupy.launches
    monkeypatch.setattr("fusedmlp.backends.cupy.mini_batch.SMALL_BATCH", 50)
    large = trained(emulated, (5, 20, 1), batch_size=100, weighted=True)
    assert "losses_float64" in cupy.launches
    np.testing.assert_allclose(large[0], small[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(large[1], small[1], rtol=1e-12)


def test_a_small_step_is_four_launches(emulated, cupy):
    """It takes the narrow path, also where full batches take the middle one."""
    *_, steps = trained(emulated, (5, 20, 1), batch_size=32)
    assert emulated.engine(steps._engine.architecture).path == "middle"
    del cupy.launches[:]
    steps._graphs[32, 1].launch()
    kinds = [name.split("_")[0] for name in cupy.launches]
    assert kinds == ["gather", "narrow", "finish", "adam"]


def test_the_host_is_not_waited_for_between_steps(emulated, cupy, monkeypatch):
    """Transfers of an epoch: the order and the learning rate to the GPU, the loss from it."""
    X, Y, _ = data((5, 20, 1))
    net = Network((5, 20, 1), backend=emulated, random_state=0)
    net.fit(X, Y, epochs=1, batch_size=10)
    reads = []
    monkeypatch.setattr(fake_cupy.ndarray, "get", lambda x, get=fake_cupy.ndarray.get: reads.append(x.shape) or get(x))
    state = OptimizerState(Adam(), cupy, net.parameters)
    samples = [emulated.asarray(x, "float32") for x in (X, Y)]
    order = np.random.default_rng(0).permutation(M)
    for epochs in (1, 2):
        del reads[:]
        net.engine.train_epoch(net.parameters, state, *samples, None, order, 10)
        assert reads == [()], epochs
    assert state.t == 2 * 17


def test_other_arguments_make_other_steps(emulated, cupy):
    X, Y, weight = (emulated.asarray(x, "float32") for x in data((5, 20, 1)))
    net = Network((5, 20, 1), backend=emulated, random_state=0)
    state = OptimizerState(SGD(0.1), cupy, net.parameters)
    order = np.arange(M)

    def steps(*arguments):
        net.engine.train_epoch(net.parameters, *arguments)
        (steps,) = net.engine._steps[arguments[0]]
        return steps

    first = steps(state, X, Y, None, order, 32)
    assert steps(state, X, Y, None, order[::-1], 32) is first
    seen = [first]
    for arguments in (
        (state, X.copy(), Y, None, order, 32),
        (state, X, Y, weight[None], order, 32),
        (state, X, Y, None, None, 32),
        (state, X, Y, None, order, 33),
        (state, X, Y, None, order, 32, EpochOptions(alpha=0.5)),
        (state, X, Y, None, order, 32, EpochOptions(clip_norm=0.5)),
        (state, X, Y, None, order, 32, EpochOptions(mean_weight=0.5)),
        (state, X, Y, None, order, 32, EpochOptions(loss_factor=0.5)),
        (OptimizerState(SGD(0.1), cupy, net.parameters), X, Y, None, order, 32),
    ):
        other = steps(*arguments)
        assert other not in seen
        seen.append(other)


def test_an_order_may_leave_samples_out(emulated, cupy):
    """A validation split is such an order."""
    results = []
    for backend in (emulated, "numpy"):
        net = Network((5, 20, 1), dtype="float64", backend=backend, random_state=0)
        X, Y, _ = (net.backend.asarray(x, "float64") for x in data((5, 20, 1)))
        state = OptimizerState(SGD(0.1), net.backend.xp, net.parameters)
        for order in (np.arange(55), np.arange(55)[::-1] * 3):
            loss = net.engine.train_epoch(net.parameters, state, X, Y, None, order, 10)
        assert state.t == 12
        results.append(np.r_[loss, net.backend.to_numpy(net.parameters.flat)])
        assert backend == "numpy" or state in net.engine._steps
    np.testing.assert_allclose(*results, rtol=0, atol=1e-12)


def test_passes_between_epochs_do_not_move_what_graphs_use(emulated):
    """A larger pass enlarges the engine's buffers; the validation loss is such a pass."""
    X, Y, _ = data((5, 20, 7))
    results = []
    for backend in (emulated, "numpy"):
        net = Network((5, 20, 7), dtype="float64", backend=backend, random_state=0)
        net.fit(X, Y, epochs=3, batch_size=16, validation_data=(np.tile(X, 3), np.tile(Y, 3)))
        results.append(net.backend.to_numpy(net.parameters.flat))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-10)


def test_samples_with_gaps(emulated):
    """They are gathered, for cuBLAS would copy them, and a capture is no place for that."""
    results = []
    for backend in (emulated, "numpy"):
        X, Y, _ = data((5, 20, 7))
        net = Network((5, 20, 7), dtype="float64", backend=backend, random_state=0)
        X, Y = (net.backend.asarray(np.repeat(np.asarray(x, float), 2, axis=1))[:, ::2] for x in (X, Y))
        net.fit(X, Y, epochs=3, batch_size=1000)
        results.append(net.backend.to_numpy(net.parameters.flat))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-10)


def test_without_room_for_a_batch_the_chunk_gets_smaller(emulated, caplog):
    """Then batches are more than a chunk, and steps are not captured; no step is lost or taken twice."""
    X, Y, _ = data((5, 20, 7))
    X, Y = np.tile(X, 6), np.tile(Y, 6)
    results = []
    for backend in (emulated, "numpy"):
        net = Network((5, 20, 7), dtype="float64", backend=backend, random_state=0)
        if backend is emulated:
            a, b = fake_cupy.copied(np.ones((2, 2))), fake_cupy.copied(np.ones((2, 2)))
            emulated.matmul(a, b)  # cuBLAS gets its memory
            fake_cupy.POOL.refuse = lambda size: size in (-(-900 * 20 * 8 // 512) * 512, 32 * 2**20)
        with caplog.at_level(logging.WARNING, "fusedmlp"):
            net.fit(X, Y, epochs=2, batch_size=900)
        results.append(net.backend.to_numpy(net.parameters.flat))
        fake_cupy.POOL.refuse = None
    assert "chunks of 450 samples in place of 900" in caplog.text
    np.testing.assert_allclose(*results, rtol=0, atol=1e-10)


def test_an_error_in_a_capture_ends_it(emulated, monkeypatch):
    X, Y, _ = data((5, 20, 1))
    net = Network((5, 20, 1), backend=emulated, random_state=0)
    streams = []

    def fails(steps, state, size, step=CapturedSteps._step):
        step(steps, state, size)
        if steps._stream.is_capturing():
            streams.append(steps._stream)
            raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(CapturedSteps, "_step", fails)
        with pytest.raises(RuntimeError, match="planted"):
            net.fit(X, Y, epochs=1, batch_size=10)
    assert not streams[0].is_capturing()
    net.fit(X, Y, epochs=1, batch_size=10)
    assert np.isfinite(net.backend.to_numpy(net.parameters.flat)).all()


def test_a_training_that_is_over_holds_nothing_on_the_gpu(emulated):
    """Neither samples nor moments, graphs and their memory."""
    X, Y, _ = data((5, 20, 1))
    net = Network((5, 20, 1), backend=emulated, random_state=0)
    net.loss_and_gradients(X, Y)  # the engine's own buffers, made once
    net.fit(X, Y, epochs=1, batch_size=10, alpha=0.1)
    gc.collect()
    before = fake_cupy.POOL.used_bytes()
    net.fit(X, Y, epochs=2, batch_size=16, alpha=0.1)
    gc.collect()
    assert not net.engine._steps
    assert fake_cupy.POOL.used_bytes() == before
