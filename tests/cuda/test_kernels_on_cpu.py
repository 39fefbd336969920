"""Every kernel, run on the CPU from the source that the GPU runs, against numpy in float64.

With NaN canaries around every array (``harness/fake_cupy.py``), in every layout.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import fake_cupy
from harness.emulator import compile_source

import fusedmlp
from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS
from oracle import ACTIVATIONS

f = {name: value for name, (value, _) in ACTIVATIONS.items()}
slope = {name: derivative for name, (_, derivative) in ACTIVATIONS.items()}
DTYPES = ("float32", "float64")
LAYOUTS = ("C", "F", "unaligned", "strided", "reversed")
# Full packs, tails of every length, lines shorter than a pack, one element; more lines than a grid covers at once.
SHAPES = [(1, 1), (1, 7), (7, 1), (3, 4), (5, 17), (8, 16), (2, 3), (33, 66), (67, 129), (1500, 4), (4, 4099)]


def arrange(x, layout):
    """x on the fake GPU, in a memory layout; "unaligned" starts one element behind a multiple of 16 bytes."""
    if layout == "strided":  # every second row and third column of a larger matrix of NaN
        larger = np.full((2 * x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)
        larger[::2, ::3] = x
        return fake_cupy.copied(larger)[::2, ::3]
    if layout == "reversed":
        return fake_cupy.copied(np.ascontiguousarray(x[::-1, ::-1]))[::-1, ::-1]
    shift = x.itemsize if layout == "unaligned" else 0
    return fake_cupy.copied(x, "F" if layout == "F" else "C", shift)


def blank(shape, dtype, layout):
    """Room for a result: NaN."""
    return arrange(np.full(shape, np.nan, dtype), layout)


def check(got, expected, dtype, n_terms=1, scale=None):
    """Within a few roundings of the float64 result, element by element; NaN and infinite where it is."""
    got = got.get()
    assert got.dtype == dtype
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    allowed = 4 * (n_terms + 1) * np.finfo(dtype).eps * np.abs(expected if scale is None else scale)
    error = np.abs(np.where(finite, got, 0) - np.where(finite, expected, 0))
    wrong = finite & ~(error <= allowed + np.finfo(dtype).tiny)
    assert not wrong.any(), f"{np.argwhere(wrong)[0]}: {got[wrong][0]}, expected {expected[wrong][0]}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", CUDA_ACTIVATIONS)
def test_activate(emulated, shuffled, activation, dtype):
    rng = np.random.default_rng(0)
    for number, (shape, layout) in enumerate(itertools.product(SHAPES, LAYOUTS)):
        with_bias = number % 2 == 0
        Z = (4 * rng.normal(size=shape)).astype(dtype)
        b = rng.normal(size=(shape[0], 1)).astype(dtype) if with_bias else None
        expected = f[activation]((Z if b is None else Z + b).astype(float))
        given, bias = arrange(Z, layout), None if b is None else arrange(b, "unaligned")
        check(emulated.activate(given, activation, bias), expected, dtype)
        out = blank(shape, dtype, layout)
        assert emulated.activate(given, activation, bias, out=out) is out
        check(out, expected, dtype)
        assert np.array_equal(given.get(), Z)
        assert emulated.activate(given, activation, bias, out=given) is given
        check(given, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", CUDA_ACTIVATIONS)
def test_fused_backward(emulated, shuffled, activation, dtype):
    """Every shape with every number of outputs; each of the two in every layout."""
    rng = np.random.default_rng(0)
    cases = itertools.product(SHAPES, (1, 2, 4, 5, 16, 17))
    for ((n_in, m), n_out), layout in zip(cases, itertools.cycle(LAYOUTS), strict=False):
        W, dZ = rng.normal(size=(n_in, n_out)).astype(dtype), rng.normal(size=(n_out, m)).astype(dtype)
        Z = rng.normal(size=(n_in, m))
        A, derivative = f[activation](Z).astype(dtype), slope[activation](Z)
        expected = W.astype(float) @ dZ.astype(float) * derivative
        scale = np.abs(W).astype(float) @ np.abs(dZ).astype(float)  # f' <= 1 may cancel, as the sum may
        arrays = [arrange(x, layout) for x in (W, dZ, A)]
        out = blank((n_in, m), dtype, layout)
        assert emulated.fused_backward(*arrays, activation, out=out) is out
        check(out, expected, dtype, n_out, scale)
        for x, original in zip(arrays, (W, dZ, A), strict=True):
            assert np.array_equal(x.get(), original)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_may_be_mixed(emulated, dtype):
    """Each array in a layout of its own: every combination for the rank-1 and the general way."""
    rng = np.random.default_rng(0)
    for n_out, activation in ((1, "sigmoid"), (3, "tanh"), (20, "relu")):
        W, dZ = rng.normal(size=(12, n_out)).astype(dtype), rng.normal(size=(n_out, 20)).astype(dtype)
        Z = rng.normal(size=(12, 20))
        A, derivative = f[activation](Z).astype(dtype), slope[activation](Z)
        expected = W.astype(float) @ dZ.astype(float) * derivative
        scale = np.abs(W).astype(float) @ np.abs(dZ).astype(float)
        for layouts in itertools.product(("C", "F", "strided"), repeat=4):
            arrays = [arrange(x, layout) for x, layout in zip((W, dZ, A), layouts[:3], strict=True)]
            check(
                emulated.fused_backward(*arrays, activation, out=blank((12, 20), dtype, layouts[3])),
                expected,
                dtype,
                n_out,
                scale,
            )
        for layouts in itertools.product(("C", "F", "strided"), repeat=2):
            Z = arrange(A, layouts[0])
            got = emulated.activate(
                Z, activation, arrange(W[:, :1], layouts[1]), out=blank((12, 20), dtype, layouts[1])
            )
            check(got, f[activation]((A + W[:, :1]).astype(float)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["C", "F", "unaligned"])
@pytest.mark.parametrize("activation", CUDA_ACTIVATIONS)
def test_extreme_values(emulated, activation, layout, dtype):
    Z = np.array([[1e4, -1e4, 1e38, -1e38, np.inf, -np.inf, np.nan, 0.0, -0.0, 88.0, -88.0, 1e-38]] * 4, dtype)
    with np.errstate(over="ignore"):
        expected = f[activation](Z.astype(float))
    check(emulated.activate(arrange(Z, layout), activation), expected, dtype)

    # NaN in any input comes out, and nothing else does.
    for spoiled, n_out in itertools.product(range(3), (1, 3, 20)):
        arrays = [np.full(shape, 0.5, dtype) for shape in ((4, n_out), (n_out, 12), (4, 12))]
        arrays[spoiled][-1, 2 % arrays[spoiled].shape[1]] = np.nan
        W, dZ, A = arrays
        expected = np.isnan(W @ dZ) | (np.isnan(A) & (activation != "identity"))
        got = emulated.fused_backward(*[arrange(x, layout) for x in arrays], activation).get()
        assert np.array_equal(np.isnan(got), expected)


def test_every_kernel_was_run(emulated, cupy):
    """The tests above go through all that these sources hold; this says which calls reach which kernels."""
    files = ("activations.cu", "fused_backward.cu")
    wanted = {name for file in files for name in compile_source(kernel_sources.source(file)).names}
    for activation, dtype, layout in itertools.product(CUDA_ACTIVATIONS, DTYPES, ("C", "unaligned")):
        for n_out in (1, 4, 16, 17):
            W, dZ, A = (np.ones(shape, dtype) for shape in ((8, n_out), (n_out, 8), (8, 8)))
            emulated.fused_backward(
                *[arrange(x, layout) for x in (W, dZ, A)], activation, out=blank((8, 8), dtype, layout)
            )
        emulated.activate(arrange(A, layout), activation, out=blank((8, 8), dtype, layout))
    assert set(cupy.launches) == wanted


@pytest.mark.parametrize(
    ("shape", "layout", "bias", "expected"),
    [
        ((8, 16), "C", True, "packed"),
        ((8, 16), "F", True, "packed"),
        ((8, 17), "C", True, "strided"),  # the second line starts at no multiple of 16 bytes
        ((8, 17), "F", True, "packed"),
        ((8, 17), "C", False, "packed"),  # walked as one line
        ((7, 17), "F", False, "packed"),
        ((8, 16), "unaligned", False, "strided"),
        ((8, 16), "strided", False, "strided"),
        ((8, 1), "C", True, "packed"),
        ((1, 8), "C", True, "packed"),
    ],
)
def test_wide_accesses_where_the_layout_allows_them(emulated, cupy, shape, layout, bias, expected):
    Z = arrange(np.ones(shape, np.float32), layout)
    b = arrange(np.ones((shape[0], 1), np.float32), "C") if bias else None
    emulated.activate(Z, "tanh", b, out=Z)
    assert cupy.launches == [f"activate_tanh_float32_{expected}"]


def test_indices_are_64_bits_wide(emulated, tmp_path):
    """Two rows that lie 2³¹ + 2¹⁰ elements apart, in a sparse file."""
    gap, m = 2**31 + 2**10, 6
    try:
        memory = np.memmap(tmp_path / "sparse", np.float32, "w+", shape=(gap + m,))
    except OSError as error:
        pytest.skip(f"no sparse file of {4 * (gap + m)} bytes here: {error}")
    rows = np.lib.stride_tricks.as_strided(memory, (2, m), (4 * gap, 4))
    far = fake_cupy.ndarray(rows, fake_cupy.Allocation(0))
    for x in (far, far.T):
        Z = np.linspace(-3, 3, 2 * m, dtype=np.float32).reshape(x.shape)
        x[...] = fake_cupy.copied(Z)
        check(emulated.activate(x, "sigmoid", out=x), f["sigmoid"](Z.astype(float)), "float32")
        A = x.get().astype(float)
        W, dZ = np.ones((x.shape[0], 1), np.float32), np.ones((1, x.shape[1]), np.float32)
        got = emulated.fused_backward(fake_cupy.copied(W), fake_cupy.copied(dZ), x)
        check(got, A * (1 - A), "float32")


def test_nothing_is_read_out_of_bounds(compiler):
    """Arrays that end, and start, at a page that may not be touched; in a process of its own, which would die of it."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(Path(fusedmlp.__file__).parents[1])}
    command = [sys.executable, str(here / "harness" / "guard_pages.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -signal.SIGSEGV, f"the deliberate stray read at the end was not noticed: {done.stderr}"
    assert "all within bounds" in done.stdout, f"a kernel read out of bounds\n{done.stdout}{done.stderr}"


QUICK = """
extern "C" __global__ void quick_activations(const float* z, float* sigmoid, float* tanh, Index n) {
    for (Index i = first_element<1>(); i < n; i += next_elements<1>()) {
        sigmoid[i] = quick_activation<SIGMOID>(z[i]);
        tanh[i] = quick_activation<TANH>(z[i]);
    }
}
"""


def test_quick_activations(compiler):
    """Those of kernels that multiply in TF32: far closer than its 2^-11, at the ends of the range too."""
    common = kernel_sources.source("common.cuh")
    kernel = fake_cupy.RawKernel(compile_source(common + QUICK).get_function("quick_activations"), [])
    z = np.concatenate(
        [np.linspace(-20, 20, 4001), [-1e30, -200, -88, -1e-30, 0, 88, 200, 1e30, -np.inf, np.inf, np.nan]]
    )
    z = z.astype(np.float32)
    results = {name: fake_cupy.allocate(z.shape, np.float32) for name in ("sigmoid", "tanh")}
    kernel((2,), (256,), (fake_cupy.copied(z), *results.values(), np.int64(z.size)))
    for name, got in results.items():
        with np.errstate(over="ignore"):
            expected = f[name](z.astype(float))
        np.testing.assert_allclose(got.get(), expected, rtol=0, atol=2.0**-21)
    positive = results["sigmoid"].get()[:4001]
    np.testing.assert_allclose(positive, f["sigmoid"](z[:4001].astype(float)), rtol=22 * 2.0**-24)


@pytest.mark.parametrize("device", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_sigmoid(request, device):
    """Within 5 units in the last place wherever it is a normal number, and never above 1."""
    backend = request.getfixturevalue(device)

    def sigmoid(z):
        return backend.to_numpy(backend.activate(backend.asarray(z[None]), "sigmoid"))[0]

    z = np.concatenate([np.linspace(-87.3, 30, 200_000), [88.8, 1e30, np.inf]]).astype(np.float32)
    A, exact = sigmoid(z), f["sigmoid"](z.astype(float))
    assert (np.abs(A - exact) <= 5 * np.spacing(exact.astype(np.float32)).astype(float)).all()
    assert A.max() == 1
    beyond = sigmoid(np.float32([-87.5, -88.5, -89.5, -1e30, -np.inf, np.nan]))
    assert np.all(beyond[:-1] < np.finfo(np.float32).tiny)
    assert np.isnan(beyond[-1])
