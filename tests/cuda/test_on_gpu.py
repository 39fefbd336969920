"""What only a real GPU can show: the compiled kernels, streams, memory and sizes. The conformance suite runs there too.

Skipped, visibly, where there is none; ``FUSEDMLP_REQUIRE_BACKENDS=cupy`` turns that into a failure.
"""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import test_captured_steps
import test_crowd
import test_lower_layers
import test_memory
import test_narrow_step
import test_resident
from harness.loaded import check_loaded
from test_kernels_on_cpu import check, f, slope

from fusedmlp import Network
from fusedmlp.backends.cupy import kernel_sources, resident_costs
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS
from fusedmlp.backends.cupy.resident import ResidentEpochs
from fusedmlp.backends.cupy.streaming import StreamedFeeder

pytestmark = pytest.mark.gpu

DTYPES = ("float32", "float64")


def arrange(cupy, x, layout):
    """x on the GPU; "unaligned" starts one element behind a multiple of 16 bytes, "strided" has gaps."""
    if layout == "unaligned":
        flat = cupy.empty(x.size + 1, x.dtype)
        view = flat[1:].reshape(x.shape)
    elif layout == "strided":
        view = cupy.full((2 * x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)[::2, ::3]
    else:
        view = cupy.empty(x.shape, x.dtype, order=layout)
    view[...] = cupy.asarray(x)
    return view


@pytest.mark.parametrize("layout", ["C", "F", "unaligned", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", CUDA_ACTIVATIONS)
def test_primitives(gpu, activation, dtype, layout):
    rng, cupy = np.random.default_rng(0), gpu.xp
    for n, m, n_out in itertools.product((1, 5, 64, 1000), (1, 7, 512, 3001), (1, 3, 16, 40)):
        W, dZ, Z = (rng.normal(size=shape).astype(dtype) for shape in ((n, n_out), (n_out, m), (n, m)))
        b = rng.normal(size=(n, 1)).astype(dtype)
        given = arrange(cupy, Z, layout)
        for bias in (None, b):
            expected = f[activation]((Z if bias is None else Z + bias).astype(float))
            out = arrange(cupy, np.full((n, m), np.nan, dtype), layout)
            check(
                gpu.activate(given, activation, None if bias is None else cupy.asarray(bias), out=out), expected, dtype
            )
        gpu.activate(given, activation, out=given)
        A = given.get()
        arrays = [arrange(cupy, x, layout) for x in (W, dZ, A)]
        out = arrange(cupy, np.full((n, m), np.nan, dtype), layout)
        expected = W.astype(float) @ dZ.astype(float) * slope[activation](Z)
        scale = np.abs(W).astype(float) @ np.abs(dZ).astype(float)
        check(gpu.fused_backward(*arrays, activation, out=out), expected, dtype, n_out, scale)
        expected = W.T.astype(float) @ A.astype(float)
        scale = np.abs(W.T).astype(float) @ np.abs(A).astype(float)
        out = arrange(cupy, np.full((n_out, m), np.nan, dtype), layout)
        check(gpu.matmul(arrays[0].T, arrays[2], out=out), expected, dtype, n, scale)


def with_gaps(cupy, x, layout):
    """x on the GPU with gaps between its lines, which BLAS reads and writes in place."""
    n, m = x.shape
    if layout == "rows":
        view = cupy.full((n, m + 5), np.nan, x.dtype)[:, 2 : m + 2]
    elif layout == "columns":
        view = cupy.full((n + 5, m), np.nan, x.dtype, order="F")[2 : n + 2]
    else:
        return arrange(cupy, x, layout)
    view[...] = cupy.asarray(x)
    return view


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_every_layout(gpu, dtype):
    rng, cupy = np.random.default_rng(0), gpu.xp
    layouts = ("C", "F", "rows", "columns", "strided", "unaligned")
    for n, k, m in ((1, 1, 1), (1, 64, 7), (64, 1, 7), (64, 7, 1), (5, 33, 129), (300, 1000, 70)):
        a, b = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(k, m)).astype(dtype)
        expected, scale = a.astype(float) @ b.astype(float), np.abs(a).astype(float) @ np.abs(b).astype(float)
        for of_a, of_b, of_out in itertools.product(layouts, repeat=3):
            out = with_gaps(cupy, np.full((n, m), np.nan, dtype), of_out)
            given = with_gaps(cupy, a, of_a), with_gaps(cupy, b, of_b)
            assert gpu.matmul(*given, out=out) is out
            check(out, expected, dtype, k, scale)
            if of_out == "rows":
                assert bool(cupy.isnan(out.base[:, :2]).all()), "it wrote into the gaps"
            if {of_a, of_b, of_out} <= {"C", "rows", "columns"}:
                again = with_gaps(cupy, np.full((n, m), np.nan, dtype), of_out)
                assert bool((gpu.matmul(*given, out=again) == out).all()), "other bits"


def test_tf32_products(gpu):
    if int(gpu.xp.cuda.Device().compute_capability) < 80:
        pytest.skip("no TF32 before compute capability 8.0")
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(512, 512)).astype(np.float32) for _ in range(2))
    exact, scale = a.astype(float) @ b.astype(float), np.abs(a).astype(float) @ np.abs(b).astype(float)
    strict, fast = (
        gpu.to_numpy(gpu.at_precision(precision).matmul(gpu.asarray(a), gpu.asarray(b)))
        for precision in ("strict", "tf32")
    )
    check(gpu.asarray(strict), exact, "float32", 512, scale)
    error = np.abs(fast - exact) / scale
    assert error.max() <= 2.0**-10
    assert error.max() > 16 * (np.abs(strict - exact) / scale).max(), "strict, not TF32"


