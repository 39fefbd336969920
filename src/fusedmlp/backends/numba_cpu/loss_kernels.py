"""The output layer of a tile: losses, output activations and dZ_L, for every loss. Compiled.

Z, A and Y are (nL, T) with t samples; `n` >= t is the number of them up to the end of a register. What lies between
may be anything finite; dZ is 0 there.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.mathematics import exp, clip_exponent, log1p_unit, one, zero
from fusedmlp.backends.numba_cpu.intrinsics import address_of_array, array_at
from fusedmlp.backends.numba_cpu.simd import at_least, lane_bytes, load_lanes, splat, store, where_above

BINARY, CATEGORICAL, SQUARED, POISSON, SUM_SQUARED = range(5)
LOSS_CODES = {
    "binary_cross_entropy": BINARY,
    "categorical_cross_entropy": CATEGORICAL,
    "squared_error": SQUARED,
    "poisson": POISSON,
    "sum_squared_error": SUM_SQUARED,
}


@internal
def output(code, Z, n):
    """A_L in place of Z_L: the output activation of a loss."""
    if code == CATEGORICAL:
        softmax(Z, n)
        return
    for k in range(Z.shape[0]):
        z = Z[k, :n]
        if code in (BINARY, SUM_SQUARED):
            for i in range(z.size):
                z[i] = one(z[i]) / (one(z[i]) + exp(-z[i]))
        elif code == POISSON:
            for i in range(z.size):
                z[i] = exp(clip_exponent(z[i]))


@internal
def binary_losses(z, y, j, scratch):
    """j += max(z, 0) - y z + log(1 + exp(-|z|)), a row of outputs, a register of samples at a time."""
    like, item = z[0], z.itemsize
    for i in range(0, z.size * item, lane_bytes(like)):
        logit = load_lanes(like, address_of_array(z) + i)
        positive = at_least(logit, zero(like))
        rest = log1p_unit(exp(logit - positive - positive))
        store(positive - load_lanes(like, address_of_array(y) + i) * logit + rest, address_of_array(scratch) + i)
    for i in range(z.size):
        j[i] += np.float64(scratch[i])


@internal
def largest_logits(like, Z, row, rows):
    """The largest of `rows` logits of a register of samples, at the address Z."""
    largest = load_lanes(like, Z)
    for k in range(1, rows):
        largest = at_least(load_lanes(like, Z + k * row), largest)
    return largest


@internal
def softmax(Z, n):
    """A_L = exp(Z - max) / Σ exp(Z - max) in place of Z_L, a register of samples at a time."""
    like, rows, item = Z[0, 0], Z.shape[0], Z.itemsize
    row = Z.shape[1] * item
    for z in range(address_of_array(Z), address_of_array(Z) + n * item, lane_bytes(like)):
        largest, total = largest_logits(like, z, row, rows), splat(zero(like))
        for k in range(rows):
            power = exp(load_lanes(like, z + k * row) - largest)
            total = total + power
            store(power, z + k * row)
        for k in range(rows):
            store(load_lanes(like, z + k * row) / total, z + k * row)


@internal
def categorical_losses(Z, Y, j, n, scratch):
    """j = log Σ exp(Z - max) - Σ Y (Z - max), a register of samples at a time.

    The largest logit's own term of the sum is 1; the others are summed apart from it, or nothing would be left of a
    small loss in float32. `scratch` : (2, >= n).
    """
    like, rows, item = Z[0, 0], Z.shape[0], Z.itemsize
    row, nothing, unit = Z.shape[1] * item, splat(zero(like)), splat(one(like))
    for i in range(0, n * item, lane_bytes(like)):
        z, y = address_of_array(Z) + i, address_of_array(Y) + i
        largest = largest_logits(like, z, row, rows)
        ties, others, right = nothing - unit, nothing, nothing
        for k in range(rows):
            shifted, target = load_lanes(like, z + k * row) - largest, load_lanes(like, y + k * row)
            below = -shifted
            ties = ties + where_above(below, zero(like), nothing, unit)
            others = others + where_above(below, zero(like), exp(shifted), shifted)  # 0, or NaN
            right = right + where_above(target, zero(like), target * shifted, nothing)
        store(ties + others, address_of_array(scratch) + i)
        store(right, address_of_array(scratch[1]) + i)
    for i in range(n):
        j[i] = np.log1p(np.float64(scratch[0, i])) - np.float64(scratch[1, i])


@internal
def per_sample(code, Z, Y, j, n, scratch):
    """j (n,) in float64 from the logits; `losses.LOSSES`' per_sample, a column per sample. `scratch` : (2, >= n)."""
    for i in range(n):
        j[i] = 0.0
    rows = Z.shape[0]
    if code == CATEGORICAL:
        categorical_losses(Z, Y, j, n, scratch)
        return
    for k in range(rows):
        z, y = Z[k, :n], Y[k, :n]
        if code == BINARY:
            binary_losses(z, y, j[:n], scratch[0])
        elif code == SQUARED:
            for i in range(n):
                residual = np.float64(z[i]) - np.float64(y[i])
                j[i] += 0.5 * residual * residual
        elif code == SUM_SQUARED:
            for i in range(n):
                residual = 1.0 / (1.0 + exp(-np.float64(z[i]))) - np.float64(y[i])
                j[i] += 0.5 * residual * residual
        else:
            for i in range(n):
                target = np.float64(y[i])
                y_log_y = target * np.log(target) if target > 0 else 0.0
                j[i] += y_log_y - target * np.float64(z[i]) - target + np.float64(exp(clip_exponent(z[i])))


@internal
def output_error(code, A, Y, w, t, n):
    """dZ_L in place of A_L: A - Y (⊙ A (1 - A) for the sum of squared errors), times the samples' weights if any."""
    for k in range(A.shape[0]):
        a, y = A[k, :n], Y[k, :n]
        if code == SUM_SQUARED:
            for i in range(a.size):
                a[i] = (a[i] - y[i]) * a[i] * (one(a[i]) - a[i])
        else:
            for i in range(a.size):
                a[i] -= y[i]
        if w.size:
            for i in range(w.size):
                a[i] *= w[i]
        for i in range(t, n):
            a[i] = 0


class LossRoutines(NamedTuple):
    """AddressCache of what follows for a dtype, compiled once; see `products.Products`."""

    losses: int
    activate: int
    error: int


@cache
def loss_kernels(dtype: str) -> LossRoutines:
    """`per_sample`, `output` and `output_error` of a dtype, with addresses of their arrays, rows of `step` numbers."""
    like = np.dtype(dtype).type(0)

    def losses(code, Z, Y, rows, step, j, scratch, n):
        z, y = array_at(like, Z, rows, step), array_at(like, Y, rows, step)
        per_sample(code, z, y, array_at(0.0, j, 1, n)[0], n, array_at(like, scratch, 2, step))

    def activate(code, Z, rows, step, n):
        output(code, array_at(like, Z, rows, step), n)

    def error(code, A, Y, rows, step, w, weights, t, n):
        a, y = array_at(like, A, rows, step), array_at(like, Y, rows, step)
        output_error(code, a, y, array_at(like, w, 1, weights)[0], t, n)

    return LossRoutines(routine_address(losses, 8), routine_address(activate, 5), routine_address(error, 9))
