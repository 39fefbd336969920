"""The activations of `model.activations` for numbers and `simd.Lanes`: f, with f' from A or beside A. No branches.

An activation is passed to compiled code as a tag, an empty named tuple whose type selects the formula. `TAGS` gives the
tag of every activation that has a formula here; a network with another one runs on the composed engine.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections import namedtuple
from typing import Any

from numba.extending import overload

from fusedmlp.backends.numba_cpu.machine.mathematics import (
    INLINE,
    constant,
    exp,
    exp_parts,
    expm1,
    log1p_unit,
    lowest_exponent,
    normal_density,
    normal_tail,
    one,
    widest,
    zero,
)
from fusedmlp.backends.numba_cpu.machine.simd import above, at_least, at_most, fma, magnitude, where_above
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, LEAKY_SLOPE, SELU_ALPHA, SELU_SCALE

# A named tuple per activation, found by its name when numba reads a cached kernel.
Sigmoid = namedtuple("Sigmoid", ())
Tanh = namedtuple("Tanh", ())
Relu = namedtuple("Relu", ())
Identity = namedtuple("Identity", ())
LeakyRelu = namedtuple("LeakyRelu", ())
Elu = namedtuple("Elu", ())
Selu = namedtuple("Selu", ())
Softplus = namedtuple("Softplus", ())
Gelu = namedtuple("Gelu", ())
Silu = namedtuple("Silu", ())
Mish = namedtuple("Mish", ())
Softsign = namedtuple("Softsign", ())


# f' from A: f(x), and f' in terms of a = f(x) -------------------------------------------------------------------------


def _sigmoid(tag, x):
    return one(x) / (one(x) + exp(-x))


def _sigmoid_derivative(tag, a):
    return a * (one(a) - a)


def _tanh(tag, x):
    # tanh x = E / (E + 2) with E = exp(2x) - 1, which keeps its accuracy where x is small.
    two_n, em1 = exp_parts(x + x)
    E = fma(two_n, em1, two_n - one(x))
    return E / (E + (one(x) + one(x)))


def _tanh_derivative(tag, a):
    return fma(-a, a, one(a))


def _relu(tag, x):
    return at_least(x, zero(x))


def _relu_derivative(tag, a):
    return above(a, zero(a))


def _identity(tag, x):
    return x


def _identity_derivative(tag, a):
    return one(a)


def _leaky_relu(tag, x):
    return where_above(x, zero(x), x, constant(x, LEAKY_SLOPE) * x)


def _leaky_relu_derivative(tag, a):
    return fma(above(a, zero(a)), constant(a, 1 - LEAKY_SLOPE), constant(a, LEAKY_SLOPE))


def _elu(tag, x):
    return where_above(x, zero(x), x, expm1(x))


def _elu_derivative(tag, a):
    return at_most(a, zero(a)) + one(a)


def _selu(tag, x):
    return where_above(x, zero(x), constant(x, SELU_SCALE) * x, constant(x, SELU_SCALE * SELU_ALPHA) * expm1(x))


def _selu_derivative(tag, a):
    return where_above(a, zero(a), constant(a, SELU_SCALE), a + constant(a, SELU_SCALE * SELU_ALPHA))


def _softsign(tag, x):
    return x / (one(x) + magnitude(x))


def _softsign_derivative(tag, a):
    rest = one(a) - magnitude(a)
    return rest * rest


_FROM_A: dict[type, tuple[Any, Any]] = {
    Sigmoid: (_sigmoid, _sigmoid_derivative),
    Tanh: (_tanh, _tanh_derivative),
    Relu: (_relu, _relu_derivative),
    Identity: (_identity, _identity_derivative),
    LeakyRelu: (_leaky_relu, _leaky_relu_derivative),
    Elu: (_elu, _elu_derivative),
    Selu: (_selu, _selu_derivative),
    Softsign: (_softsign, _softsign_derivative),
}


# f' beside A: (f(x), f'(x)) -------------------------------------------------------------------------------------------


def _softplus(tag, x):
    # With u = exp(-|x|): log(1 + eˣ) = max(x, 0) + log(1 + u).
    u = exp(-magnitude(x))
    inverse = one(x) / (one(x) + u)
    return at_least(x, zero(x)) + log1p_unit(u), where_above(x, zero(x), inverse, u * inverse)


def _gelu(tag, x):
    tail, exponential = normal_tail(x)
    phi = where_above(x, zero(x), one(x) - tail, tail)
    held = at_least(at_most(x, widest(x)), -widest(x))  # so that infinity does not meet a density of 0
    return at_least(x, -widest(x)) * phi, fma(held, normal_density(exponential), phi)


def _silu(tag, x):
    u = exp(-magnitude(x))
    inverse = one(x) / (one(x) + u)
    right, left = where_above(x, zero(x), inverse, u * inverse), where_above(x, zero(x), u * inverse, inverse)
    low = lowest_exponent(x)
    held = at_least(at_most(x, -low), low)
    return at_least(x, low) * right, fma(held * right, left, right)


def _mish(tag, x):
    # With u = exp(-|x|) the tanh of the softplus is a quotient of polynomials in u, on either side of 0.
    u, two = exp(-magnitude(x)), one(x) + one(x)
    sigmoid_part = where_above(x, zero(x), one(x), u) / (one(x) + u)
    numerator = where_above(x, zero(x), fma(two, u, one(x)), u * (u + two))
    rest = where_above(x, zero(x), two * u * u, two)  # 1 - tanh, times the denominator
    denominator = numerator + rest
    hyperbolic = numerator / denominator
    low = lowest_exponent(x)
    held = at_least(at_most(x, -low), low)
    slope = fma(held * sigmoid_part, rest / denominator * (one(x) + hyperbolic), hyperbolic)
    return at_least(x, low) * hyperbolic, slope


_BESIDE_A: dict[type, Any] = {Softplus: _softplus, Gelu: _gelu, Silu: _silu, Mish: _mish}

_NAMES = {
    "sigmoid": Sigmoid(), "tanh": Tanh(), "relu": Relu(), "identity": Identity(), "leaky_relu": LeakyRelu(),
    "elu": Elu(), "selu": Selu(), "softplus": Softplus(), "gelu": Gelu(), "silu": Silu(), "mish": Mish(),
    "softsign": Softsign(),
}  # fmt: skip
TAGS: dict[str, Any] = {name: tag for name, tag in _NAMES.items() if name in HIDDEN_ACTIVATIONS}
"""Activation name -> the tag that kernels take."""


def stores_slope(tag: Any) -> bool:
    """Whether f' cannot be had from A, so that it is stored beside A."""
    return type(tag) in _BESIDE_A


# What compiled code calls ---------------------------------------------------------------------------------------------


def f(tag, x):
    """f(x) of the activation that the tag stands for."""


def derivative(tag, a):
    """f' of the activation that the tag stands for, in terms of a = f(x); a itself, where a is a stored slope."""


def f_and_slope(tag, x):
    """(f(x), f'(x)) of the activation that the tag stands for."""


@overload(f, jit_options=INLINE)
def _select_f(tag, x):
    kind = tag.instance_class
    if kind in _FROM_A:
        return _FROM_A[kind][0]
    return lambda tag, x: f_and_slope(tag, x)[0]


@overload(derivative, jit_options=INLINE)
def _select_derivative(tag, a):
    kind = tag.instance_class
    return _FROM_A[kind][1] if kind in _FROM_A else lambda tag, a: a


@overload(f_and_slope, jit_options=INLINE)
def _select_f_and_slope(tag, x):
    kind = tag.instance_class
    if kind in _BESIDE_A:
        return _BESIDE_A[kind]

    def both(tag, x):
        a = f(tag, x)
        return a, derivative(tag, a)

    return both
