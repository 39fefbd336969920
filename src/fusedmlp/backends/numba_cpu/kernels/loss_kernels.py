"""The output layer of a tile: losses, output activations and dZ_{L-1}; compiled for one loss and dtype.

The number of a loss that has one, such as a quantile, is in the network's record: no kernel is compiled anew for it.

Z, A and Y are addresses of `rows` rows, `row` bytes apart, with t samples; `n` >= t is the number of them up to the end
of a register. What lies between may be anything finite; dZ is 0 there.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from fusedmlp.backends.numba_cpu.machine.compilation import INTERNAL, internal, routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import clear_bytes, load, vector_at
from fusedmlp.backends.numba_cpu.machine.mathematics import (
    INLINE,
    clip_exponent,
    exp,
    exp_up_to_the_largest,
    log1p_unit,
    one,
    zero,
)
from fusedmlp.backends.numba_cpu.machine.records import network_at
from fusedmlp.backends.numba_cpu.machine.simd import (
    at_least,
    item_bytes,
    lane_bytes,
    load_lanes,
    splat,
    store,
    sum_lanes,
    where_above,
)
from fusedmlp.model.losses import LOSSES

# Output activations: A_{L-1} in place of Z_{L-1} ----------------------------------------------------------------------


def _sigmoid_output(tag, like, Z, rows, row, width):
    """A_L = 1 / (1 + exp(-Z))."""
    for first in range(Z, Z + rows * row, row):
        for z in range(first, first + width, lane_bytes(like)):
            store(one(like) / (one(like) + exp(-load_lanes(like, z))), z)


def _identity_output(tag, like, Z, rows, row, width):
    """A_L = Z."""


def _exp_output(tag, like, Z, rows, row, width):
    """A_L = exp(Z), where it is finite."""
    for first in range(Z, Z + rows * row, row):
        for z in range(first, first + width, lane_bytes(like)):
            store(exp_up_to_the_largest(clip_exponent(load_lanes(like, z))), z)


@internal
def largest_logits(like, Z, rows, row):
    """The largest of `rows` logits of a register of samples, at the address Z."""
    largest = load_lanes(like, Z)
    for k in range(1, rows):
        largest = at_least(load_lanes(like, Z + k * row), largest)
    return largest


def _softmax_output(tag, like, Z, rows, row, width):
    """A_L = exp(Z - max) / Σ exp(Z - max), a register of samples at a time."""
    for z in range(Z, Z + width, lane_bytes(like)):
        largest, total = largest_logits(like, z, rows, row), splat(zero(like))
        for k in range(rows):
            power = exp(load_lanes(like, z + k * row) - largest)
            total = total + power
            store(power, z + k * row)
        for k in range(rows):
            store(load_lanes(like, z + k * row) / total, z + k * row)


# Losses: j of n samples in float64, 0 at first, from the logits; `losses.LOSSES`' per_sample. scratch : two rows ------


def _binary_cross_entropies(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += max(z, 0) - y z + log(1 + exp(-|z|)), a register of samples at a time."""
    item = item_bytes(like)
    for k in range(rows):
        for i in range(0, n * item, lane_bytes(like)):
            logit = load_lanes(like, Z + k * row + i)
            positive = at_least(logit, zero(like))
            rest = log1p_unit(exp(logit - positive - positive))
            store(positive - load_lanes(like, Y + k * row + i) * logit + rest, scratch + i)
        losses, row_losses = vector_at(0.0, j, n), vector_at(like, scratch, n)
        for i in range(n):
            losses[i] += np.float64(row_losses[i])


