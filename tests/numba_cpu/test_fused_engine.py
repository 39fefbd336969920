"""numba-cpu's fused engine beyond the conformance suite: slots, workers, layouts, memory, accuracy."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

import oracle
from compare import assert_close
from fusedmlp import SGD, Adam, Network, get_backend
from fusedmlp.backends.numba_cpu import work_sizes
from fusedmlp.backends.numba_cpu.workers import threads
from fusedmlp.engines.options import EpochOptions
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Gradients
from problems import make_problem, targets

pytest.importorskip("numba")

LARGE = 7001  # many tiles, several slots, a last tile that is not full


def against_oracle(problem, alpha=0.0):
    """Loss and gradients of a problem against the oracle, per parameter array."""
    net, a = problem.net, problem.net.architecture
    J, dWs, dbs = oracle.loss_and_gradients(
        net.weights,
        [b[:, 0] for b in net.biases],
        problem.X.T,
        problem.Y.T,
        a.hidden_activation,
        a.loss,
        problem.sample_weight,
        alpha,
    )
    got, gradients = net.loss_and_gradients(problem.X, problem.Y, problem.sample_weight, alpha)
    assert got == pytest.approx(J, rel={"float32": 1e-5, "float64": 1e-12}[a.dtype])
    for layer, (dW, db) in enumerate(zip(dWs, dbs, strict=True)):
        assert_close(gradients.weights[layer], dW, f"dW{layer + 1}")
        assert_close(gradients.biases[layer], db[:, None], f"db{layer + 1}")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [[5, 40, 1], [20, 40, 1], [20, 30, 30, 3], [9, 1, 1], [30, 2], [3, 4, 5, 6, 7, 2]])
def test_many_tiles_and_slots(loss, dtype, sizes):
    if loss == "categorical_cross_entropy":
        sizes = [*sizes[:-1], max(2, sizes[-1])]
    problem = make_problem("tanh", loss, weighted=True, dtype=dtype, backend="numba-cpu", m=LARGE, sizes=sizes)
    assert problem.net.engine.kind == "fused"
    against_oracle(problem, alpha=0.4)


@pytest.mark.parametrize("n1", [2, 8, 9, 40])
@pytest.mark.parametrize("layout", ["C", "F", "slice", "gaps", "reversed", "memmap", "broadcast"])
def test_every_layout_of_X(n1, layout, tmp_path):
    problem = make_problem(backend="numba-cpu", m=1500, sizes=[n1, 16, 1])
    X = problem.X
    if layout in "CF":
        problem.X = np.asarray(X, order=layout)
    elif layout == "slice":
        problem.X = np.concatenate([X, X], axis=1)[:, 700 : 700 + 1500]
        problem.Y = np.concatenate([problem.Y, problem.Y], axis=1)[:, 700 : 700 + 1500]
    elif layout == "gaps":
        larger = np.full((2 * n1, 3 * 1500), np.nan)
        larger[::2, ::3] = X
        problem.X = larger[::2, ::3]
    elif layout == "reversed":
        problem.X = np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]
    elif layout == "memmap":
        np.save(tmp_path / "table.npy", X.T)
        problem.X = np.load(tmp_path / "table.npy", mmap_mode="r").T
    else:
        problem.X = np.broadcast_to(X[:, :1], X.shape)
    against_oracle(problem)
    _, expected = oracle.forward(
        problem.net.weights, [b[:, 0] for b in problem.net.biases], problem.X.T, "sigmoid", "binary_cross_entropy"
    )
    assert_close(problem.net.forward(problem.X), expected.T)


@pytest.mark.parametrize("batch_size", [1, 37, 1000, LARGE])
@pytest.mark.parametrize("optimizer", [SGD(0.01), SGD(0.01, 0.9), SGD(0.01, 0.9, True), Adam(0.01)])
def test_an_epoch_equals_the_composed_one(optimizer, batch_size):
    """Shuffled, a subset of the samples, with weights and L2; the moments and the step count too."""
    rng = np.random.default_rng(0)
    m = 300 if batch_size == 1 else LARGE
    problem = make_problem("tanh", weighted=True, backend="numba-cpu", m=m, sizes=[12, 20, 2])
    order = rng.permutation(m)[: m - 13]
    results = []
    for fused in (True, False):
        engine = problem.net.backend.engine(problem.net.architecture, fused=fused)
        net = Network.from_parameters(problem.net._numpy_parameters(), "numba-cpu")
        parameters = type(net.parameters)(net.architecture, net.parameters.flat)
        state = OptimizerState(optimizer, np, parameters)
        weight = problem.sample_weight[None]
        losses = [
            engine.train_epoch(
                parameters, state, problem.X, problem.Y, weight, order, batch_size, EpochOptions(alpha=0.2)
            )
            for _ in range(2)
        ]
        results.append((engine.kind, losses, parameters.flat, state))
    (kind, losses, flat, state), (other_kind, other_losses, other_flat, other_state) = results
    assert (kind, other_kind) == ("fused", "composed")
    np.testing.assert_allclose(losses, other_losses, rtol=1e-10)
    assert_close(flat, other_flat, tolerance=1e-9)
    assert state.t == other_state.t
    for name, moment in state.moments.items():
        if optimizer != SGD(0.01):
            assert_close(moment, other_state.moments[name], name, tolerance=1e-9)


@dataclass(frozen=True)
class SignDescent(Optimizer):
    """An optimizer of the user's own."""

    learning_rate: float = 0.01

    def update(self, xp, state, theta, gradient):
        theta -= state.learning_rate * xp.sign(gradient)


