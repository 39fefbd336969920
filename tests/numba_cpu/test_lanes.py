"""numba-cpu's vector registers as a type: arithmetic, choices, sums and transpositions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit
from numba.core.errors import TypingError
from test_vector_mathematics import DTYPES, FORMS, assert_same, padded, values

from fusedmlp.backends.numba_cpu.machine.compilation import INTERNAL, OPTIONS
from fusedmlp.backends.numba_cpu.machine.simd import (
    above,
    at_least,
    at_most,
    fma,
    lane_bytes,
    load_lanes,
    magnitude,
    registers,
    splat,
    store,
    sum_lanes,
    transposition,
    where_above,
)

# Lanes ----------------------------------------------------------------------------------------------------------------

ARITHMETIC = {
    "a + b": lambda a, b, s: a + b,
    "a - b": lambda a, b, s: a - b,
    "a * b": lambda a, b, s: a * b,
    "a / b": lambda a, b, s: a / b,
    "-a": lambda a, b, s: -a,
    "a + s": lambda a, b, s: a + s,
    "s + a": lambda a, b, s: s + a,
    "a - s": lambda a, b, s: a - s,
    "s - a": lambda a, b, s: s - a,
    "a * s": lambda a, b, s: a * s,
    "s * a": lambda a, b, s: s * a,
    "a / s": lambda a, b, s: a / s,
    "s / a": lambda a, b, s: s / a,
}
FUSED = {
    "a b + a": (lambda a, b, s: fma(a, b, a), lambda a, b, s: a * b + a),
    "a b + s": (lambda a, b, s: fma(a, b, s), lambda a, b, s: a * b + s),
    "a s + b": (lambda a, b, s: fma(a, s, b), lambda a, b, s: a * s + b),
    "s a + b": (lambda a, b, s: fma(s, a, b), lambda a, b, s: s * a + b),
    "s a + s": (lambda a, b, s: fma(s, a, s), lambda a, b, s: s * a + s),
}
CHOICES = {  # with a number as bound; comparisons with NaN are false
    "at_least": (lambda a, b, s: at_least(a, s), lambda a, s: np.where(a <= s, s, a)),
    "at_most": (lambda a, b, s: at_most(a, s), lambda a, s: np.where(a >= s, s, a)),
    "above": (lambda a, b, s: above(a, s), lambda a, s: np.where(a > s, 1, 0).astype(a.dtype)),
}


@cache
def on_registers(function):
    function = njit(**INTERNAL)(function)

    @njit(**OPTIONS)
    def loop(like, a, b, s, out, count):
        for at in range(0, count, lane_bytes(like)):
            store(function(load_lanes(like, a + at), load_lanes(like, b + at), s), out + at)

    return loop


def result_of(function, a, b, s):
    out, size = np.full_like(padded(a), 77), a.size
    a, b = padded(a), padded(b)
    on_registers(function)(a.dtype.type(0), a.ctypes.data, b.ctypes.data, s, out.ctypes.data, a.nbytes)
    return out[:size]


def special(dtype):
    """Every pair of numbers that arithmetic treats differently."""
    info = np.finfo(dtype)
    x = np.array([0, 1, -1, 1 / 3, np.pi, -1e-3, info.max, info.tiny, info.smallest_subnormal, np.inf, -np.inf, np.nan])
    a, b = np.meshgrid(x.astype(dtype), x.astype(dtype))
    return a.ravel(), b.ravel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("expression", ARITHMETIC)
def test_arithmetic_of_registers_is_numpys(expression, dtype):
    a, b = special(dtype)
    s = np.array(2.7, dtype)[()]
    with np.errstate(all="ignore"):
        expected = ARITHMETIC[expression](a, b, s)
    assert_same(result_of(ARITHMETIC[expression], a, b, s), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_multiply_add_rounds_once(dtype, form):
    """(1 + x) (1 - x) - 1 = -x²; 0 where the product, too close to 1, is rounded first."""
    x = (np.finfo(dtype).eps * np.arange(1, 101)).astype(dtype)
    assert_same(values("-x²", x, form), -x * x if registers().fused else np.zeros_like(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("expression", FUSED)
def test_multiply_adds_of_registers_and_numbers(expression, dtype):
    a, b = np.random.default_rng(0).integers(-99, 100, (2, 40)).astype(dtype)
    compiled, plain = FUSED[expression]
    s = np.array(7, dtype)[()]
    np.testing.assert_array_equal(result_of(compiled, a, b, s), plain(a, b, s))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("bound", [0.0, -0.25, 1.0, np.inf, np.nan])
def test_choices(choice, bound, dtype):
    """With NaN neither bound holds: x stays, NaN or not."""
    a, b = special(dtype)
    compiled, plain = CHOICES[choice]
    s = np.array(bound, dtype)[()]
    assert_same(result_of(compiled, a, b, s), plain(a, s))


@pytest.mark.parametrize("dtype", DTYPES)
def test_splat(dtype):
    a, b = special(dtype)
    s = np.array(1 / 3, dtype)[()]
    assert (result_of(lambda a, b, s: splat(s), a, b, s) == s).all()


@pytest.mark.parametrize("expression", ["a + s", "s / a"])
def test_precisions_do_not_mix(expression):
    a, b = special("float32")
    with pytest.raises(TypingError, match="No implementation of function"):
        result_of(ARITHMETIC[expression], a, b, np.float64(2))


@pytest.mark.parametrize("expression", ["a b + s", "s a + b"])
def test_precisions_do_not_mix_in_a_multiply_add(expression):
    a, b = special("float32")
    with pytest.raises(TypingError, match="expected numbers or Lanes of one precision"):
        result_of(FUSED[expression][0], a, b, np.float64(2))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_bound_has_the_precision_of_what_it_bounds(choice):
    a, b = special("float32")
    with pytest.raises(TypingError, match="expected a number or Lanes, and a bound of the same precision"):
        result_of(CHOICES[choice][0], a, b, np.float64(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_lanes(dtype):
    """Powers of two: no other sum of lanes gives this number."""
    like = np.dtype(dtype).type(0)
    x = (2.0 ** np.arange(registers().bytes // like.itemsize)).astype(dtype)
    total = njit(**OPTIONS)(lambda like, address: sum_lanes(load_lanes(like, address)))(like, x.ctypes.data)
    assert total == x.sum()


@pytest.mark.parametrize("width", [None, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transposition(dtype, width):
    """Rows from anywhere, at an offset; written at a step, and nothing between."""
    like = np.dtype(dtype).type(0)
    size = width or registers().bytes // like.itemsize
    block = np.arange(3.0 * size * (size + 5)).astype(dtype).reshape(3 * size, size + 5)
    rows = np.random.default_rng(0).permutation(3 * size)[:size]
    sources = block.ctypes.data + rows * block.strides[0]
    out = np.full((size + 2, size + 3), -1, dtype)
    expected = out.copy()
    expected[1:-1, 1:-2] = block[rows, 2 : size + 2].T
    transpose = transposition(width)
    njit(**OPTIONS)(lambda *arguments: transpose(*arguments))(
        like, sources.ctypes.data, 2 * like.itemsize, out[1:, 1:].ctypes.data, out.strides[0]
    )
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bound", [0.0, 1.0, np.nan])
def test_where_above_and_magnitude(bound, dtype):
    a, b = special(dtype)
    s = np.array(bound, dtype)[()]
    got = result_of(lambda a, b, s: where_above(a, s, b, s), a, b, s)
    assert_same(got, np.where(a > s, b, s).astype(dtype))
    assert_same(result_of(lambda a, b, s: magnitude(a), a, b, s), np.abs(a))
