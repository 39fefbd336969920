"""The products of a warp's tile (``kernels/tile_products.cuh``) alone, against float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from harness import fake_cupy
from harness.emulator import compile_source

from fusedmlp.backends.cupy import kernel_sources

# One warp: C (8 ROWS, 4 COLUMNS) = A B by each of the three functions.
KERNEL = """
extern "C" __global__ void product_%(KIND)s_%(ROWS)d_%(COLUMNS)d(const float* A, const float* At, const float* B,
                                                                  const float* Bt, float* C, int depth) {
    constexpr int ROWS = %(ROWS)d, COLUMNS = %(COLUMNS)d, N = 8 * ROWS, M = 4 * COLUMNS;
    using Tile = Product<float, ROWS, COLUMNS, %(KIND)s>;
    const int g = threadIdx.x / 4, q = threadIdx.x %% 4;
    float by_rows[ROWS][COLUMNS] = {}, by_columns[ROWS][COLUMNS] = {}, by_transpose[ROWS][COLUMNS] = {};
    Tile::template by_rows<true>(by_rows, A, depth, B, M, depth);
    Tile::template by_columns<true>(by_columns, At, N, B, M, depth);
    Tile::template by_transpose<true>(by_transpose, A, depth, Bt, depth, depth);
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < COLUMNS; ++j) {
            C[(g + 8 * i) * M + q * COLUMNS + j] = by_rows[i][j];
            C[(N + row<ROWS>(g, i)) * M + q * COLUMNS + j] = by_columns[i][j];
            C[(2 * N + g + 8 * i) * M + Tile::transposed_column(q, j)] = by_transpose[i][j];
        }
}
"""
KINDS = ("STRICT", "TF32X3", "TF32")
SHAPES = [(4, 8), (4, 4), (2, 4), (16, 4), (8, 8)]  # ROWS, COLUMNS: those of the narrow and resident kernels
SOURCE = "".join(map(kernel_sources.source, ("common.cuh", "tile_products.cuh")))
MISTAKES = {
    "summed on tensor cores": (
        "float e0 = 0, e1 = 0, e2 = 0, e3 = 0;",
        "float &e0 = d0, &e1 = d1, &e2 = d2, &e3 = d3;",
    ),
    "without low parts of A": ("multiply_tf32(e0, e1, e2, e3, a.low, b.high);", ""),
    "without low parts of B": ("multiply_tf32(e0, e1, e2, e3, a.high, b.low);", ""),
    "high parts alone": ("low[i] = cut_to_tf32(__float_as_uint(x - high[i]));", "low[i] = 0;"),
}


def product(kind, shape, A, B, mistake=None):
    """[A B by rows, by columns, by the transpose of B], in float32."""
    ROWS, COLUMNS = shape
    source = SOURCE
    if mistake == "summed on tensor cores":
        source = source.replace("d0 += e0, d1 += e1, d2 += e2, d3 += e3;", "")
    if mistake is not None:
        assert MISTAKES[mistake][0] in source
        source = source.replace(*MISTAKES[mistake])
    kernels = itertools.product(KINDS, SHAPES) if mistake is None else [(kind, shape)]
    for one, (rows, columns) in kernels:
        source += KERNEL % {"KIND": one, "ROWS": rows, "COLUMNS": columns}
    kernel = fake_cupy.RawKernel(compile_source(source).get_function(f"product_{kind}_{ROWS}_{COLUMNS}"), [])
    C = fake_cupy.allocate((3, len(A), B.shape[1]), np.float32)
    arrays = [fake_cupy.copied(np.ascontiguousarray(x)) for x in (A, A.T, B, B.T)]
    kernel((1,), (32,), (*arrays, C, np.int32(A.shape[1])))
    return C.get()


def normal(shape, depth, seed=0):
    rng = np.random.default_rng([seed, depth])
    ROWS, COLUMNS = shape
    return [rng.normal(size=size).astype(np.float32) for size in ((8 * ROWS, depth), (depth, 4 * COLUMNS))]


def errors(kind, shape, A, B, mistake=None):
    """Of each function, relative to the product in float64, in the Frobenius norm."""
    exact = A.astype(float) @ B.astype(float)
    return [np.linalg.norm(C - exact) / np.linalg.norm(exact) for C in product(kind, shape, A, B, mistake)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_high_is_within_its_bound_for_every_shape(compiler, shape):
    for depth in (8, 32, 128):
        assert max(errors("TF32X3", shape, *normal(shape, depth))) < 5e-7
        assert 5e-5 < min(errors("TF32", shape, *normal(shape, depth))) < 5e-4


@pytest.mark.parametrize("depth", [1024, 8192])
def test_every_precision_is_within_its_bound_for_long_sums(compiler, thread_order, depth):
    for bound, kind in zip((2e-6, 2e-6, 5e-4), KINDS, strict=True):
        assert max(errors(kind, (4, 4), *normal((4, 4), depth))) <= bound, kind


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_leave_the_bound(compiler, mistake):
    assert max(errors("TF32X3", (4, 4), *normal((4, 4), 8192), mistake)) > 2e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e15])
def test_high_does_not_depend_on_the_size_of_numbers(compiler, scale):
    A, B = normal((4, 4), 64)
    assert max(errors("TF32X3", (4, 4), A * np.float32(scale), B)) < 5e-7
    ones = np.full((32, 16), np.float32(1 + 2.0**-23)), np.full((16, 16), np.float32(1 - 2.0**-24))
    assert max(errors("TF32X3", (4, 4), *ones)) < 5e-7


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, np.uint32(0x7FFFFFFF).view(np.float32)])
def test_no_infinity_or_nan_is_lost(compiler, bad):
    A, B = normal((4, 4), 16)
    A[3, 5] = bad
    for C in product("TF32X3", (4, 4), A, B):
        assert not np.isfinite(C[3]).any()
        assert np.isfinite(np.delete(C, 3, axis=0)).all()