@pytest.mark.slow
@pytest.mark.alone
def test_more_than_two_to_the_31_elements(gpu):
    """The far end of an array whose indices do not fit 32 bits."""
    cupy, size = gpu.xp, 2**31 + 4099
    if cupy.cuda.runtime.memGetInfo()[0] < 3 * 4 * size:
        pytest.skip("too little free memory on the GPU")
    tail = np.linspace(-4, 4, 5000, dtype=np.float32)
    Z = cupy.zeros((1, size), np.float32)
    Z[0, -5000:] = cupy.asarray(tail)
    A = gpu.sigmoid(Z, out=Z)
    assert float(A[0, 0]) == float(A[0, size - 5001]) == 0.5
    check(A[:, -5000:], f["sigmoid"](tail.astype(float))[None], "float32")
    dZ = cupy.broadcast_to(cupy.ones((1, 1), np.float32), (1, size))
    back = gpu.fused_backward(cupy.full((1, 1), 2, np.float32), dZ, A)
    a = A[0, -5000:].get().astype(float)
    check(back[:, -5000:], (2 * a * (1 - a))[None], "float32")


def test_work_goes_to_the_current_stream(gpu):
    cupy = gpu.xp
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        Z = cupy.full((512, 4096), 2.0, np.float32)
        gpu.fused_backward(
            cupy.ones((512, 1), np.float32), cupy.ones((1, 4096), np.float32), gpu.sigmoid(Z, out=Z), out=Z.copy()
        )
        gpu.synchronize()
        assert stream.done
    np.testing.assert_allclose(Z.get(), 1 / (1 + np.exp(-2.0)), rtol=1e-6)


