"""numba-cpu's mathematics on numbers and on vector registers: accuracy, special values, machine code."""

from __future__ import annotations

import ctypes
import platform
import re
from functools import cache

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.errors import TypingError

from fusedmlp.backends.numba_cpu import register_products, sweeps
from fusedmlp.backends.numba_cpu.compilation import INTERNAL, OPTIONS
from fusedmlp.backends.numba_cpu.mathematics import TAGS, derivative, exp, f, log1p_unit, one
from fusedmlp.backends.numba_cpu.simd import (
    above,
    at_least,
    at_most,
    fma,
    lane_bytes,
    load_lanes,
    registers,
    splat,
    store,
    sum_lanes,
    transposition,
)

try:
    import mpmath
except ImportError:
    mpmath = None

DTYPES = ["float32", "float64"]
FORMS = ["numbers", "lanes"]


# Compiled functions of numbers and of registers -----------------------------------------------------------------------


def activation(name):
    tag = TAGS[name]
    return njit(**INTERNAL)(lambda x: f(tag, x))


def slope(name):
    tag = TAGS[name]
    return njit(**INTERNAL)(lambda x: derivative(tag, x))


FUNCTIONS = {
    "exp": exp,
    "log1p_unit": log1p_unit,
    **{name: activation(name) for name in TAGS},
    **{f"{name}'": slope(name) for name in TAGS},
    "-x²": njit(**INTERNAL)(lambda x: fma(one(x) + x, one(x) - x, -one(x))),
}


@cache
def over_numbers(name):
    function = FUNCTIONS[name]

    @njit(**OPTIONS)
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return loop


@cache
def over_lanes(name):
    function = FUNCTIONS[name]

    @njit(**OPTIONS)
    def loop(like, x, out, count):
        for at in range(0, count, lane_bytes(like)):
            # The derivative of the identity is a number; the product makes it a register.
            store(splat(one(like)) * function(load_lanes(like, x + at)), out + at)

    return loop


def padded(x):
    """Zeros after x, up to the end of a register."""
    lanes = registers().bytes // x.itemsize
    return np.concatenate([x, np.zeros(-x.size % lanes, x.dtype)])


def values(name, x, form):
    """A function of every element of x."""
    if form == "numbers":
        out = np.full_like(x, 77)
        over_numbers(name)(x, out)
        return out
    given = padded(x)
    out = np.full_like(given, 77)
    over_lanes(name)(x.dtype.type(0), given.ctypes.data, out.ctypes.data, given.nbytes)
    return out[: x.size]


def assert_same(actual, expected):
    """The same bits, whatever those of a NaN."""
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual[numbers]), np.signbit(expected[numbers]))


# Accuracy -------------------------------------------------------------------------------------------------------------

# Where exp is clip_exponent, so that 2ⁿ stays a normal number.
LIMITS = {"float32": (-87.3, 88.0), "float64": (-708.3, 709.0)}
FORMULAS = {
    "exp": lambda m, x: m.exp(x),
    "log1p_unit": lambda m, x: m.log1p(x),
    "sigmoid": lambda m, x: 1 / (1 + m.exp(-x)),
    "tanh": lambda m, x: m.tanh(x),
}
# Units in the last place. Ten million random float32 gave 1.04, 3.32, 2.49, 2.49; a quarter of a million float64 1.00,
# 1.89, 1.97, 2.48; with and without multiply-adds.
BOUNDS = {
    "exp": {"float32": 1.5, "float64": 1.5},
    "log1p_unit": {"float32": 4, "float64": 2.5},
    "sigmoid": {"float32": 3, "float64": 2.5},
    "tanh": {"float32": 3, "float64": 3},
}


def interval(name, dtype):
    """Where a function promises accuracy: its result a normal number, exp not clip_exponent."""
    low, high = LIMITS[dtype]
    return {"exp": (low, high), "log1p_unit": (0, 1), "sigmoid": (low, 1000), "tanh": (-1000, 1000)}[name]


def samples(dtype, low, high, dense):
    """Numbers from low to high: of every exponent down to the subnormals, around 0, around the ends, on grids."""
    rng, info = np.random.default_rng(0), np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, 11)
    ends = [np.nextafter(np.array(end, dtype), np.array(to, dtype)) for end in (low, high) for to in (-1e9, 0, 1e9)]
    x = np.concatenate(
        [
            np.ldexp(rng.uniform(1, 2, (6, exponents.size)) * rng.choice([-1, 1], (6, exponents.size)), exponents).flat,
            np.linspace(low, high, dense),
            np.linspace(-20, 20, dense),
            np.linspace(-1, 1, dense),
            np.arange(low, high) * np.log(2) / 2,  # where n changes, and in the middle between
            np.array(ends, float),
            [low, high, 0.0, -0.0, info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal],
        ]
    ).astype(dtype)
    return x[(x >= np.array(low, dtype)) & (x <= np.array(high, dtype))]


