"""numba-cpu's products over registers: every tail, and not a byte beyond what is theirs.

Operands are whole numbers whose sums are exact in any order, so results are compared bit by bit, with all that lies
around them. What must not be read is NaN, and so is what must be overwritten.
"""

from __future__ import annotations

import ctypes
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")

from fusedmlp.backends.numba_cpu.kernels import register_products
from fusedmlp.backends.numba_cpu.machine.simd import registers

DTYPES = ["float32", "float64"]
ROWS = [*range(1, 10), 16, 33]
UNITS = [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 100]
CANARY = -77.0
GAP = 3
"""Numbers between two rows, so that most registers lie across cache lines."""
LARGEST = {"float32": (1000, 50), "float64": (2**20, 2**20)}
"""The size of both operands: the sums of this file stay below 2^24 and 2^53."""


def lanes(dtype):
    return registers().bytes // np.dtype(dtype).itemsize


def whole_registers(t, dtype):
    return -(-t // lanes(dtype)) * lanes(dtype)


def call(address, *integers):
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(integers))(address)(*map(int, integers))


def inside(rows, columns, dtype, fill):
    """(an array of `fill`, the middle of it): a row before and after, and a gap between rows."""
    around = np.full((rows + 2, columns + GAP), fill, dtype)
    return around, around[1:-1, 1 : 1 + columns]


def whole_numbers(shape, dtype, operand, seed):
    largest = LARGEST[dtype][operand]
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(dtype)


def result(rows, columns, dtype, add):
    """(array with canaries, its middle): whole numbers to add to, or NaN to overwrite."""
    around, C = inside(rows, columns, dtype, CANARY)
    C[...] = whole_numbers(C.shape, dtype, 0, 2) if add else np.nan
    return around, C


def expect(around, C, total, add):
    """What `around` should be once `total`, in float64, is in C."""
    expected = around.copy()
    middle = expected[1:-1, 1 : 1 + C.shape[1]]
    middle[...] = total + (C if add else 0)
    return expected


# W(r, k) B[k, i] ------------------------------------------------------------------------------------------------------


def operands(rows, depth, columns, layout, dtype):
    """W (n_in, n_out) with its steps from row to row and column to column of the product's left side, B, W(r, k)."""
    transposed = layout == "forward"
    _, W = inside(*((depth, rows) if transposed else (rows, depth)), dtype, np.nan)
    W[...] = whole_numbers(W.shape, dtype, 0, 0)
    _, B = inside(depth, columns, dtype, np.nan)
    B[...] = whole_numbers(B.shape, dtype, 1, 1)
    return (W, *(W.strides[::-1] if transposed else W.strides)), B, W.T if transposed else W


def check_multiply(rows, depth, columns, layout, dtype, add):
    (W, w_row, w_column), B, left = operands(rows, depth, columns, layout, dtype)
    around, C = result(rows, columns, dtype, add)
    expected = expect(around, C, left.astype(np.float64) @ B.astype(np.float64), add)
    addresses = register_products.register_products(dtype)
    call(
        addresses.multiply, W.ctypes.data, w_row, w_column, rows, B.ctypes.data, B.strides[0], C.ctypes.data,
        C.strides[0], depth, columns * B.itemsize, add,
    )  # fmt: skip
    np.testing.assert_array_equal(around, expected, f"{rows} rows, {depth} deep, {columns} columns")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("layout", ["forward", "backward"])
@pytest.mark.parametrize("rows", ROWS)
def test_multiply(rows, layout, add, dtype):
    for depth, width in product([1, 3, 64, 65, 200], range(1, 10)):
        check_multiply(rows, depth, width * lanes(dtype), layout, dtype, add)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["forward", "backward"])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("depth", [127, 128, 129, 257, 500])
def test_multiply_in_pieces(depth, add, layout, dtype):
    """More depth, rows and samples than are worked on at a time."""
    for rows, width in [(3, 40), (130, 7), (257, 13), (300, 25)]:
        check_multiply(rows, depth, width * lanes(dtype), layout, dtype, add)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_multiply(dtype):
    """Without rows or samples nothing is written; without depth the sums are 0."""
    for rows, columns in ((0, 2 * lanes(dtype)), (5, 0)):
        check_multiply(rows, 3, columns, "forward", dtype, False)
    check_multiply(5, 0, 3 * lanes(dtype), "forward", dtype, False)
    check_multiply(5, 0, 3 * lanes(dtype), "forward", dtype, True)


