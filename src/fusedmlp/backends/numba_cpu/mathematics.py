"""exp, log1p, the activations and their derivatives, for numbers and for `simd.Lanes`. Compiled; no branches.

How the exponentials vectorise: PyPI's llvmlite has no vector library, so ``np.exp`` in a loop stays scalar.
exp(x) = 2ⁿ eʳ with n = round(x / ln 2), |r| <= ln 2 / 2, and eʳ by its Taylor polynomial, needs nothing but
multiplications, additions and integer shifts.

An activation is passed as a tag, an empty named tuple whose type stands for it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from fusedmlp.backends.numba_cpu.compilation import OPTIONS
from fusedmlp.backends.numba_cpu.simd import above, at_least, at_most, element_of, fma, power_of_two
from fusedmlp.model.activations import largest_exponent

_F32, _F64 = np.float32, np.float64


def _by_precision(function, single, double):
    """Compiled calls of `function` go to `single` or `double`, by the precision of the first argument."""

    @overload(function, jit_options=OPTIONS)
    def select(x):
        return {types.float32: single, types.float64: double}.get(element_of(x))


def one(x):
    """1 in the precision of x: a plain 1 would turn float32 into float64."""


_by_precision(one, lambda x: _F32(1), lambda x: _F64(1))


def zero(x):
    """0 in the precision of x."""


_by_precision(zero, lambda x: _F32(0), lambda x: _F64(0))


# exp and expm1 -------------------------------------------------------------------------------------------------------

# Adding 1.5·2^23 (1.5·2^52) rounds to the nearest integer and leaves it in the low bits.
_MAGIC_32, _MAGIC_64 = _F32(1.5 * 2**23), _F64(1.5 * 2**52)
_LOG2E_32, _LOG2E_64 = _F32(1 / math.log(2)), _F64(1 / math.log(2))
# ln 2 in two parts, the first of 15 (41) bits: n times it is exact.
_LN2_HIGH_32, _LN2_LOW_32 = _F32(0.693145751953125), _F32(1.4286068203094172e-06)
_LN2_HIGH_64, _LN2_LOW_64 = _F64(0.6931471805601177), _F64(-1.7239444525614835e-13)
# Beyond these, 2ⁿ would leave the normal numbers.
_LOWEST_32, _HIGHEST_32 = _F32(-87.3), _F32(88.0)
_LOWEST_64, _HIGHEST_64 = _F64(-708.3), _F64(709.0)
# 1/k!. The first term left out is below 2^-27 (2^-57) of the result.
_C2_32, _C3_32, _C4_32, _C5_32, _C6_32, _C7_32 = (_F32(1 / math.factorial(k)) for k in range(2, 8))
_C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10, _C11, _C12, _C13 = (1 / math.factorial(k) for k in range(2, 14))


def exp_parts(x):
    """(2ⁿ, eʳ - 1) with x = n ln 2 + r; x is clip_exponent where 2ⁿ is a normal number, NaN stays NaN."""


def _exp_parts_32(x):
    x = at_most(at_least(x, _LOWEST_32), _HIGHEST_32)
    shifted = fma(x, _LOG2E_32, _MAGIC_32)
    n = shifted - _MAGIC_32
    r = fma(-n, _LN2_LOW_32, fma(-n, _LN2_HIGH_32, x))
    p = fma(fma(fma(fma(fma(_C7_32, r, _C6_32), r, _C5_32), r, _C4_32), r, _C3_32), r, _C2_32)
    return power_of_two(shifted), fma(r * r, p, r)


def _exp_parts_64(x):
    x = at_most(at_least(x, _LOWEST_64), _HIGHEST_64)
    shifted = fma(x, _LOG2E_64, _MAGIC_64)
    n = shifted - _MAGIC_64
    r = fma(-n, _LN2_LOW_64, fma(-n, _LN2_HIGH_64, x))
    p = fma(fma(fma(fma(fma(fma(_C13, r, _C12), r, _C11), r, _C10), r, _C9), r, _C8), r, _C7)
    p = fma(fma(fma(fma(fma(p, r, _C6), r, _C5), r, _C4), r, _C3), r, _C2)
    return power_of_two(shifted), fma(r * r, p, r)


_by_precision(exp_parts, _exp_parts_32, _exp_parts_64)


def exp(x):
    """eˣ, where it is a normal number."""


def _exp(x):
    two_n, em1 = exp_parts(x)
    return fma(two_n, em1, two_n)


_by_precision(exp, _exp, _exp)

_LARGEST_64 = _F64(largest_exponent(np.float64))


def clip_exponent(x):
    """x, clip_exponent where `activations.exp` holds it."""


def _held_32(x):
    return x  # exp_parts holds it sooner


def _held_64(x):
    return at_most(x, _LARGEST_64)


_by_precision(clip_exponent, _held_32, _held_64)


# log1p ----------------------------------------------------------------------------------------------------------------


def log1p_unit(x):
    """log(1 + x) for x in [0, 1]."""


# log(1 + x) = 2 artanh(s), s = x / (2 + x) <= 1/3. The first term left out is below 3^-12 / 13 (3^-32 / 33) of it.
_A3_32, _A5_32, _A7_32, _A9_32, _A11_32 = (_F32(1 / k) for k in range(3, 12, 2))
_A3, _A5, _A7, _A9, _A11, _A13, _A15, _A17, _A19, _A21, _A23, _A25, _A27, _A29, _A31 = (1 / k for k in range(3, 32, 2))


def _log1p_unit_32(x):
    s = x / (_F32(2) + x)
    q = s * s
    p = fma(fma(fma(fma(_A11_32, q, _A9_32), q, _A7_32), q, _A5_32), q, _A3_32)
    return _F32(2) * fma(s * q, p, s)


def _log1p_unit_64(x):
    s = x / (2.0 + x)
    q = s * s
    p = fma(fma(fma(fma(fma(fma(fma(_A31, q, _A29), q, _A27), q, _A25), q, _A23), q, _A21), q, _A19), q, _A17)
    p = fma(fma(fma(fma(fma(fma(fma(p, q, _A15), q, _A13), q, _A11), q, _A9), q, _A7), q, _A5), q, _A3)
    return 2.0 * fma(s * q, p, s)


_by_precision(log1p_unit, _log1p_unit_32, _log1p_unit_64)


# Activations: tags, f and f' in terms of A ----------------------------------------------------------------------------


class Sigmoid(NamedTuple):
    """Tag of 1 / (1 + exp(-z))."""


class Tanh(NamedTuple):
    """Tag of tanh(z)."""


class Relu(NamedTuple):
    """Tag of max(z, 0)."""


class Identity(NamedTuple):
    """Tag of z."""


TAGS = {"sigmoid": Sigmoid(), "tanh": Tanh(), "relu": Relu(), "identity": Identity()}
"""Activation name -> the tag that kernels take."""


def f(tag, x):
    """f(x) of the activation that the tag stands for."""


def _sigmoid(tag, x):
    return one(x) / (one(x) + exp(-x))


def _tanh(tag, x):
    # tanh x = E / (E + 2) with E = exp(2x) - 1, which keeps its accuracy where x is small.
    two_n, em1 = exp_parts(x + x)
    E = fma(two_n, em1, two_n - one(x))
    return E / (E + (one(x) + one(x)))


def _relu(tag, x):
    return at_least(x, zero(x))


def _identity(tag, x):
    return x


def derivative(tag, x):
    """f' of the activation that the tag stands for, in terms of x = f(z)."""


def _sigmoid_derivative(tag, x):
    return x * (one(x) - x)


def _tanh_derivative(tag, x):
    return fma(-x, x, one(x))


def _relu_derivative(tag, x):
    return above(x, zero(x))


def _identity_derivative(tag, x):
    return one(x)


@overload(f, jit_options=OPTIONS)
def _select_f(tag, x):
    return {Sigmoid: _sigmoid, Tanh: _tanh, Relu: _relu, Identity: _identity}.get(tag.instance_class)


@overload(derivative, jit_options=OPTIONS)
def _select_derivative(tag, x):
    return {
        Sigmoid: _sigmoid_derivative,
        Tanh: _tanh_derivative,
        Relu: _relu_derivative,
        Identity: _identity_derivative,
    }.get(tag.instance_class)
