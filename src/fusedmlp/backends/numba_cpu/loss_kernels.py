"""The output layer of a tile: losses, output activations and dZ_{L-1}; compiled for one loss and dtype.

Z, A and Y are (nL, T) with t samples; `n` >= t is the number of them up to the end of a register. What lies between
may be anything finite; dZ is 0 there.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from fusedmlp.backends.numba_cpu.compilation import OPTIONS, internal, routine_address
from fusedmlp.backends.numba_cpu.intrinsics import address_of_array, array_at
from fusedmlp.backends.numba_cpu.mathematics import clip_exponent, exp, exp_up_to_the_largest, log1p_unit, one, zero
from fusedmlp.backends.numba_cpu.simd import at_least, lane_bytes, load_lanes, splat, store, where_above
from fusedmlp.model.losses import LOSSES

# Output activations: A_{L-1} in place of Z_{L-1} ----------------------------------------------------------------------


def _sigmoid_output(tag, Z, n):
    """A_L = 1 / (1 + exp(-Z))."""
    for k in range(Z.shape[0]):
        z = Z[k, :n]
        for i in range(z.size):
            z[i] = one(z[i]) / (one(z[i]) + exp(-z[i]))


def _identity_output(tag, Z, n):
    """A_L = Z."""


def _exp_output(tag, Z, n):
    """A_L = exp(Z), where it is finite."""
    for k in range(Z.shape[0]):
        z = Z[k, :n]
        for i in range(z.size):
            z[i] = exp_up_to_the_largest(clip_exponent(z[i]))


@internal
def largest_logits(like, Z, row, rows):
    """The largest of `rows` logits of a register of samples, at the address Z."""
    largest = load_lanes(like, Z)
    for k in range(1, rows):
        largest = at_least(load_lanes(like, Z + k * row), largest)
    return largest


def _softmax_output(tag, Z, n):
    """A_L = exp(Z - max) / Σ exp(Z - max), a register of samples at a time."""
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


# Losses: j (n,) in float64, 0 at first, from the logits; `losses.LOSSES`' per_sample. scratch : (2, >= n) -------------


def _binary_cross_entropies(tag, Z, Y, j, n, scratch):
    """j += max(z, 0) - y z + log(1 + exp(-|z|)), a register of samples at a time."""
    for k in range(Z.shape[0]):
        z, y, row = Z[k, :n], Y[k, :n], scratch[0]
        like, item = z[0], z.itemsize
        for i in range(0, z.size * item, lane_bytes(like)):
            logit = load_lanes(like, address_of_array(z) + i)
            positive = at_least(logit, zero(like))
            rest = log1p_unit(exp(logit - positive - positive))
            store(positive - load_lanes(like, address_of_array(y) + i) * logit + rest, address_of_array(row) + i)
        for i in range(z.size):
            j[i] += np.float64(row[i])


def _categorical_cross_entropies(tag, Z, Y, j, n, scratch):
    """j = log Σ exp(Z - max) - Σ Y (Z - max), a register of samples at a time.

    The largest logit's own term of the sum is 1; the others are summed apart from it, or nothing would be left of a
    small loss in float32.
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


def _squared_errors(tag, Z, Y, j, n, scratch):
    """j += ½ (z - y)²."""
    for k in range(Z.shape[0]):
        z, y = Z[k, :n], Y[k, :n]
        for i in range(n):
            residual = np.float64(z[i]) - np.float64(y[i])
            j[i] += 0.5 * residual * residual


def _sigmoid_squared_errors(tag, Z, Y, j, n, scratch):
    """j += ½ (σ(z) - y)²."""
    for k in range(Z.shape[0]):
        z, y = Z[k, :n], Y[k, :n]
        for i in range(n):
            residual = 1.0 / (1.0 + exp(-np.float64(z[i]))) - np.float64(y[i])
            j[i] += 0.5 * residual * residual


def _poisson_losses(tag, Z, Y, j, n, scratch):
    """j += y log(y / eᶻ) - y + eᶻ."""
    for k in range(Z.shape[0]):
        z, y = Z[k, :n], Y[k, :n]
        for i in range(n):
            target = np.float64(y[i])
            y_log_y = target * np.log(target) if target > 0 else 0.0
            j[i] += y_log_y - target * np.float64(z[i]) - target + exp(np.float64(clip_exponent(z[i])))