# X[k, i] D[j, i] ------------------------------------------------------------------------------------------------------


def check_samples(n_in, n_out, t, dtype, add):
    columns = whole_registers(t, dtype)
    _, X = inside(n_in, columns, dtype, np.nan)
    X[...] = whole_numbers(X.shape, dtype, 1, 0)  # beyond t too: finite is enough
    _, D = inside(n_out, columns, dtype, np.nan)
    D[:, :t], D[:, t:] = whole_numbers((n_out, t), dtype, 1, 1), 0
    around, G = result(n_in, n_out, dtype, add)
    expected = expect(around, G, X[:, :t].astype(np.float64) @ D[:, :t].astype(np.float64).T, add)
    table = np.full(64 + 8, 7, np.int64)
    scratch = np.full(register_products.SCRATCH_BYTES + 4096, 7, np.uint8)
    addresses = register_products.register_products(dtype)
    call(
        addresses.samples, addresses.multiply, X.ctypes.data, X.strides[0], n_in, D.ctypes.data, D.strides[0], n_out,
        G.ctypes.data, G.strides[0], t, table.ctypes.data, scratch.ctypes.data, add,
    )  # fmt: skip
    case = f"{n_in} inputs, {n_out} units, {t} samples"
    np.testing.assert_array_equal(around, expected, case)
    assert (table[64:] == 7).all(), f"{case}: more than 64 addresses"
    assert (scratch[register_products.SCRATCH_BYTES :] == 7).all(), f"{case}: more than SCRATCH_BYTES"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("n_in", ROWS)
def test_multiply_samples(n_in, add, dtype):
    for width, n_out in product(range(1, 10), UNITS):
        for t in {width * lanes(dtype), (width - 1) * lanes(dtype) + 1}:
            check_samples(n_in, n_out, t, dtype, add)


def several_units(dtype):
    """Units of whole registers, up to more than a block has, and a rest."""
    return sorted({whole * lanes(dtype) + rest for whole in range(6) for rest in (0, 1, 7)} - {0})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [97, 106, 107, 160, 256, 319, 426, 512, 1500])
def test_pieces_of_many_samples_fit_the_scratch(t, dtype):
    """Enough inputs to transpose D, in one piece or several; and too few for that."""
    for n_in, n_out in product([7, 190], several_units(dtype)):
        check_samples(n_in, n_out, t, dtype, n_out % 2 == 0)


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 600), st.sampled_from(DTYPES), st.booleans())
def test_multiply_samples_of_any_shape(n_in, n_out, t, dtype, add):
    check_samples(n_in, n_out, t, dtype, add)


@given(st.integers(1, 150), st.integers(1, 300), st.integers(1, 60), st.sampled_from(DTYPES), st.booleans())
def test_multiply_of_any_shape(rows, depth, width, dtype, add):
    for layout in ("forward", "backward"):
        check_multiply(rows, depth, width * lanes(dtype), layout, dtype, add)


# Numbers that are not whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_stays_alone(bad, dtype):
    """In its column of W B; a divergence is not hidden, and spoils no other sample."""
    rows, depth, columns = 5, 3, 7 * lanes(dtype)
    (W, w_row, w_column), B, _ = operands(rows, depth, columns, "forward", dtype)
    W[W == 0] = 1
    B[1, 2] = bad
    _, C = inside(rows, columns, dtype, CANARY)
    multiply = register_products.register_products(dtype).multiply
    call(
        multiply, W.ctypes.data, w_row, w_column, rows, B.ctypes.data, B.strides[0],
        C.ctypes.data, C.strides[0], depth, columns * B.itemsize, False,
    )  # fmt: skip
    np.testing.assert_array_equal(np.isfinite(C), np.broadcast_to(np.arange(columns) != 2, C.shape))