def test_an_optimizer_of_the_users_own():
    flats = []
    for backend in ("numba-cpu", "numpy"):
        problem = make_problem(backend=backend, m=100)
        problem.net.fit(problem.X, problem.Y, SignDescent(), epochs=2, batch_size=30, random_state=0)
        flats.append(problem.net.parameters.flat)
    assert_close(flats[0], flats[1])


def trained(seed, m=20000):
    """Weights after full-batch and mini-batch epochs that several workers share."""
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(m, 20)).astype(np.float32).T, rng.integers(0, 2, (1, m))
    net = Network([20, 64, 1], backend="numba-cpu", random_state=seed)
    net.fit(X, Y, epochs=2, batch_size=m // 4)
    net.fit(X, Y, epochs=1, batch_size=m)
    return np.concatenate([net.parameters.flat, net.forward(X)[0]])


def test_same_bits_for_any_number_of_workers(monkeypatch):
    expected = trained(0)
    for count in ("1", "2", "3", "5"):
        monkeypatch.setenv("FUSEDMLP_NUM_THREADS", count)
        threads.reset()
        assert np.array_equal(trained(0), expected), f"{count} workers"
    monkeypatch.undo()
    threads.reset()


def test_several_fits_at_once_neither_hang_nor_mix(monkeypatch):
    """More callers than workers: who finds the workers taken goes alone, and gets the same bits."""
    monkeypatch.setenv("FUSEDMLP_NUM_THREADS", "3")
    threads.reset()
    expected = [trained(seed, 8000) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(trained, seed, 8000) for seed in range(6)]
        for future, want in zip(futures, expected, strict=True):
            assert np.array_equal(future.result(timeout=600), want)
    monkeypatch.undo()
    threads.reset()


def test_memory_does_not_grow_with_m():
    """numpy's allocations in a step: a few megabytes, whether X has 20 thousand samples or 400 thousand."""
    net = Network([10, 256, 1], backend="numba-cpu", random_state=0)
    net.loss_and_gradients(np.zeros((10, 100), np.float32), np.zeros((1, 100), np.float32))
    peaks = []
    for m in (20_000, 400_000):
        X = np.random.default_rng(0).normal(size=(m, 10)).astype(np.float32).T
        Y = np.zeros((1, m), np.float32)
        gradients = Gradients(net.architecture, np.empty_like(net.parameters.flat))
        tracemalloc.start()
        net.engine.loss_and_gradients(net.parameters, X, Y, gradients)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 16 * 2**20
    assert peaks[1] < 2 * peaks[0] + 2**20


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n1", [1, 3, 50, 5000])  # 5000: BLAS multiplies, and reads X where it is
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_is_seen_wherever_it_is(bad, n1, dtype):
    """`forward_if_finite` sees it, in any place of the first and the last tile; others have `forward`'s outputs."""
    m = 1100
    net = Network([n1, 4, 2], "relu", "squared_error", dtype=dtype, backend="numba-cpu", random_state=0)
    X = np.random.default_rng(0).normal(size=(n1, m)).astype(dtype)
    X[0, 0] = np.finfo(dtype).max
    for given in (X, np.asfortranarray(X)):
        expected = net.engine.forward(net.parameters, given)
        np.testing.assert_array_equal(net.engine.forward_if_finite(net.parameters, given), expected)
        for row, sample in product({0, n1 // 2, n1 - 1}, (0, 1, 511, 600, m - 2, m - 1)):
            kept, given[row, sample] = given[row, sample], bad
            assert net.engine.forward_if_finite(net.parameters, given) is None
            with pytest.raises(ValueError, match=f"X: expected finite numbers; got .* at row {row}, .* {sample}$"):
                net.forward(given)
            given[row, sample] = kept
        np.testing.assert_array_equal(net.engine.forward_if_finite(net.parameters, given), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("loss", "bad_X", "bad_Y"),
    [
        ("binary_cross_entropy", (np.nan, np.inf), (np.nan, 0.5, -1, 2)),
        ("squared_error", (np.nan, -np.inf), (np.nan, np.inf)),
    ],
)
def test_samples_that_are_not_valid_are_seen_wherever_they_are(loss, bad_X, bad_Y, dtype):
    """`loss_and_gradients_if_valid` sees it; other samples have `loss_and_gradients`'s bits."""
    m = 3001  # several slots, each of several tiles
    net = Network([7, 9, 2], "tanh", loss, dtype=dtype, backend="numba-cpu", random_state=0)
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(7, m)).astype(dtype), rng.integers(0, 2, (2, m)).astype(dtype)
    flat = np.empty_like(net.parameters.flat)

    def J():
        return net.engine.loss_and_gradients_if_valid(net.parameters, X, Y, Gradients(net.architecture, flat), 0.1)

    expected = net.engine.loss_and_gradients(net.parameters, X, Y, Gradients(net.architecture, flat), alpha=0.1)
    gradient = flat.copy()
    for name, array, values in (("X", X, bad_X), ("Y", Y, bad_Y)):
        for bad, place in product(values, [(0, 0), (1, 1), (0, 512), (1, 1600), (0, m - 2), (1, m - 1)]):
            kept, array[place] = array[place], bad
            assert J() is None, (name, bad, place)
            with pytest.raises(ValueError, match=f"^{name}: "):
                net.loss_and_gradients(X, Y)
            array[place] = kept
    assert J() == expected
    assert np.array_equal(flat, gradient)


@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
def test_nan_in_the_parameters_is_not_hidden(activation):
    net = Network([3, 5, 1], activation, backend="numba-cpu", random_state=0)
    net.weights[0][1, 2] = np.nan
    X, Y = np.ones((3, 10), np.float32), np.ones((1, 10), np.float32)
    gradients = Gradients(net.architecture, np.zeros_like(net.parameters.flat))
    assert np.isnan(net.engine.loss(net.parameters, X, Y))
    assert np.isnan(net.engine.forward(net.parameters, X)).all()
    assert np.isnan(net.engine.loss_and_gradients(net.parameters, X, Y, gradients))
    assert np.isnan(gradients.flat).any()


def test_engines_of_different_threads_do_not_share_a_workspace():
    net = Network([3, 5, 1], backend="numba-cpu", random_state=0)
    engines = {id(net.engine)}
    kept = []
    thread = threading.Thread(target=lambda: kept.append(net.engine))
    thread.start()
    thread.join()
    assert id(kept[0]) not in engines


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_is_accurate_over_the_whole_range(dtype):
    """log(1 + exp(z)) through J of one sample each: a few units in the last place of the network's type."""
    z = np.concatenate([np.linspace(-40, 40, 801), [1e-3, -1e-3, 0.0]]).astype(dtype)
    net = Network([1, 1], bias=False, dtype=dtype.__name__, backend="numba-cpu")
    net.weights[0][...] = 1
    for label, exact in ((0, np.logaddexp(0, z.astype(float))), (1, np.logaddexp(0, -z.astype(float)))):
        got = np.array([net.loss(value[None, None], [[label]]) for value in z])
        assert (np.abs(got - exact) <= 4 * np.finfo(dtype).eps * exact).all()


def test_targets_in_any_layout():
    rng = np.random.default_rng(0)
    Y = targets("categorical_cross_entropy", 4, 500, rng)
    net = Network([6, 10, 4], loss="categorical_cross_entropy", dtype="float64", backend="numba-cpu", random_state=0)
    X = rng.normal(size=(6, 500))
    expected = net.loss(X, np.ascontiguousarray(Y))
    larger = np.zeros((8, 1000))
    larger[::2, ::2] = Y
    for same in (np.asfortranarray(Y), larger[::2, ::2], Y[::-1, :][::-1, :]):
        assert net.loss(X, same) == expected


def test_the_backend_is_asked_for_the_composed_engine_by_name():
    backend = get_backend("numba-cpu")
    architecture = Network([2, 1], backend=backend).architecture
    assert backend.engine(architecture).kind == "fused"
    assert backend.engine(architecture, fused=False).kind == "composed"


@pytest.mark.parametrize("sizes", [[9, 16, 1], [4200, 3, 1]])
@pytest.mark.parametrize("layout", ["samples", "rows", "gaps"])
@pytest.mark.parametrize(("dtype", "other"), [("float32", "float64"), ("float64", "float32")])
def test_X_of_the_other_dtype_is_converted_by_tile(dtype, other, layout, sizes):
    """The same numbers, and bits, as of a copy; in batches too."""
    problem = make_problem("tanh", backend="numba-cpu", dtype=dtype, m=700, sizes=sizes)
    net, X = problem.net, problem.X.astype(other)
    if layout == "rows":
        X = np.asfortranarray(X)
    elif layout == "gaps":
        larger = np.full((2 * X.shape[0], 3 * X.shape[1]), np.nan, other)
        larger[::2, ::3] = X
        X = larger[::2, ::3]
    copy = np.asfortranarray(X).astype(dtype)
    order = np.random.default_rng(0).permutation(700)[:650]
    results = []
    for given in (X, copy):
        gradients = Gradients(net.architecture, np.empty_like(net.parameters.flat))
        J = net.engine.loss_and_gradients(net.parameters, given, problem.Y, gradients)
        ordered = net.engine.loss(net.parameters, given, problem.Y, order=order)
        results.append([J, ordered, *gradients.flat, *net.engine.forward(net.parameters, given)[0]])
    np.testing.assert_allclose(*results, rtol=0 if sizes[0] == 9 else 1e-5, atol=1e-6 if sizes[0] > 9 else 0)


def test_the_loss_of_some_samples():
    problem = make_problem("tanh", backend="numba-cpu", m=900, weighted=True)
    order = np.random.default_rng(0).permutation(900)[:333]
    weight = problem.sample_weight[None]
    got = problem.net.engine.loss(problem.net.parameters, problem.X, problem.Y, weight, 0.3, order)
    expected = problem.net.loss(problem.X[:, order], problem.Y[:, order], problem.sample_weight[order], 0.3)
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_poisson_has_numpys_bound(dtype):
    """exp is held at the largest exponent, in the prediction and in the loss."""
    z = np.array([[60.0, 80, 87.9, 88.1, 88.5, 88.7, 89, 95, 500, 668, 700, 1e4]], dtype)
    results = []
    for backend in ("numba-cpu", "numpy"):
        net = Network([1, 1], loss="poisson", bias=False, dtype=dtype, backend=backend)
        net.weights[0][...] = 1
        results.append([net.forward(z)[0], [net.loss(z[:, [i]], [[2.0]]) for i in range(z.size)]])
    np.testing.assert_allclose(*[np.array(result, float) for result in results], rtol=2e-6)


def test_slots_follow_from_the_network_alone():
    mebibyte = 2**20
    for vector, slots in ((1000, 64), (mebibyte, 32), (8 * mebibyte, 8), (30 * mebibyte, 8), (50 * mebibyte, 4)):
        assert work_sizes.most_slots(vector) == slots
        assert work_sizes.most_slots(vector) * vector <= 256 * mebibyte
    assert work_sizes.most_slots(1000 * mebibyte) == 4
