"""Compiled kernels: single-threaded, without the GIL, vectorised by LLVM. `threads.py` runs them side by side.

Kernels are specialised by argument type; an activation is passed as a tag, an empty named tuple whose type
stands for it. Arrays are C-contiguous unless said otherwise; a matrix in F order is passed as its transpose.

How the exponentials vectorise: PyPI's llvmlite has no vector library, so ``np.exp`` in a loop stays scalar.
exp(x) = 2ⁿ eʳ with n = round(x / ln 2), |r| <= ln 2 / 2, and eʳ by its Taylor polynomial, needs nothing but
multiplications, additions and integer shifts. fastmath is limited to contraction and signed zeros: reassociation would
cancel the rounding trick, and "no NaN" would hide a training that diverges.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}


# For what only compiled code calls: without a way in from Python it compiles in half the time.
_INTERNAL = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


# Size and time of every source in this folder: a kernel holds code of the others that it calls.
_STAMP = tuple(
    (path.name, path.stat().st_mtime, path.stat().st_size) for path in sorted(Path(__file__).parent.glob("*.py"))
)


def _compile(function, options):
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no writable cache folder: that costs time in every process, nothing else
        return njit(**options)(function)
    # numba compares the stamp of the file that the kernel is defined in, and of no other.
    cache_file = getattr(dispatcher._cache, "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = (cache_file._source_stamp, _STAMP)
    return dispatcher


def compiled(function):
    """Compile on first call, and keep the machine code for later processes where a cache folder is writable."""
    return _compile(function, _OPTIONS)


def internal(function):
    """`compiled`, for what only compiled code calls."""
    return _compile(function, _INTERNAL)


def summing(function):
    """`internal`, where sums may be reordered so that they vectorise too. No exponential may be inside."""
    return _compile(function, _INTERNAL | {"fastmath": _OPTIONS["fastmath"] | {"reassoc"}})


# exp and expm1 -------------------------------------------------------------------------------------------------------

_F32, _F64 = np.float32, np.float64
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


@intrinsic
def _power_of_two(typing_context, shifted):
    """2ⁿ, where n sits in the low bits of `shifted`: n moves into the exponent of a float of the same type."""
    if shifted not in (types.float32, types.float64):
        raise TypingError(f"expected float32 or float64; got {shifted}")
    width, mantissa_bits, exponent_bias = (32, 23, 127) if shifted == types.float32 else (64, 52, 1023)

    def codegen(context, builder, signature, arguments):
        from llvmlite import ir

        integer = ir.IntType(width)
        n = builder.add(builder.bitcast(arguments[0], integer), ir.Constant(integer, exponent_bias))
        return builder.bitcast(builder.shl(n, ir.Constant(integer, mantissa_bits)), arguments[0].type)

    return shifted(shifted), codegen


def _exp_parts(x):
    """(2ⁿ, eʳ - 1) with x = n ln 2 + r; x is held where 2ⁿ is a normal number, NaN stays NaN."""


def _exp_parts_32(x):
    x = _LOWEST_32 if x < _LOWEST_32 else x
    x = _HIGHEST_32 if x > _HIGHEST_32 else x
    shifted = x * _LOG2E_32 + _MAGIC_32
    n = shifted - _MAGIC_32
    r = (x - n * _LN2_HIGH_32) - n * _LN2_LOW_32
    p = ((((_C7_32 * r + _C6_32) * r + _C5_32) * r + _C4_32) * r + _C3_32) * r + _C2_32
    return _power_of_two(shifted), r + (r * r) * p


def _exp_parts_64(x):
    x = _LOWEST_64 if x < _LOWEST_64 else x
    x = _HIGHEST_64 if x > _HIGHEST_64 else x
    shifted = x * _LOG2E_64 + _MAGIC_64
    n = shifted - _MAGIC_64
    r = (x - n * _LN2_HIGH_64) - n * _LN2_LOW_64
    p = (((((_C13 * r + _C12) * r + _C11) * r + _C10) * r + _C9) * r + _C8) * r + _C7
    p = ((((p * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    return _power_of_two(shifted), r + (r * r) * p


@overload(_exp_parts, jit_options=_OPTIONS)
def _select_exp_parts(x):
    return {types.float32: _exp_parts_32, types.float64: _exp_parts_64}.get(x)


def _one(x):
    """1 in the type of x: a plain 1 would turn float32 into float64."""


def _one_32(x):
    return _F32(1)


def _one_64(x):
    return _F64(1)


@overload(_one, jit_options=_OPTIONS)
def _select_one(x):
    return {types.float32: _one_32, types.float64: _one_64}.get(x)


def _zero(x):
    """0 in the type of x."""


def _zero_32(x):
    return _F32(0)


def _zero_64(x):
    return _F64(0)


@overload(_zero, jit_options=_OPTIONS)
def _select_zero(x):
    return {types.float32: _zero_32, types.float64: _zero_64}.get(x)


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


def _f(tag, x):
    """f(x) of the activation that the tag stands for."""


def _sigmoid(tag, x):
    two_n, em1 = _exp_parts(-x)
    return _one(x) / (_one(x) + (two_n * em1 + two_n))


def _tanh(tag, x):
    # tanh x = E / (E + 2) with E = exp(2x) - 1, which keeps its accuracy where x is small.
    two_n, em1 = _exp_parts(x + x)
    E = two_n * em1 + (two_n - _one(x))
    return E / (E + (_one(x) + _one(x)))


def _relu(tag, x):
    return _zero(x) if x <= _zero(x) else x  # NaN compares false and stays


def _identity(tag, x):
    return x


def _derivative(tag, x):
    """f' of the activation that the tag stands for, in terms of x = f(z)."""


