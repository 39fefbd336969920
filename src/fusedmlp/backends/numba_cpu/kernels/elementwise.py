"""Compiled kernels of the composed engine: single-threaded, without the GIL. `threads.py` runs them side by side.

Kernels are specialised by argument type, and by an activation's tag. Arrays are C-contiguous unless said otherwise; a
matrix in F order is passed as its transpose. LLVM's own vectoriser does the loops.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.activation_formulas import derivative, f, f_and_slope
from fusedmlp.backends.numba_cpu.machine.compilation import compiled, from_python, internal
from fusedmlp.backends.numba_cpu.machine.intrinsics import load
from fusedmlp.backends.numba_cpu.machine.simd import item_bytes, lane_bytes, load_lanes, splat, sum_lanes

# `slope` is None, or an array that receives f' beside f. Inner loops run from 0 over slices: LLVM then knows that no
# index is negative, and vectorises. A kernel that works in place is given None for its input: handed the same array
# twice, the loop would find at run time that the two overlap, and take its scalar path.


@compiled
def activate_flat(tag, Z, out, slope, start, stop):
    """out = f(Z), elements start to stop of vectors; Z None: in place. Reads and writes an element once."""
    a = out[start:stop]
    z = a if Z is None else Z[start:stop]
    if slope is None:
        for i in range(z.size):
            a[i] = f(tag, z[i])
    else:
        s = slope[start:stop]
        for i in range(z.size):
            a[i], s[i] = f_and_slope(tag, z[i])


@compiled
def activate_rows(tag, Z, bias, out, slope, row_start, row_stop):
    """out = f(Z + bias), rows of (n, m) matrices of any strides, bias (n,); Z None: in place."""
    for row in range(row_start, row_stop):
        a, b = out[row], bias[row]
        z = a if Z is None else Z[row]
        if slope is None:
            for i in range(z.size):
                a[i] = f(tag, z[i] + b)
        else:
            s = slope[row]
            for i in range(z.size):
                a[i], s[i] = f_and_slope(tag, z[i] + b)


@compiled
def activate_columns(tag, Z, bias, out, slope, row_start, row_stop):
    """out = f(Z + biasᵀ), rows of (m, n) matrices, bias (n,): `activate_rows` on transposes."""
    for row in range(row_start, row_stop):
        a = out[row]
        z = a if Z is None else Z[row]
        if slope is None:
            for i in range(z.size):
                a[i] = f(tag, z[i] + bias[i])
        else:
            s = slope[row]
            for i in range(z.size):
                a[i], s[i] = f_and_slope(tag, z[i] + bias[i])


@compiled
def times_derivative_flat(tag, A, out, start, stop):
    """out *= f'(A), elements start to stop of vectors. Reads two elements and writes one."""
    a, o = A[start:stop], out[start:stop]
    for i in range(a.size):
        o[i] *= derivative(tag, a[i])


@compiled
def times_derivative_rows(tag, A, out, row_start, row_stop):
    """out *= f'(A), rows of (n, m) matrices of any strides."""
    for row in range(row_start, row_stop):
        a, o = A[row], out[row]
        for i in range(a.size):
            o[i] *= derivative(tag, a[i])


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
                o[i] *= derivative(tag, a[i])


@compiled
def outer_times_derivative(tag, u, v, A, out, row_start, row_stop, column_start, column_stop):
    """out = u vᵀ ⊙ f'(A), the case of one output: u (n,), v (m,).

    An element: reads one of A, writes one of out, 4 flops.
    """
    columns = v[column_start:column_stop]
    for row in range(row_start, row_stop):
        a, o, w = A[row, column_start:column_stop], out[row, column_start:column_stop], u[row]
        for i in range(o.size):
            o[i] = w * columns[i] * derivative(tag, a[i])


@internal
def holds_not_finite(like, address, rows, columns, row_step, column_step):
    """Whether a number x of a matrix is NaN or infinite: then x - x is NaN, and 0 otherwise.

    The arguments are int64: its address, rows and columns, and bytes from one row, and column, to the next.
    """
    item, size = item_bytes(like), lane_bytes(like)
    whole = columns * item // size * size if column_step == item else 0
    fours = whole // (4 * size) * (4 * size)
    sum_0, sum_1, sum_2, sum_3, rest = splat(like), splat(like), splat(like), splat(like), like
    for row in range(rows):
        at = address + row * row_step
        for i in range(at, at + fours, 4 * size):
            w, x = load_lanes(like, i), load_lanes(like, i + size)
            y, z = load_lanes(like, i + 2 * size), load_lanes(like, i + 3 * size)
            sum_0, sum_1, sum_2, sum_3 = sum_0 + (w - w), sum_1 + (x - x), sum_2 + (y - y), sum_3 + (z - z)
        for i in range(at + fours, at + whole, size):
            w = load_lanes(like, i)
            sum_0 = sum_0 + (w - w)
        for i in range(whole // item, columns):
            number = load(like, at + i * column_step)
            rest += number - number
    return sum_lanes(sum_0 + sum_1 + (sum_2 + sum_3)) + rest != like


@internal
def holds_not_binary(like, address, rows, columns, row_step, column_step):
    """Whether a number is neither 0 nor 1; arguments as those of `holds_not_finite`."""
    unit, found = like + 1, False
    for row in range(rows):
        at = address + row * row_step
        for i in range(columns):
            x = load(like, at + i * column_step)
            found |= (x != like) & (x != unit)
    return found


def any_not_finite(like):
    """`holds_not_finite` of a dtype."""

    def any_not_finite(address, rows, columns, row_step, column_step):
        return holds_not_finite(like, address, rows, columns, row_step, column_step)

    return any_not_finite


def any_not_binary(like):
    """`holds_not_binary` of a dtype."""

    def any_not_binary(address, rows, columns, row_step, column_step):
        return holds_not_binary(like, address, rows, columns, row_step, column_step)

    return any_not_binary


class Searches(NamedTuple):
    """Compiled functions of a dtype, to be called with five integers."""

    not_finite: Any
    not_binary: Any


@cache
def searches(dtype: np.dtype) -> Searches | None:
    """Compiled at the first call; None where the dtype is neither float32 nor float64."""
    if dtype not in (np.float32, np.float64):
        return None
    return Searches(*(from_python(search(dtype.type(0)), 5) for search in (any_not_finite, any_not_binary)))
