"""exp, expm1, log1p and the normal distribution, for numbers and for `simd.Lanes`. Compiled; no branches.

How the exponentials vectorise: PyPI's llvmlite has no vector library, so ``np.exp`` in a loop stays scalar.
exp(x) = 2ⁿ eʳ with n = round(x / ln 2), |r| <= ln 2 / 2, and eʳ by its Taylor polynomial, needs nothing but
multiplications, additions and integer shifts.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from fusedmlp.backends.numba_cpu.machine.compilation import INTERNAL
from fusedmlp.backends.numba_cpu.machine.simd import at_least, at_most, element_of, fma, magnitude, power_of_two
from fusedmlp.model.activations import largest_exponent

_F32, _F64 = np.float32, np.float64


INLINE = INTERNAL | {"forceinline": True}
"""Options for functions of numbers and `Lanes`: always inlined, because a call passes registers through memory."""


def _by_precision(function, single, double):
    """Compiled calls of `function` go to `single` or `double`, by the precision of the first argument."""

    @overload(function, jit_options=INLINE)
    def select(x):
        return {types.float32: single, types.float64: double}.get(element_of(x))


def one(x):
    """1 in the precision of x: a plain 1 would turn float32 into float64."""


_by_precision(one, lambda x: _F32(1), lambda x: _F64(1))


def zero(x):
    """0 in the precision of x."""


_by_precision(zero, lambda x: _F32(0), lambda x: _F64(0))


def constant(x, value):
    """`value` in the precision of x."""


@overload(constant, jit_options=INLINE)
def _select_constant(x, value):
    return {types.float32: lambda x, value: _F32(value), types.float64: lambda x, value: value}.get(element_of(x))


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


def expm1(x):
    """eˣ - 1, which keeps its accuracy where x is small."""


def _expm1(x):
    two_n, em1 = exp_parts(x)
    return fma(two_n, em1, two_n - one(x))


_by_precision(expm1, _expm1, _expm1)


_LARGEST_32, _LARGEST_64 = _F32(largest_exponent(np.float32)), _F64(largest_exponent(np.float64))


def clip_exponent(x):
    """x, or the largest number that `activations.exp` takes, if x is above it."""


_by_precision(clip_exponent, lambda x: at_most(x, _LARGEST_32), lambda x: at_most(x, _LARGEST_64))


def exp_up_to_the_largest(x):
    """eˣ of numbers up to `clip_exponent`'s bound, which is above that of `exp` in float32."""


def _squared_exp(x):
    root = exp(constant(x, 0.5) * x)
    return root * root


_by_precision(exp_up_to_the_largest, _squared_exp, lambda x: exp(x))


def lowest_exponent(x):
    """The x below which `exp` does not fall any more."""


_by_precision(lowest_exponent, lambda x: _LOWEST_32, lambda x: _LOWEST_64)


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


# The normal distribution ----------------------------------------------------------------------------------------------

_RECIPROCAL_ROOT_2_PI = 1 / math.sqrt(2 * math.pi)


def scaled_tail(x):
    """Φ(-x) exp(x²/2) for x >= 0, up to where the density is no normal number."""


# t P(s) with t = c / (x + c), where s = a t - b runs through [-1, 1]. P interpolates at Chebyshev's nodes; it is off by
# less than 1.3e-8 (1e-16) of the result.
_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8, _T9 = (
    _F32(coefficient)
    for coefficient in (
        0.2279222376672645147, 0.1575624202783912755, 0.08016393767011074425, 0.02858743466307876993,
        0.006001511001172194009, 0.00009661222321126738914, -0.0003089839168610033389, -0.00004308253274642152938,
        0.00001478574950755952701, 3.12959318575044616e-6,
    )
)  # fmt: skip
_U0, _U1, _U2, _U3, _U4, _U5, _U6, _U7, _U8, _U9, _U10 = (
    0.1848856562174331646, 0.1475210448306009599, 0.09529608034690571176, 0.0487878891310484738,
    0.01879131407281691024, 0.004722221242138567401, 0.0003241010427183657381, -0.0002626882600183196716,
    -0.00008333656682959976897, 9.565818013469743102e-6, 9.258329136817218352e-6,
)  # fmt: skip
_U11, _U12, _U13, _U14, _U15, _U16, _U17, _U18, _U19, _U20, _U21 = (
    -1.957677066166405044e-7, -1.021461202079323337e-6, 6.458720776703828855e-9, 1.226855420178666148e-7,
    -6.138353721830300922e-9, -1.535763729270789163e-8, 2.16433312403604745e-9, 1.742624249933259549e-9,
    -4.509911843199456885e-10, -1.271921976047545297e-10, 4.789840162657927786e-11,
)  # fmt: skip
_WIDEST_32, _WIDEST_64 = _F32(14), _F64(39)
_C_32, _A_32, _B_32 = _F32(4), _F32(18 / 7), _F32(11 / 7)
_C_64, _A_64, _B_64 = 4.5, 2 / 0.9, 1.1 / 0.9


def _scaled_tail_32(x):
    t = _C_32 / (x + _C_32)
    s = fma(t, _A_32, -_B_32)
    p = fma(fma(fma(fma(_T9, s, _T8), s, _T7), s, _T6), s, _T5)
    return t * fma(fma(fma(fma(fma(p, s, _T4), s, _T3), s, _T2), s, _T1), s, _T0)


def _scaled_tail_64(x):
    t = _C_64 / (x + _C_64)
    s = fma(t, _A_64, -_B_64)
    p = fma(fma(fma(fma(fma(_U21, s, _U20), s, _U19), s, _U18), s, _U17), s, _U16)
    p = fma(fma(fma(fma(fma(fma(p, s, _U15), s, _U14), s, _U13), s, _U12), s, _U11), s, _U10)
    p = fma(fma(fma(fma(fma(fma(p, s, _U9), s, _U8), s, _U7), s, _U6), s, _U5), s, _U4)
    return t * fma(fma(fma(fma(p, s, _U3), s, _U2), s, _U1), s, _U0)


_by_precision(scaled_tail, _scaled_tail_32, _scaled_tail_64)


def widest(x):
    """From so many standard deviations on, the density of the normal distribution is no normal number."""


_by_precision(widest, lambda x: _WIDEST_32, lambda x: _WIDEST_64)


def normal_tail(x):
    """(Φ(-|x|), exp(-x²/2)) of the standard normal distribution, both relatively accurate."""


def _normal_tail(x):
    y = at_most(magnitude(x), widest(x))
    # The rounding error of y² would count y² / 2 times in the exponential.
    square = y * y
    rest = fma(y, y, -square)
    half = constant(x, 0.5)
    power = exp(-half * square)
    density = fma(power, -half * rest, power)
    return scaled_tail(y) * density, density


_by_precision(normal_tail, _normal_tail, _normal_tail)


def normal_density(exponential):
    """The density of the standard normal distribution from exp(-x²/2)."""


def _normal_density(exponential):
    return constant(exponential, _RECIPROCAL_ROOT_2_PI) * exponential


@overload(normal_density, jit_options=INLINE)
def _select_normal_density(exponential):
    return _normal_density if element_of(exponential) else None