def _categorical_cross_entropies(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j = log Σ exp(Z - max) - Σ Y (Z - max), a register of samples at a time.

    The largest logit's own term of the sum is 1; the others are summed apart from it, or nothing would be left of a
    small loss in float32.
    """
    item, nothing, unit = item_bytes(like), splat(zero(like)), splat(one(like))
    for i in range(0, n * item, lane_bytes(like)):
        largest = largest_logits(like, Z + i, rows, row)
        ties, others, right = nothing - unit, nothing, nothing
        for k in range(rows):
            shifted, target = load_lanes(like, Z + k * row + i) - largest, load_lanes(like, Y + k * row + i)
            below = -shifted
            ties = ties + where_above(below, zero(like), nothing, unit)
            others = others + where_above(below, zero(like), exp(shifted), shifted)  # 0, or NaN
            right = right + where_above(target, zero(like), target * shifted, nothing)
        store(ties + others, scratch + i)
        store(right, scratch + row + i)
    losses, others_of, right_of = vector_at(0.0, j, n), vector_at(like, scratch, n), vector_at(like, scratch + row, n)
    for i in range(n):
        losses[i] = np.log1p(np.float64(others_of[i])) - np.float64(right_of[i])


def _squared_errors(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += ½ (z - y)²."""
    losses = vector_at(0.0, j, n)
    for k in range(rows):
        z, y = vector_at(like, Z + k * row, n), vector_at(like, Y + k * row, n)
        for i in range(n):
            residual = np.float64(z[i]) - np.float64(y[i])
            losses[i] += 0.5 * residual * residual


def _sigmoid_squared_errors(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += ½ (σ(z) - y)²."""
    losses = vector_at(0.0, j, n)
    for k in range(rows):
        z, y = vector_at(like, Z + k * row, n), vector_at(like, Y + k * row, n)
        for i in range(n):
            residual = 1.0 / (1.0 + exp(-np.float64(z[i]))) - np.float64(y[i])
            losses[i] += 0.5 * residual * residual


def _poisson_losses(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += y log(y / eᶻ) - y + eᶻ, with the eᶻ of the network's precision."""
    losses = vector_at(0.0, j, n)
    for k in range(rows):
        z, y = vector_at(like, Z + k * row, n), vector_at(like, Y + k * row, n)
        for i in range(n):
            target = np.float64(y[i])
            y_log_y = target * np.log(target) if target > 0 else 0.0
            losses[i] += y_log_y - target * np.float64(z[i]) - target + exp(np.float64(clip_exponent(z[i])))


def _absolute_errors(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += |z - y|."""
    losses = vector_at(0.0, j, n)
    for k in range(rows):
        z, y = vector_at(like, Z + k * row, n), vector_at(like, Y + k * row, n)
        for i in range(n):
            losses[i] += abs(np.float64(z[i]) - np.float64(y[i]))


def _huber_losses(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += ½ (z - y)² up to |z - y| = δ, then δ (|z - y| - ½ δ)."""
    losses = vector_at(0.0, j, n)
    for k in range(rows):
        z, y = vector_at(like, Z + k * row, n), vector_at(like, Y + k * row, n)
        for i in range(n):
            residual = abs(np.float64(z[i]) - np.float64(y[i]))
            inner = residual if residual <= parameter else parameter
            losses[i] += inner * (residual - 0.5 * inner)


def _quantile_losses(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += q (y - z) where y > z, else (1 - q) (z - y)."""
    losses = vector_at(0.0, j, n)
    for k in range(rows):
        z, y = vector_at(like, Z + k * row, n), vector_at(like, Y + k * row, n)
        for i in range(n):
            residual = np.float64(y[i]) - np.float64(z[i])
            losses[i] += residual * (parameter if residual > 0 else parameter - 1.0)


# dZ_{L-1} in place of A_{L-1} -----------------------------------------------------------------------------------------


def _plain_error(tag, a, y, parameter):
    """dZ = A - Y."""
    return a - y


def _sigmoid_error(tag, a, y, parameter):
    """dZ = (A - Y) ⊙ A (1 - A)."""
    return (a - y) * a * (one(a) - a)


def _sign_error(tag, a, y, parameter):
    """dZ = the sign of A - Y."""
    residual = a - y
    unit = splat(one(a))
    return where_above(residual, zero(a), unit, where_above(-residual, zero(a), -unit, residual))


def _clipped_error(tag, a, y, parameter):
    """dZ = A - Y, between -δ and δ."""
    residual, limit = a - y, splat(parameter)
    return where_above(residual, parameter, limit, where_above(-residual, parameter, -limit, residual))


def _quantile_error(tag, a, y, parameter):
    """dZ = 1 - q where A > Y, -q where A < Y."""
    residual, q = a - y, splat(parameter)
    return where_above(residual, zero(a), splat(one(a)) - q, where_above(-residual, zero(a), -q, residual))


# A named tuple per loss, which selects the kernels by its type, and is found by its name when numba reads cached code.
BinaryCrossEntropy = namedtuple("BinaryCrossEntropy", ())
CategoricalCrossEntropy = namedtuple("CategoricalCrossEntropy", ())
SquaredError = namedtuple("SquaredError", ())
Poisson = namedtuple("Poisson", ())
SumSquaredError = namedtuple("SumSquaredError", ())
AbsoluteError = namedtuple("AbsoluteError", ())
Huber = namedtuple("Huber", ())
Quantile = namedtuple("Quantile", ())

TAGS: dict[str, Any] = {
    "binary_cross_entropy": BinaryCrossEntropy(),
    "categorical_cross_entropy": CategoricalCrossEntropy(),
    "squared_error": SquaredError(),
    "poisson": Poisson(),
    "sum_squared_error": SumSquaredError(),
    "absolute_error": AbsoluteError(),
    "huber": Huber(),
    "quantile": Quantile(),
}
"""Loss -> the tag that kernels take."""
_NAMES = {type(tag): name for name, tag in TAGS.items()}
_LOSSES: dict[type, Callable[..., Any]] = {
    BinaryCrossEntropy: _binary_cross_entropies,
    CategoricalCrossEntropy: _categorical_cross_entropies,
    SquaredError: _squared_errors,
    Poisson: _poisson_losses,
    SumSquaredError: _sigmoid_squared_errors,
    AbsoluteError: _absolute_errors,
    Huber: _huber_losses,
    Quantile: _quantile_losses,
}
_ERRORS: dict[type, Callable[..., Any]] = {
    SumSquaredError: _sigmoid_error,
    AbsoluteError: _sign_error,
    Huber: _clipped_error,
    Quantile: _quantile_error,
}
"""The others' is A - Y."""
_OUTPUTS: dict[str, Callable[..., Any]] = {
    "sigmoid": _sigmoid_output,
    "softmax": _softmax_output,
    "identity": _identity_output,
    "exp": _exp_output,
}


def output(tag, like, Z, rows, row, width):
    """A_{L-1} in place of Z_{L-1}."""


def per_sample(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    """j += the loss of each sample."""


def error_of(tag, a, y, parameter):
    """dZ_{L-1} of a register of A_{L-1}."""


@overload(output, jit_options=INTERNAL)
def _select_output(tag, like, Z, rows, row, width):
    return _OUTPUTS[LOSSES[_NAMES[tag.instance_class]].output_activation]


@overload(per_sample, jit_options=INTERNAL)
def _select_losses(tag, like, Z, Y, rows, row, j, scratch, n, parameter):
    return _LOSSES[tag.instance_class]


@overload(error_of, jit_options=INLINE)
def _select_error(tag, a, y, parameter):
    return _ERRORS.get(tag.instance_class, _plain_error)


# Sums over samples ----------------------------------------------------------------------------------------------------


@internal
def add_weighted(like, losses, weights, t, loss, total_weight):
    """(loss + Σ wᵢ jᵢ, total_weight + Σ wᵢ)."""
    for i in range(t):
        weight = np.float64(load(like, weights + i * item_bytes(like)))
        loss += weight * load(0.0, losses + 8 * i)
        total_weight += weight
    return loss, total_weight


@internal
def sum_of(losses, t):
    """Σ jᵢ, a register at a time: one sum would wait for itself."""
    whole = 8 * t // lane_bytes(0.0) * lane_bytes(0.0)
    total = splat(0.0)
    for j in range(losses, losses + whole, lane_bytes(0.0)):
        total = total + load_lanes(0.0, j)
    rest = sum_lanes(total)
    for j in range(losses + whole, losses + 8 * t, 8):
        rest += load(0.0, j)
    return rest


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
    """j, A_{L-1} and dZ_{L-1} of a loss.

    Raises
    ------
    KeyError
        There are no kernels for the loss.
    """
    tag, like = TAGS[loss], np.dtype(dtype).type(0)

    number = np.dtype(dtype).type

    def losses(Z, Y, rows, row, j, scratch, n, network):
        clear_bytes(j, 8 * n)
        per_sample(tag, like, Z, Y, rows, row, j, scratch, n, network_at(network).loss_parameter)

    def activate(Z, rows, row, n):
        output(tag, like, Z, rows, row, n * item_bytes(like))

    def error(A, Y, rows, row, weights, t, n, network):
        item, parameter = item_bytes(like), number(network_at(network).loss_parameter)
        for k in range(rows):
            a = A + k * row
            for i in range(0, n * item, lane_bytes(like)):
                dZ = error_of(tag, load_lanes(like, a + i), load_lanes(like, Y + k * row + i), parameter)
                store(dZ * load_lanes(like, weights + i) if weights else dZ, a + i)
            clear_bytes(a + t * item, (n - t) * item)

    return LossRoutines(routine_address(losses, 8), routine_address(activate, 4), routine_address(error, 8))
