"""What an epoch of the fused CPU engine takes besides samples, against the composed engine on numpy; interruption."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

pytest.importorskip("numba")

from compare import assert_close
from fusedmlp import SGD, Adam, AdamW, Network
from fusedmlp.backends.numba_cpu import epochs
from fusedmlp.backends.numba_cpu.machine import interruption
from fusedmlp.backends.numba_cpu.workers import threads
from fusedmlp.engines.options import EpochOptions, GradientPhase
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.dropout import Dropout
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Parameters
from problems import make_problem

M = 2003


class Tripled(GradientPhase):
    """As if there were three processes with the same samples, and a weight too many."""

    def __init__(self):
        self.calls = 0

    def apply(self, gradient, sums):
        self.calls += 1
        gradient *= gradient.dtype.type(3)
        sums *= 3
        sums[1] += 0.5


OPTIONS = {
    "plain": EpochOptions(),
    "mean weight": EpochOptions(alpha=0.3, mean_weight=1.7),
    "clipped": EpochOptions(alpha=0.3, clip_norm=0.05),
    "not clipped": EpochOptions(clip_norm=1e3),
    "phase": EpochOptions(alpha=0.2, gradient_phase=Tripled()),
    "dropout": EpochOptions(dropout=Dropout((0.0, 0.3, 0.5), 11)),
    "dropout of inputs": EpochOptions(alpha=0.1, dropout=Dropout((0.2, 0.0, 0.25), (1 << 64) - 5)),
    "all": EpochOptions(
        0.1, 1.1, Dropout((0.1, 0.2, 0.3), 3), 0.1, Tripled(), penalty_by_weight=True, loss_factor=0.25
    ),
}
OPTIMIZERS = [SGD(0.05), SGD(0.02, 0.9), SGD(0.02, 0.9, True), Adam(0.01), AdamW(0.01, weight_decay=0.1)]


def trained(backend, options, optimizer=SGD(0.05), batch_size=300, dtype="float64", rounds=2, **problem):  # noqa: B008
    """(losses of epochs, parameters, optimizer state) of a shuffled training of a part of the samples."""
    given = {"activation": "tanh", "sizes": [6, 9, 8, 2], "m": M, "weighted": True, **problem}
    problem = make_problem(**given, backend=backend, dtype=dtype)
    net, order = problem.net, np.random.default_rng(1).permutation(given["m"])[: given["m"] - 20]
    parameters = Parameters(net.architecture, net.parameters.flat.copy())
    state = OptimizerState(optimizer, np, parameters)
    weight = None if problem.sample_weight is None else problem.sample_weight[None]
    losses = [
        net.engine.train_epoch(parameters, state, problem.X, problem.Y, weight, order, batch_size, options)
        for _ in range(rounds)
    ]
    return losses, parameters.flat, state


def check(tolerance=1e-10, **given):
    losses, flat, state = trained("numba-cpu", **given)
    expected_losses, expected, expected_state = trained("numpy", **given)
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)
    assert_close(flat, expected.astype(np.float64), tolerance=tolerance)
    assert state.t == expected_state.t


@pytest.mark.parametrize("batch_size", [33, M])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, batch_size):
    check(options=OPTIONS[options], batch_size=batch_size)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", ["plain", "all"])
def test_optimizers(optimizer, options):
    check(options=OPTIONS[options], optimizer=optimizer)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
def test_dropout_of_every_activation(activation, dtype):
    options = EpochOptions(dropout=Dropout((0.1, 0.4, 0.2), 5))
    tolerance = {"float32": 2e-5, "float64": 1e-10}[dtype]
    check(tolerance, options=options, activation=activation, dtype=dtype, rounds=1)


@pytest.mark.parametrize("loss", ["squared_error", "sum_squared_error", "categorical_cross_entropy", "poisson"])
def test_losses(loss):
    sizes = [6, 9, 8, 3]
    check(options=OPTIONS["all"], optimizer=SGD(1e-4), loss=loss, sizes=sizes)


def test_one_output_and_wide_inputs():
    check(options=OPTIONS["all"], sizes=[300, 20, 10, 1])
    check(options=EpochOptions(dropout=Dropout((0.3,), 5)), sizes=[7, 1])
    check(options=EpochOptions(dropout=Dropout((0.3, 0.1), 5)), sizes=[5000, 6, 1], m=300)


@pytest.mark.parametrize("options", ["plain", "all"])
def test_same_bits_for_any_number_of_workers(options, monkeypatch):
    results = []
    for count in ("1", "2", "3", "4"):
        monkeypatch.setenv("FUSEDMLP_NUM_THREADS", count)
        threads.reset()
        results.append(trained("numba-cpu", OPTIONS[options], Adam(), 5000, "float32", m=20_000, sizes=[20, 64, 32, 1]))
    monkeypatch.undo()
    threads.reset()
    for losses, flat, _ in results[1:]:
        assert losses == results[0][0]
        assert np.array_equal(flat, results[0][1])


def test_same_bits_of_a_large_network(monkeypatch):
    results = []
    X = np.random.default_rng(0).normal(size=(784, 512)).astype(np.float32)
    for count in ("1", "2", "3", "4"):
        monkeypatch.setenv("FUSEDMLP_NUM_THREADS", count)
        threads.reset()
        net = Network([784, 4096, 1], backend="numba-cpu", random_state=0)
        results.append(net.loss_and_gradients(X, np.ones((1, 512)))[1].flat)
    monkeypatch.undo()
    threads.reset()
    assert all(np.array_equal(flat, results[0]) for flat in results)


@pytest.mark.parametrize(("t", "batches"), [(0, 2), (7, 50), (1000, 50), (1023, 50), (5, 3000)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS[2:])
def test_the_numbers_of_a_run_are_the_optimizers(optimizer, t, batches):
    net = Network([3, 4, 1], backend="numba-cpu")
    state = OptimizerState(optimizer, np, net.parameters)
    state.t, state.learning_rate = t, 0.03
    epoch = epochs.Epoch(EpochOptions(), state, batches, np.zeros(1), np.zeros(3), np.zeros(1, np.int64))
    table = np.frombuffer((ctypes.c_double * (3 * batches)).from_address(epoch.fields["rates"])).reshape(3, batches)
    expected = [optimizer.numbers(0.03, step) for step in range(t + 1, t + 1 + batches)]
    np.testing.assert_allclose(table[0], [numbers.rate for numbers in expected], rtol=1e-14)
    np.testing.assert_allclose(table[1], [numbers.epsilon for numbers in expected], rtol=1e-14)
    np.testing.assert_allclose(-table[2], [numbers.decay for numbers in expected], rtol=1e-14)


# The gradient phase ---------------------------------------------------------------------------------------------------

SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Compiled(GradientPhase):
    """`Tripled`, as a C function."""

    def __init__(self):
        self.contexts = []
        self.routine = SIGNATURE(self.called)

    def called(self, gradient, n_parameters, sums, context):
        self.contexts.append(context)
        g = np.frombuffer((ctypes.c_double * n_parameters).from_address(gradient))
        s = np.frombuffer((ctypes.c_double * 3).from_address(sums))
        Tripled().apply(g, s)

    def apply(self, gradient, sums):
        raise AssertionError("there is a compiled one")

    def compiled(self):
        return ctypes.cast(self.routine, ctypes.c_void_p).value, 123


def test_a_compiled_phase_does_what_its_python_does():
    phase, python = Compiled(), Tripled()
    got = trained("numba-cpu", EpochOptions(gradient_phase=phase), rounds=1)
    expected = trained("numba-cpu", EpochOptions(gradient_phase=python), rounds=1)
    assert got[0] == expected[0]
    assert np.array_equal(got[1], expected[1])
    assert phase.contexts == [123] * python.calls


class Failing(GradientPhase):
    def __init__(self, steps):
        self.steps = steps

    def apply(self, gradient, sums):
        gradient[...] = np.nan
        if self.steps == 0:
            raise RuntimeError("mine")
        gradient[...] = 1
        self.steps -= 1


def test_a_phase_that_fails_ends_the_epoch_without_its_step():
    problem = make_problem(backend="numba-cpu", m=M)
    net = problem.net
    before = net.parameters.flat.copy()
    state = OptimizerState(SGD(1.0), np, net.parameters)
    options = EpochOptions(gradient_phase=Failing(3))
    with pytest.raises(RuntimeError, match="mine"):
        net.engine.train_epoch(net.parameters, state, problem.X, problem.Y, None, None, 100, options)
    assert state.t == 3
    np.testing.assert_allclose(net.parameters.flat, before - 3 * 0.01, rtol=1e-12)


# Interruption ---------------------------------------------------------------------------------------------------------


class EnoughError(Exception):
    pass


@pytest.mark.parametrize(("batch_size", "hidden"), [(64, 256), (400_000, 1024)])
def test_an_exception_of_poll_ends_the_epoch(batch_size, hidden):
    """Small batches: after whole steps; one large batch, which takes as long as several polls: without any."""
    m = 400_000
    X = np.random.default_rng(0).normal(size=(20, m)).astype(np.float32)
    Y = (X[:1] > 0).astype(np.float32)
    net = Network([20, hidden, 1], backend="numba-cpu", random_state=0)
    net.loss(X[:, :10], Y[:, :10])
    before = net.parameters.flat.copy()
    state, calls = OptimizerState(SGD(1e-3), np, net.parameters), []

    def poll():
        calls.append(time.monotonic())
        if len(calls) == 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        net.engine.train_epoch(net.parameters, state, X, Y, None, None, batch_size, EpochOptions(poll=poll))
    assert time.monotonic() - calls[1] < 2
    assert len(calls) == 2
    if batch_size == m:
        assert state.t == 0
        assert np.array_equal(net.parameters.flat, before)
    else:
        assert 0 < state.t < m // batch_size
        again = Network([20, hidden, 1], backend="numba-cpu", random_state=0)
        same = OptimizerState(SGD(1e-3), np, again.parameters)
        steps = state.t * batch_size
        again.engine.train_epoch(again.parameters, same, X[:, :steps], Y[:, :steps], None, None, batch_size)
        assert np.array_equal(again.parameters.flat, net.parameters.flat)
    assert np.isfinite(net.loss(X, Y))  # and the engine goes on


INTERRUPTED = """
    import time, numpy as np
    from fusedmlp import Network
    m = 200_000
    X = np.random.default_rng(0).random((40, m), np.float32); Y = np.zeros((1, m), np.float32)
    net = Network([40, 2000, 400, 1], backend="numba-cpu", random_state=0)
    net.loss_and_gradients(X[:, :10], Y[:, :10])
    print("ready", flush=True)
    try:
        {call}
        print("finished")
    except KeyboardInterrupt:
        print("interrupted", time.time())
        print(float(net.loss(X[:, :10], Y[:, :10])) > 0)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(
    "call", ["net.fit(X, Y, epochs=1, batch_size=m)", "net.loss_and_gradients(X, Y)", "net.forward(X)"]
)
def test_ctrl_c(call):
    """In a pass of many seconds, made of one batch."""
    code = textwrap.dedent(INTERRUPTED.format(call=call))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.7)
        sent = time.time()
        process.send_signal(signal.SIGINT)
        word, _, when = process.stdout.readline().partition(" ")
        assert word == "interrupted"
        assert float(when) - sent < 2.0  # 0.1 s on a machine with nothing else to do; the pass takes 10 s
        assert process.stdout.readline() == "True\n"