def test_threads(gpu):
    """Several Python threads compile, launch and train at once, each on a stream of its own."""
    X, Y = np.random.default_rng(0).normal(size=(5, 200)), np.arange(200) % 2
    results, errors = {}, []

    def fit(seed):
        try:
            with gpu.xp.cuda.Stream(non_blocking=True):
                net = Network([5, 16, 1], backend=gpu, dtype="float64", random_state=seed)
                net.fit(X, Y, epochs=3)
                results[seed] = gpu.to_numpy(net.parameters.flat)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for seed, flat in results.items():
        net = Network([5, 16, 1], backend="numpy", dtype="float64", random_state=seed)
        net.fit(X, Y, epochs=3)
        np.testing.assert_allclose(flat, net.parameters.flat, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", [(300, 64, 3), (40, 30, 20)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_samples_from_main_memory(gpu, monkeypatch, order, sizes):
    """As those that lie on the GPU, while copies and passes really run at once: many chunks, shuffled, weighted."""
    rng, m = np.random.default_rng(0), 200_003
    X = np.asarray(rng.normal(size=(sizes[0], m)), order=order)
    Y, weight = rng.integers(0, 2, size=(sizes[-1], m)), rng.uniform(size=m)
    monkeypatch.setattr(StreamedFeeder, "staging_bytes", 2**20)

    def results(resident):
        monkeypatch.setattr(gpu, "resident_bytes", 2**34 if resident else 0)
        net = Network(sizes, "tanh", backend=gpu, dtype="float64", random_state=0)
        net.engine._chunk = 10_000
        history = net.fit(X, Y, epochs=2, batch_size=1000, sample_weight=weight, validation_fraction=0.1)
        J, gradients = net.loss_and_gradients(X, Y, weight)
        assert (net.engine._feeder is None) is resident
        return [
            history.loss,
            history.validation_loss,
            gpu.to_numpy(net.parameters.flat),
            net.forward(X),
            J,
            gradients.flat,
        ]

    for got, expected in zip(results(False), results(True), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.alone
def test_a_chunk_that_does_not_fit_is_halved(gpu, monkeypatch, caplog):
    """Z1 of all samples takes 410 MB."""
    test_memory.check_that_a_chunk_is_halved(gpu, monkeypatch, caplog, (16, 256, 5), 400_000)


def test_a_kernel_that_does_not_compile_is_an_error(gpu, monkeypatch):
    from fusedmlp.backends.cupy.launch import Launcher

    monkeypatch.setattr(kernel_sources, "source", lambda name: 'extern "C" __global__ void f() { nonsense }')
    with pytest.raises(gpu.xp.cuda.compiler.CompileException, match="nonsense"):
        Launcher(gpu.xp).kernel("activations.cu", "activate_tanh_float32_packed")


@pytest.mark.parametrize("variant", test_narrow_step.VARIANTS, ids=test_narrow_step.name)
def test_narrow_steps(gpu, variant):
    """Each as the tests on the CPU have it, and with more samples than all blocks take at once."""
    if variant.arithmetic.startswith("tf32") and not gpu.launcher.card().has_tf32:
        pytest.skip("the GPU has no TF32")
    if variant.clustered and not gpu.launcher.has_clusters():
        pytest.skip("the GPU has no clusters of blocks")
    if variant.shared_bytes > gpu.launcher.shared_bytes():
        pytest.skip(f"{variant.shared_bytes} bytes of shared memory are more than the GPU has for a block")
    U, inputs, N = variant.units, 8 * variant.R, variant.N
    for n_in, n, m, n_out, order in (
        (inputs, U, 40, N, "C"),
        (inputs - 3, U - 5, 33, 1, "F"),
        (inputs // 2 + 1, 2 * U + 1, 20_011, max(1, N - 1), "C"),
        (inputs, U, 20_011, N, "F"),
        (inputs, 1024, 20_011, N, "F"),
        (1, 1, 1, 1, "C"),
    ):
        case = test_narrow_step.Case(gpu, variant, n_in, n, m, n_out, weighted=m % 2 == 1, order=order)
        case.check(max(test_narrow_step.tolerance(variant, inputs), 1e-5 if variant.dtype == "float32" else 1e-11))
        J, flat = case.loss_and_gradients()
        again_J, again = case.loss_and_gradients()
        assert again_J == J
        assert np.array_equal(flat, again)


@pytest.mark.parametrize("precision", ["strict", "high", "medium"])
@pytest.mark.parametrize("sizes", [*test_lower_layers.SIZES, (784, 512, 512, 10), (28, 300, 300, 1)])
def test_deep_networks(gpu, monkeypatch, sizes, precision):
    """By epilogues, which must have been used where all addresses are multiples of 16 bytes, and without them."""
    X, Y = test_lower_layers.problem(sizes, "float32", "F")
    tolerance = 2e-2 if precision == "medium" else 5e-5
    for activation in ("relu", "sigmoid"):
        net = test_lower_layers.network(gpu, sizes, activation, precision=precision)
        test_lower_layers.check(net, X, Y, tolerance)
        ways = set(net.engine.lower.routes.values())
        if activation == "sigmoid":
            assert "epilogue" not in ways
        elif sizes[1] in (300, 512):
            assert ways == {"epilogue"}, net.engine.lower.routes
    monkeypatch.setattr(type(gpu.epilogues), "multiply", lambda *_, **__: False)
    net = test_lower_layers.network(gpu, sizes, precision=precision)
    test_lower_layers.check(net, X, Y, tolerance)
    assert "epilogue" not in net.engine.lower.routes.values()


@pytest.mark.parametrize("sizes", [*test_captured_steps.SIZES, (64, 300, 1), (100, 60, 1)])
@pytest.mark.parametrize("name", test_captured_steps.TRAININGS)
@pytest.mark.usefixtures("never_resident")
def test_captured_trainings(gpu, name, sizes):
    """CUDA graphs give numpy's trainings, and the same bits twice."""
    arguments = test_captured_steps.TRAININGS[name]
    flat, losses, engine, _ = test_captured_steps.trained(gpu, sizes, **arguments)
    expected, expected_losses, *_ = test_captured_steps.trained("numpy", sizes, **arguments)
    np.testing.assert_allclose(flat, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    assert engine.kind == "fused"
    assert np.array_equal(test_captured_steps.trained(gpu, sizes, **arguments)[0], flat)


@pytest.mark.parametrize("precision", ["strict", "high", "medium"])
@pytest.mark.parametrize("sizes", [*test_resident.SIZES, (100, 150, 3), (64, 900, 1), (20, 300, 10)], ids=str)
def test_resident_trainings(gpu, monkeypatch, sizes, precision):
    """A training in shared memory, of one block or a cluster, is numpy's, and has the same bits twice."""
    monkeypatch.setattr(resident_costs, "CAPTURED_STEP_SECONDS", np.inf)
    for name, arguments in test_resident.TRAININGS.items():
        made = arguments | {"dtype": "float32", "precision": precision}
        flat, losses, epochs = test_resident.trained(gpu, sizes, 85, **made)
        assert isinstance(epochs, ResidentEpochs), name
        expected, expected_losses, _ = test_resident.trained("numpy", sizes, 85, **arguments)
        tolerance = 2e-2 if precision == "medium" else 2e-4
        np.testing.assert_allclose(flat, expected, rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(losses, expected_losses, rtol=tolerance, err_msg=name)
        assert np.array_equal(test_resident.trained(gpu, sizes, 85, **made)[0], flat), name


def test_compiled_kernels_neither_spill_nor_crowd(gpu):
    """What the driver says of these kernels; the fixture asks it about all others at the end."""
    for sizes, dtype in itertools.product([(16, 256, 1), (64, 1024, 1), (200, 30, 10), (5, 8, 20)], DTYPES):
        rng = np.random.default_rng(0)
        X, Y = rng.normal(size=(sizes[0], 50)), rng.integers(0, 2, (sizes[-1], 50))
        Network(sizes, backend=gpu, dtype=dtype, random_state=0).loss_and_gradients(X, Y)
    check_loaded(gpu.launcher)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_resident_trainings(gpu, monkeypatch, dtype):
    """Blocks and clusters, in streams beside each other: the bits of each alone; in float64 also numpy's training."""
    monkeypatch.setattr(resident_costs, "CAPTURED_STEP_SECONDS", np.inf)
    exact = dtype == "float64"
    test_crowd.check(gpu, [{"dtype": dtype}] * 5, test_crowd.FIVE_RULES, reference=exact)
    shapes = [*test_crowd.SHAPES, {"layers": (6, 4000, 1), "loss": "squared_error"}]
    options = {"batch_size": 20, "validation_fraction": 0.3, "early_stopping": True, "patience": 2, "epochs": 60}
    made, each = ([one | {"dtype": dtype} for one in shapes], [options] * len(shapes))
    test_crowd.check(gpu, made, each, reference=False)
    nets = test_crowd.check(gpu, [{"dtype": dtype}] * 300, [{"epochs": 70}] * 300, reference=False)
    assert all(seconds > 0 for net in nets for seconds in net.history.seconds)