# dZ_{L-1} in place of A_{L-1} -----------------------------------------------------------------------------------------


def _plain_errors(tag, a, y):
    """dZ = A - Y."""
    for i in range(a.size):
        a[i] -= y[i]


def _sigmoid_errors(tag, a, y):
    """dZ = (A - Y) ⊙ A (1 - A)."""
    for i in range(a.size):
        a[i] = (a[i] - y[i]) * a[i] * (one(a[i]) - a[i])


# A named tuple per loss, which selects the kernels by its type, and is found by its name when numba reads cached code.
BinaryCrossEntropy = namedtuple("BinaryCrossEntropy", ())
CategoricalCrossEntropy = namedtuple("CategoricalCrossEntropy", ())
SquaredError = namedtuple("SquaredError", ())
Poisson = namedtuple("Poisson", ())
SumSquaredError = namedtuple("SumSquaredError", ())

TAGS: dict[str, Any] = {
    "binary_cross_entropy": BinaryCrossEntropy(),
    "categorical_cross_entropy": CategoricalCrossEntropy(),
    "squared_error": SquaredError(),
    "poisson": Poisson(),
    "sum_squared_error": SumSquaredError(),
}
"""Loss -> the tag that kernels take."""
_NAMES = {type(tag): name for name, tag in TAGS.items()}
_LOSSES: dict[type, Callable[..., Any]] = {
    BinaryCrossEntropy: _binary_cross_entropies,
    CategoricalCrossEntropy: _categorical_cross_entropies,
    SquaredError: _squared_errors,
    Poisson: _poisson_losses,
    SumSquaredError: _sigmoid_squared_errors,
}
_OUTPUTS: dict[str, Callable[..., Any]] = {
    "sigmoid": _sigmoid_output,
    "softmax": _softmax_output,
    "identity": _identity_output,
    "exp": _exp_output,
}


def output(tag, Z, n):
    """A_{L-1} in place of Z_{L-1}."""


def per_sample(tag, Z, Y, j, n, scratch):
    """j += the loss of each sample."""


def errors(tag, a, y):
    """dZ_{L-1} in place of a row of A_{L-1}."""


@overload(output, jit_options=OPTIONS)
def _select_output(tag, Z, n):
    return _OUTPUTS[LOSSES[_NAMES[tag.instance_class]].output_activation]


@overload(per_sample, jit_options=OPTIONS)
def _select_losses(tag, Z, Y, j, n, scratch):
    return _LOSSES[tag.instance_class]


@overload(errors, jit_options=OPTIONS)
def _select_errors(tag, a, y):
    return _sigmoid_errors if tag.instance_class is SumSquaredError else _plain_errors


class LossRoutines(NamedTuple):
    """Addresses of what is compiled for a loss and a dtype; see `register_products.ProductRoutines`."""

    losses: int
    activate: int
    error: int


def covers(loss: str) -> bool:
    """Whether there are kernels for a loss of `model.losses`."""
    return loss in TAGS and LOSSES[loss].output_activation in _OUTPUTS


@cache
def loss_kernels(loss: str, dtype: str) -> LossRoutines:
    """j, A_{L-1} and dZ_{L-1} of a loss; the routines take addresses of arrays, with rows of `step` numbers.

    Raises
    ------
    KeyError
        There are no kernels for the loss.
    """
    tag, like = TAGS[loss], np.dtype(dtype).type(0)

    def losses(Z, Y, rows, step, j, scratch, n):
        total = array_at(0.0, j, 1, n)[0]
        for i in range(n):
            total[i] = 0.0
        per_sample(
            tag,
            array_at(like, Z, rows, step),
            array_at(like, Y, rows, step),
            total,
            n,
            array_at(like, scratch, 2, step),
        )

    def activate(Z, rows, step, n):
        output(tag, array_at(like, Z, rows, step), n)

    def error(A, Y, rows, step, w, weights, t, n):
        weight = array_at(like, w, 1, weights)[0]
        for k in range(rows):
            a, y = array_at(like, A, rows, step)[k, :n], array_at(like, Y, rows, step)[k, :n]
            errors(tag, a, y)
            for i in range(weight.size):
                a[i] *= weight[i]
            for i in range(t, n):
                a[i] = 0

    return LossRoutines(routine_address(losses, 7), routine_address(activate, 4), routine_address(error, 8))
