"""The element-wise sweeps of numba-cpu's fused engine: results, masks, and machine code on whole registers."""

from __future__ import annotations

import ctypes
import platform
import re

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import types
from numba.core.ccallback import CFunc
from test_vector_mathematics import DTYPES, values

from fusedmlp.backends.numba_cpu.kernels import register_products, sweeps
from fusedmlp.backends.numba_cpu.kernels.activation_formulas import TAGS, stores_slope
from fusedmlp.backends.numba_cpu.machine.compilation import OPTIONS
from fusedmlp.backends.numba_cpu.machine.simd import registers

# Sweeps ---------------------------------------------------------------------------------------------------------------

ROWS, WIDTH = 5, 3  # rows, and registers of each
NAMES = sorted(TAGS)


def compile_anew(function, arguments):
    """As `routine_address` does, but for its cache: code from there has no assembly to look at."""
    callback = CFunc(function, ((types.int64,) * arguments, types.void), locals={}, options=OPTIONS)
    callback.compile()
    return callback


def sweep(direction, name, dtype, *arguments):
    """Call a sweep with addresses of arrays, 0 for None."""
    integers = [0 if x is None else x.ctypes.data if isinstance(x, np.ndarray) else int(x) for x in arguments]
    address = getattr(sweeps.sweeps(name, dtype, dropout=False), direction)
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(integers))(address)(*integers)


def row_of_samples(dtype, rows=ROWS, seed=0):
    """Random rows with a gap after each."""
    rng, width = np.random.default_rng(seed), WIDTH * registers().bytes // np.dtype(dtype).itemsize
    return rng.normal(size=(rows, width + 3)).astype(dtype), width


def row_numbers(dtype, seed):
    return np.random.default_rng(seed).normal(size=ROWS).astype(dtype)


def bounded(actual, expected, dtype):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("name", TAGS)
def test_forward_sweep(name, summed, biased, dtype):
    A, width = row_of_samples(dtype)
    b, w = (row_numbers(dtype, 1) if biased else None), (row_numbers(dtype, 2) if summed else None)
    z = row_of_samples(dtype, 1, seed=3)[0] if summed else None
    expected = A.copy()
    shifted = A[:, :width] + (b[:, None] if biased else 0)
    expected[:, :width] = values(name, shifted.ravel(), "numbers").reshape(shifted.shape)
    if summed:
        z_expected = z.astype(np.float64)
        z_expected[0, :width] += w.astype(np.float64) @ expected[:, :width].astype(np.float64)
    S = np.full_like(A, 7)
    sweep("forward", name, dtype, A, S, A.strides[0], ROWS, width * A.itemsize, b, w, z, 0, 0, 0)
    np.testing.assert_array_equal(A, expected)
    S_expected = np.full_like(A, 7)
    if stores_slope(TAGS[name]):
        S_expected[:, :width] = values(f"{name}'", shifted.ravel(), "numbers").reshape(shifted.shape)
    np.testing.assert_array_equal(S, S_expected)
    if summed:
        bounded(z, z_expected, dtype)
        assert (z[0, width:] == z_expected[0, width:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("one_output", [True, False])
@pytest.mark.parametrize("name", TAGS)
def test_backward_sweep(name, one_output, biased, dtype):
    A, width = row_of_samples(dtype)
    D, w, dz = row_of_samples(dtype, seed=1)[0], row_numbers(dtype, 2), row_of_samples(dtype, 1, seed=3)[0]
    dW, db = row_numbers(dtype, 4), row_numbers(dtype, 5) if biased else None
    activations, errors = A[:, :width].astype(np.float64), D[:, :width].astype(np.float64)
    if one_output:
        errors = w[:, None].astype(np.float64) * dz[:, :width]
    S = row_of_samples(dtype, seed=6)[0]
    slopes = values(f"{name}'", A[:, :width].ravel(), "numbers").reshape(ROWS, width)
    if stores_slope(TAGS[name]):
        slopes = S[:, :width]
    expected = A.astype(np.float64)
    expected[:, :width] = errors * slopes
    dW_expected = dW + (activations @ dz[0, :width].astype(np.float64) if one_output else 0)
    db_expected = db + expected[:, :width].sum(axis=1) if biased else None
    given = (S, None, A.strides[0], ROWS, width * A.itemsize, w, dz, dW) if one_output else (
        S, D, A.strides[0], ROWS, width * A.itemsize, None, None, None
    )  # fmt: skip
    sweep("backward", name, dtype, A, *given, db)
    bounded(A, expected, dtype)
    assert (A[:, width:] == expected[:, width:]).all()
    bounded(dW, dW_expected, dtype)
    if biased:
        bounded(db, db_expected, dtype)


# Machine code ---------------------------------------------------------------------------------------------------------

needs_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="looks for x86 vector instructions"
)
SUFFIXES = {"float32": "ps", "float64": "pd"}
WITH_DIVISION = ("sigmoid", "gelu")


def instructions(assembly, pattern):
    """Lines of packed instructions on whole registers."""
    register = {64: "zmm", 32: "ymm", 16: "xmm"}[registers().bytes]
    return re.findall(rf"\tv?{pattern}\t.*%{register}.*", assembly)


def multiplies_and_adds_at_once(dtype):
    """A pattern of multiply-adds; of multiplications where this CPU has none."""
    return (r"fn?m(?:add|sub)\d*" if registers().fused else "mul") + SUFFIXES[dtype]


@needs_x86
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "relu", "elu", "gelu"])
def test_sweeps_work_on_whole_registers(name, dtype):
    tag, like = TAGS[name], np.dtype(dtype).type(0)
    makers = sweeps.forward_sweep(tag, like), sweeps.backward_sweep(tag, like)
    if stores_slope(tag):
        makers = sweeps.forward_sweep_with_slopes(tag, like), sweeps.backward_sweep_with_slopes(like)
    arguments = sweeps.FORWARD_ARGUMENTS, sweeps.BACKWARD_ARGUMENTS
    forward, backward = (compile_anew(*pair)._library.get_asm_str() for pair in zip(makers, arguments, strict=True))
    for assembly in (forward, backward):
        assert instructions(assembly, multiplies_and_adds_at_once(dtype))
        assert not re.search(r"\tv?divs[sd]\t", assembly), "divides one element at a time"
        assert not re.search(r"\bfmaf?\b|\bexpf?\b", assembly), "calls the C library"
    # One with w and one without, none for the others.
    assert bool(instructions(forward, f"div{SUFFIXES[dtype]}")) == (name in WITH_DIVISION)


@needs_x86
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("product", "arguments"), [(register_products.multiply, 11), (register_products.multiply_samples, 13)]
)
def test_products_work_on_whole_registers(product, arguments, dtype):
    assembly = compile_anew(product(np.dtype(dtype).type(0)), arguments)._library.get_asm_str()
    # Every block has its own: at least rows times registers of the largest.
    assert (
        len(instructions(assembly, multiplies_and_adds_at_once(dtype)))
        >= register_products.ROWS * register_products.wide()
    )
    assert not re.search(rf"\tv?mul{SUFFIXES[dtype].replace('p', 's')}\t", assembly), "multiplies single elements"
    assert not re.search(r"\bfmaf?\b", assembly), "calls the C library"
