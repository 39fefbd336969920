"""numba-cpu's mathematics on numbers and on vector registers: accuracy, special values, machine code."""

from __future__ import annotations

from functools import cache

import mpmath
import numpy as np
import pytest
from scipy import special

pytest.importorskip("numba")

from numba import njit

from fusedmlp.backends.numba_cpu.kernels.activation_formulas import TAGS, derivative, f, f_and_slope, stores_slope
from fusedmlp.backends.numba_cpu.machine.compilation import INTERNAL, OPTIONS
from fusedmlp.backends.numba_cpu.machine.mathematics import exp, exp_up_to_the_largest, expm1, log1p_unit, one
from fusedmlp.backends.numba_cpu.machine.simd import fma, lane_bytes, load_lanes, registers, splat, store
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, largest_exponent

DTYPES = ["float32", "float64"]
FORMS = ["numbers", "lanes"]


# Compiled functions of numbers and of registers -----------------------------------------------------------------------


def activation(name):
    tag = TAGS[name]
    return njit(**INTERNAL)(lambda x: f(tag, x))


def slope(name):
    """f' in terms of A, or, where it is stored beside A, of Z."""
    tag = TAGS[name]
    if stores_slope(tag):
        return njit(**INTERNAL)(lambda x: f_and_slope(tag, x)[1])
    return njit(**INTERNAL)(lambda x: derivative(tag, x))


FUNCTIONS = {
    "exp": exp,
    "expm1": expm1,
    "exp_up_to_the_largest": exp_up_to_the_largest,
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
    "expm1": lambda m, x: m.expm1(x),
    "exp_up_to_the_largest": lambda m, x: m.exp(x),
    "elu": lambda m, x: piecewise(m, x, x, m.expm1(x)),
    "selu": lambda m, x: SELU_SCALE * piecewise(m, x, x, SELU_ALPHA * m.expm1(x)),
    "softplus": lambda m, x: m.log1p(m.exp(x)),
    "gelu": lambda m, x: x * normal_cdf(m, x),
    "silu": lambda m, x: x / (1 + m.exp(-x)),
    "mish": lambda m, x: x * m.tanh(m.log1p(m.exp(x))),
    "softsign": lambda m, x: x / (1 + abs(x)),
    "softplus'": lambda m, x: 1 / (1 + m.exp(-x)),
    "gelu'": lambda m, x: normal_cdf(m, x) + x * m.exp(-x * x / 2) / m.sqrt(2 * m.pi),
    "silu'": lambda m, x: (1 + x / (1 + m.exp(x))) / (1 + m.exp(-x)),
    "mish'": lambda m, x: m.tanh(m.log1p(m.exp(x))) + x / (1 + m.exp(-x)) * (1 - m.tanh(m.log1p(m.exp(x))) ** 2),
}
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def piecewise(m, x, right, left):
    return np.where(x > 0, right, left) if m is np else right if x > 0 else left


def normal_cdf(m, x):
    return (special if m is np else m).erfc(-x / m.sqrt(2)) / 2


# Units in the last place. Ten million random float32 gave 1.04, 3.32, 2.49, 2.49; a quarter of a million float64 1.00,
# 1.89, 1.97, 2.48; with and without multiply-adds.
BOUNDS = {
    "exp": {"float32": 1.5, "float64": 1.5},
    "log1p_unit": {"float32": 4, "float64": 2.5},
    "sigmoid": {"float32": 3, "float64": 2.5},
    "tanh": {"float32": 3, "float64": 3},
    "expm1": {"float32": 2, "float64": 2},
    "exp_up_to_the_largest": {"float32": 3, "float64": 1.5},
    "elu": {"float32": 2, "float64": 2},
    "selu": {"float32": 3, "float64": 3},
    "softplus": {"float32": 4, "float64": 2.5},
    "gelu": {"float32": 7, "float64": 7},
    "silu": {"float32": 4, "float64": 4},
    "mish": {"float32": 4, "float64": 4.5},
    "softsign": {"float32": 1.5, "float64": 1.5},
    # Slopes have zeros: units of 1's last place.
    "softplus'": {"float32": 1, "float64": 1},
    "gelu'": {"float32": 2, "float64": 2},
    "silu'": {"float32": 2, "float64": 2},
    "mish'": {"float32": 2, "float64": 2},
}