def exact(name, x):
    """The exact values as sums of two float64."""
    formula = FORMULAS[name]
    if x.dtype == np.float32:
        return formula(np, x.astype(np.float64)), 0.0
    if mpmath is not None:
        with mpmath.workprec(120):
            wide = [formula(mpmath, mpmath.mpf(float(number))) for number in x]
            high = np.array([float(value) for value in wide])
            return high, np.array([float(value - first) for value, first in zip(wide, high, strict=True)])
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant:
        pytest.skip("neither mpmath nor a long double wider than float64")
    wide = formula(np, x.astype(np.longdouble))
    high = wide.astype(np.float64)
    return high, (wide - high).astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_units_in_the_last_place(name, dtype):
    x = samples(dtype, *interval(name, dtype), dense=100_001 if dtype == "float32" else 1001)
    high, low = exact(name, x)
    got = values(name, x, "lanes")
    error = np.abs((got.astype(np.float64) - high) - low) / np.spacing(np.abs(high).astype(dtype)).astype(np.float64)
    worst = np.argmax(error)
    assert error[worst] <= BOUNDS[name][dtype], f"{name}({x[worst]!r}) = {got[worst]!r}, off by {error[worst]:.3g} ulp"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_registers_hold_what_numbers_do(name, dtype):
    """The same bits: an element is now in a register, now in the rest of a loop."""
    x = samples(dtype, *((0, 1) if name == "log1p_unit" else (-1000, 1000)), dense=5001)
    x = np.concatenate([x, np.array([np.inf, -np.inf, np.nan, np.finfo(dtype).max, -np.finfo(dtype).max], dtype)])
    assert_same(values(name, x, "lanes"), values(name, x, "numbers"))


# Beyond the range, and values that are exact --------------------------------------------------------------------------


def far(dtype):
    """Numbers beyond the right end of exp's range, up to infinity."""
    info, (_, high) = np.finfo(dtype), LIMITS[dtype]
    return np.array([np.nextafter(np.array(high, dtype), info.max), high * 1.01, 1e4, info.max / 2, np.inf], dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_is_held_at_the_ends(dtype, form):
    """Beyond them it stays the finite, normal number that it is there."""
    low, high = np.array(LIMITS[dtype], dtype)
    assert (values("exp", far(dtype), form) == values("exp", high[None], form)).all()
    left = -far(dtype)
    left[0] = np.nextafter(low, -far(dtype)[-1])
    assert (values("exp", left, form) == values("exp", low[None], form)).all()
    assert np.finfo(dtype).tiny <= values("exp", low[None], form) < 1.2 * np.finfo(dtype).tiny
    assert np.finfo(dtype).max / 3 < values("exp", high[None], form) < np.inf


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_and_tanh_saturate(dtype, form):
    assert (values("sigmoid", far(dtype), form) == 1).all()
    left = values("sigmoid", -far(dtype), form)
    assert (left >= 0).all()
    assert (left < np.finfo(dtype).tiny).all()
    assert (values("tanh", far(dtype), form) == 1).all()
    assert (values("tanh", -far(dtype), form) == -1).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_at_zero(dtype, form):
    x = np.zeros(1, dtype)
    at_zero = {"exp": 1, "log1p_unit": 0, "sigmoid": 0.5, "tanh": 0, "relu": 0, "identity": 0}
    assert {name: values(name, x, form)[0] for name in at_zero} == at_zero


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["exp", "log1p_unit", "sigmoid", "tanh", "relu", "identity", "sigmoid'", "tanh'"])
def test_nan_stays_nan_and_spoils_no_neighbour(name, dtype, form):
    x = np.full(64, 0.25, dtype)
    expected = np.isnan(x)
    x[[0, 13, 63]] = np.nan, -np.nan, np.nan
    expected[[0, 13, 63]] = True
    np.testing.assert_array_equal(np.isnan(values(name, x, form)), expected)