def test_a_signal_at_the_start_of_a_callback_is_kept():
    """A signal handler's exception comes before the first line of the function."""
    stop = np.zeros(1, np.int64)
    callback = interruption.GuardedCallback(lambda: None, stop, 7)
    routine = ctypes.CFUNCTYPE(None)(callback.address)

    def handler(number, frame):
        raise EnoughError

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.raise_signal(signal.SIGUSR1)
        routine()
        assert callback.error is None
        with pytest.raises(EnoughError):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)
    callback._function = lambda: (_ for _ in ()).throw(EnoughError())
    routine()
    assert stop[0] == 7
    assert isinstance(callback.error, EnoughError)


def test_the_floating_point_mode_is_put_back():
    """Subnormal numbers are 0 in a pass, and nowhere else."""
    net = Network([3, 4, 1], backend="numba-cpu", random_state=0, dtype="float32")
    net.loss(np.ones((3, 5)), np.ones((1, 5)))
    tiny = np.float32(1e-40)
    assert tiny * np.float32(0.5) > 0
    assert tiny + np.float32(0) > 0


def test_subnormal_weights_are_not_slow():
    X = np.random.default_rng(0).normal(size=(50, 20_000)).astype(np.float32)
    seconds = []
    for scale in (1e-2, 1e-40):
        net = Network([50, 200, 1], "relu", backend="numba-cpu", random_state=0)
        net.parameters.flat[...] *= np.float32(scale)
        net.forward(X)
        start = time.perf_counter()
        for _ in range(5):
            net.engine.forward(net.parameters, X)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 4 * seconds[0]