def interval(name, dtype):
    """Where a function promises accuracy: its result a normal number, exp not clip_exponent."""
    low, high = LIMITS[dtype]
    name, wide = name.rstrip("'"), {"float32": (-80, 80), "float64": (-600, 600)}[dtype]
    largest = float(np.nextafter(largest_exponent(dtype), np.dtype(dtype).type(0)))
    intervals = {
        "exp": (low, high),
        "exp_up_to_the_largest": (low + 1, largest),
        "log1p_unit": (0, 1),
        "sigmoid": (low, 1000),
        "tanh": (-1000, 1000),
        "gelu": {"float32": (-12.5, 12.5), "float64": (-37, 37)}[dtype],
    }
    return intervals.get(name, wide)


def samples(dtype, low, high, dense):
    """Numbers from low to high: of every exponent down to the subnormals, around 0, around the ends, on grids."""
    rng, info = np.random.default_rng(0), np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, 11, 1 if dtype == "float32" else 7)
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
    with mpmath.workprec(100):
        wide = [formula(mpmath, mpmath.mpf(float(number))) for number in x]
        high = np.array([float(value) for value in wide])
        return high, np.array([float(value - first) for value, first in zip(wide, high, strict=True)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_units_in_the_last_place(name, dtype):
    x = samples(dtype, *interval(name, dtype), dense=100_001 if dtype == "float32" else 201)
    high, low = exact(name, x)
    got = values(name, x, "lanes")
    unit = np.finfo(dtype).eps if name.endswith("'") else np.spacing(np.abs(high).astype(dtype)).astype(np.float64)
    error = np.abs((got.astype(np.float64) - high) - low) / unit
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
    at_zero = {"exp": 1, "expm1": 0, "log1p_unit": 0, "sigmoid": 0.5} | {
        name: 0 for name in TAGS if name not in ("sigmoid", "softplus")
    }
    assert {name: values(name, x, form)[0] for name in at_zero} == at_zero


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["exp", "expm1", "log1p_unit", *TAGS, "sigmoid'", "tanh'", "elu'", "softplus'", "gelu'", "silu'", "mish'"],
)
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_far_ends_of_activations(dtype, form):
    """Infinity meets no 0: to the right they are x with slope 1, to the left 0 with slope 0, or constant."""
    right, tiny = far(dtype), 1e3 * np.finfo(dtype).tiny
    for name in ("softplus", "gelu", "silu", "mish"):
        np.testing.assert_array_equal(values(name, right, form), right)
        np.testing.assert_array_equal(values(f"{name}'", right, form), np.ones_like(right))
        assert (np.abs(values(name, -right, form)) < tiny).all()
        assert (np.abs(values(f"{name}'", -right, form)) < tiny).all()
    assert (values("elu", -right, form) == -1).all()
    np.testing.assert_array_equal(values("elu", right, form), right)
    np.testing.assert_allclose(values("selu", -right, form), -SELU_SCALE * SELU_ALPHA, rtol=1e-6)
    np.testing.assert_array_equal(values("leaky_relu", -right, form), np.dtype(dtype).type(0.01) * -right)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in TAGS if HIDDEN_ACTIVATIONS[name].derivative is not None])
def test_derivatives_are_the_tables(name, dtype, form):
    A = values(name, samples(dtype, -20, 20, dense=501), form)
    expected = HIDDEN_ACTIVATIONS[name].derivative(np, A)
    np.testing.assert_allclose(values(f"{name}'", A, form), expected, rtol=0, atol=2 * np.finfo(dtype).eps)


def test_there_is_a_formula_for_every_activation():
    """The table of activations is the only list: a row without compiled code runs composed, and fails here."""
    assert list(TAGS) == list(HIDDEN_ACTIVATIONS)
    for name, row in HIDDEN_ACTIVATIONS.items():
        assert stores_slope(TAGS[name]) == row.stores_slope, name