def numbers_of_every_kind(dtype):
    x = samples(dtype, -1000, 1000, dense=1001)
    return np.concatenate([x, np.array([np.inf, -np.inf, np.nan, np.finfo(dtype).max], dtype)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_and_identity_are_exact(dtype, form):
    x = numbers_of_every_kind(dtype)
    np.testing.assert_array_equal(values("relu", x, form), np.maximum(x, 0))  # NaN where x is
    assert_same(values("identity", x, form), x)
    np.testing.assert_array_equal(values("relu'", x, form), (x > 0).astype(dtype))
    np.testing.assert_array_equal(values("identity'", x, form), np.ones_like(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_in_terms_of_the_activation(dtype, form):
    """1 - A² to a rounding of 1 and of A², A (1 - A) to one of itself and of 1 - A."""
    eps = float(np.finfo(dtype).eps)
    A = samples(dtype, -1, 1, dense=2001)
    wide = A.astype(np.longdouble)
    assert (np.abs(values("tanh'", A, form) - (1 - wide * wide)) <= 1.01 * eps).all()
    A, wide = A[A >= 0], wide[A >= 0]
    allowed = 1.01 * eps * wide * (1 - wide) + np.finfo(dtype).smallest_subnormal
    assert (np.abs(values("sigmoid'", A, form) - wide * (1 - wide)) <= allowed).all()


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
    "at_least": (lambda a, b, s: at_least(a, s), lambda a, s: np.address_of_array(a <= s, s, a)),
    "at_most": (lambda a, b, s: at_most(a, s), lambda a, s: np.address_of_array(a >= s, s, a)),
    "above": (lambda a, b, s: above(a, s), lambda a, s: np.address_of_array(a > s, 1, 0).astype(a.dtype)),
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


# Sweeps ---------------------------------------------------------------------------------------------------------------

ROWS, WIDTH = 5, 3  # rows, and registers of each
SWEEPS = {"forward": (sweeps.forward_sweep, 7), "backward": (sweeps.backward_sweep, 9)}


def compile_anew(function, arguments):
    """As `routine_address` does, but for its cache: code from there has no assembly to look at."""
    callback = CFunc(function, ((types.int64,) * arguments, types.void), locals={}, options=OPTIONS)
    callback.compile()
    return callback


@cache
def compiled_sweep(direction, name, dtype):
    build, arguments = SWEEPS[direction]
    return compile_anew(build(TAGS[name], np.dtype(dtype).type(0)), arguments)


def sweep(direction, name, dtype, *arguments):
    """Call a sweep with addresses of arrays, 0 for None."""
    integers = [0 if x is None else x.ctypes.data if isinstance(x, np.ndarray) else int(x) for x in arguments]
    address = compiled_sweep(direction, name, dtype).address
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
    sweep("forward", name, dtype, A, A.strides[0], ROWS, width * A.itemsize, b, w, z)
    np.testing.assert_array_equal(A, expected)
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
    slopes = values(f"{name}'", A[:, :width].ravel(), "numbers").reshape(ROWS, width)
    expected = A.astype(np.float64)
    expected[:, :width] = errors * slopes
    dW_expected = dW + (activations @ dz[0, :width].astype(np.float64) if one_output else 0)
    db_expected = db + expected[:, :width].sum(axis=1) if biased else None
    given = (None, A.strides[0], ROWS, width * A.itemsize, w, dz, dW) if one_output else (
        D, A.strides[0], ROWS, width * A.itemsize, None, None, None
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


def instructions(assembly, pattern):
    """Lines of packed instructions on whole registers."""
    register = {64: "zmm", 32: "ymm", 16: "xmm"}[registers().bytes]
    return re.findall(rf"\tv?{pattern}\t.*%{register}.*", assembly)


def multiplies_and_adds_at_once(dtype):
    """A pattern of multiply-adds; of multiplications where this CPU has none."""
    return (r"fn?m(?:add|sub)\d*" if registers().fused else "mul") + SUFFIXES[dtype]


@needs_x86
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TAGS)
def test_sweeps_work_on_whole_registers(name, dtype):
    forward, backward = (compiled_sweep(direction, name, dtype)._library.get_asm_str() for direction in SWEEPS)
    for assembly in (forward, backward):
        assert instructions(assembly, multiplies_and_adds_at_once(dtype))
        assert not re.search(r"\tv?divs[sd]\t", assembly), "divides one element at a time"
        assert not re.search(r"\bfmaf?\b|\bexpf?\b", assembly), "calls the C library"
    # One with w and one without, none for the others.
    assert bool(instructions(forward, f"div{SUFFIXES[dtype]}")) == (name in ("sigmoid", "tanh"))


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