def _sigmoid_derivative(tag, x):
    return x * (_one(x) - x)


def _tanh_derivative(tag, x):
    return _one(x) - x * x


def _relu_derivative(tag, x):
    return _one(x) if x > _zero(x) else _zero(x)


def _identity_derivative(tag, x):
    return _one(x)


@overload(_f, jit_options=_OPTIONS)
def _select_f(tag, x):
    return {Sigmoid: _sigmoid, Tanh: _tanh, Relu: _relu, Identity: _identity}.get(tag.instance_class)


@overload(_derivative, jit_options=_OPTIONS)
def _select_derivative(tag, x):
    return {
        Sigmoid: _sigmoid_derivative,
        Tanh: _tanh_derivative,
        Relu: _relu_derivative,
        Identity: _identity_derivative,
    }.get(tag.instance_class)


# Kernels --------------------------------------------------------------------------------------------------------------


# The inner loops run from 0 over slices: LLVM then knows that no index is negative, and vectorises. A kernel that works
# in place is given None for its input: handed the same array twice, the loop would find at run time that the two
# overlap, and take its scalar path.


@compiled
def activate_flat(tag, Z, out, start, stop):
    """out = f(Z), elements start to stop of vectors; Z None: in place. Reads and writes an element once."""
    a = out[start:stop]
    z = a if Z is None else Z[start:stop]
    for i in range(z.size):
        a[i] = _f(tag, z[i])


@compiled
def activate_rows(tag, Z, bias, out, row_start, row_stop):
    """out = f(Z + bias), rows of (n, m) matrices of any strides, bias (n,); Z None: in place."""
    for row in range(row_start, row_stop):
        a, b = out[row], bias[row]
        z = a if Z is None else Z[row]
        for i in range(z.size):
            a[i] = _f(tag, z[i] + b)


@compiled
def activate_columns(tag, Z, bias, out, row_start, row_stop):
    """out = f(Z + biasᵀ), rows of (m, n) matrices, bias (n,): `activate_rows` on transposes."""
    for row in range(row_start, row_stop):
        a = out[row]
        z = a if Z is None else Z[row]
        for i in range(z.size):
            a[i] = _f(tag, z[i] + bias[i])


@compiled
def times_derivative_flat(tag, A, out, start, stop):
    """out *= f'(A), elements start to stop of vectors. Reads two elements and writes one."""
    a, o = A[start:stop], out[start:stop]
    for i in range(a.size):
        o[i] *= _derivative(tag, a[i])


@compiled
def times_derivative_rows(tag, A, out, row_start, row_stop):
    """out *= f'(A), rows of (n, m) matrices of any strides."""
    for row in range(row_start, row_stop):
        a, o = A[row], out[row]
        for i in range(a.size):
            o[i] *= _derivative(tag, a[i])


_BLOCK = 1024
"""Columns that `products_times_derivative` works on at a time, so that a row's piece of `out` stays in cache."""


@compiled
def products_times_derivative(tag, U, V, A, out, row_start, row_stop, column_start, column_stop):
    """out = U V ⊙ f'(A) for a few products per element: U (n, k), V (k, m), A and out (n, m).

    `reference.trace`'s line dZ_{l-1} = W_l dZ_l ⊙ f'(A_{l-1}) in one pass over A and out: reads n·m elements of A and
    k·m of V (from cache after the first row), writes n·m; 2k + 3 flops an element.
    """
    for start in range(column_start, column_stop, _BLOCK):
        stop = min(start + _BLOCK, column_stop)
        for row in range(row_start, row_stop):
            a, o, v, u = A[row, start:stop], out[row, start:stop], V[0, start:stop], U[row, 0]
            for i in range(o.size):
                o[i] = u * v[i]
            for k in range(1, U.shape[1]):
                v, u = V[k, start:stop], U[row, k]
                for i in range(o.size):
                    o[i] += u * v[i]
            for i in range(o.size):
                o[i] *= _derivative(tag, a[i])


@compiled
def outer_times_derivative(tag, u, v, A, out, row_start, row_stop, column_start, column_stop):
    """out = u vᵀ ⊙ f'(A), the case of one output: u (n,), v (m,).

    An element: reads one of A, writes one of out, 4 flops.
    """
    columns = v[column_start:column_stop]
    for row in range(row_start, row_stop):
        a, o, w = A[row, column_start:column_stop], out[row, column_start:column_stop], u[row]
        for i in range(o.size):
            o[i] = w * columns[i] * _derivative(tag, a[i])


@compiled
def count_not_finite(bits, exponent_mask, start, stop):
    """How many of the floats whose bits are given as integers are NaN or infinite: those with an exponent of ones."""
    part = bits[start:stop]
    count = 0
    for i in range(part.size):
        count += (part[i] & exponent_mask) == exponent_mask
    return count
