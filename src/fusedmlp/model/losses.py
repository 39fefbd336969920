"""Losses as a table: each is paired with its output activation, and computed from the logits Z_{L-1}.

A column is a sample: Z_{L-1}, A_{L-1} and Y are (n_L, m), L being the number of layers. j, the loss of a sample, is
summed over the outputs. J = Σ wᵢ jᵢ / Σ wᵢ, except ``sum_squared_error``, where J = Σ wᵢ jᵢ as in the second note.

j is computed in float64 whatever the type of the network: logits of 1e38 are finite in float32, their squares
and sums are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from fusedmlp.checks import check_choice, check_number
from fusedmlp.model.activations import Array, largest_exponent


@dataclass(frozen=True)
class Loss:
    """A loss and the output activation it goes with.

    Attributes
    ----------
    name : str
    code : int
        Stands for the loss in compiled code and CUDA sources. It never changes its meaning.
    formula : str
        j of one sample, for documentation and ``--help``.
    output_activation : str
        A key of ``activations.OUTPUT_ACTIVATIONS``.
    reduction : {"mean", "sum"}
        Whether J divides by the sum of the sample weights.
    per_sample : callable ``(xp, Z, Y) -> (m,) float64``
        jᵢ from the logits.
    dZ : callable ``(xp, A, Y) -> (n_L, m)``
        ∂jᵢ/∂z in terms of the output A_{L-1}.
    targets : str
        The allowed values of Y in words, for error messages.
    valid_targets : callable ``(xp, Y) -> (n_L, m) or (1, m) bool``
        Where Y is allowed; nowhere where it is not finite.
    parameter : float, optional
        The number of a loss that has one; its name is then "huber:1.35", or "huber" with the number 1.
    """

    name: str
    code: int
    formula: str
    output_activation: str
    reduction: Literal["mean", "sum"]
    per_sample: Callable[[Any, Array, Array], Array]
    dZ: Callable[[Any, Array, Array], Array]
    targets: str
    valid_targets: Callable[[Any, Array], Array]
    parameter: float | None = None

    @property
    def kind(self) -> str:
        """The name without the number."""
        return self.name.partition(":")[0]


def _binary_cross_entropy(xp: Any, Z: Array, Y: Array) -> Array:
    """-[y log a + (1 - y) log(1 - a)] = max(z, 0) - y z + log(1 + exp(-|z|)): finite for any finite logit."""
    z = Z.astype(xp.float64)
    return (xp.maximum(z, 0) - Y * z + xp.log1p(xp.exp(-xp.abs(z)))).sum(axis=0)


def _categorical_cross_entropy(xp: Any, Z: Array, Y: Array) -> Array:
    """-Σ y log a = Σ_k y_k (logsumexp(z) - z_k), for one-hot y."""
    z = Z.astype(xp.float64)
    with np.errstate(over="ignore"):
        z -= z.max(axis=0, keepdims=True)
    # Now z <= 0 and the sum is at least 1. An overflow to -infinity must not meet a label of 0.
    return xp.log(xp.exp(z).sum(axis=0)) - (Y * xp.where(Y > 0, z, 0)).sum(axis=0)


def _squared_error(xp: Any, Z: Array, Y: Array) -> Array:
    """½‖y - ŷ‖² with ŷ = z."""
    residual = Z.astype(xp.float64) - Y
    return 0.5 * (residual * residual).sum(axis=0)


def _poisson(xp: Any, Z: Array, Y: Array) -> Array:
    """Σ y log(y/ŷ) - y + ŷ with ŷ = exp(z): zero at ŷ = y, and y log y = 0 at y = 0."""
    y = Y.astype(xp.float64)
    # The same bound as the output activation, in the type of the network.
    prediction = xp.exp(xp.minimum(Z, largest_exponent(Z.dtype)).astype(xp.float64))
    y_log_y = y * xp.log(xp.where(y > 0, y, 1))
    return (y_log_y - y * Z - y + prediction).sum(axis=0)


def _sum_squared_error(xp: Any, Z: Array, Y: Array) -> Array:
    """½‖y - σ(z)‖², equation (5) of the second note for one sample."""
    z = Z.astype(xp.float64)
    with np.errstate(over="ignore"):
        residual = 1 / (1 + xp.exp(-z)) - Y
    return 0.5 * (residual * residual).sum(axis=0)


def _absolute_error(xp: Any, Z: Array, Y: Array) -> Array:
    """Σ |y - ŷ| with ŷ = z."""
    return xp.abs(Z.astype(xp.float64) - Y).sum(axis=0)


def _sign_of_error(xp: Any, A: Array, Y: Array) -> Array:
    """dZ_{L-1} of the absolute error: the sign of A_{L-1} - Y, 0 where they are equal."""
    residual = A - Y
    return xp.where(residual > 0, 1, xp.where(residual < 0, -1, residual)).astype(A.dtype)


def _huber(xp: Any, Z: Array, Y: Array, delta: float) -> Array:
    """Σ ½(y - ŷ)² up to |y - ŷ| = δ, then δ(|y - ŷ| - ½δ), with ŷ = z (Huber, 1964)."""
    residual = xp.abs(Z.astype(xp.float64) - Y)
    inner = xp.minimum(residual, delta)
    return (inner * (residual - 0.5 * inner)).sum(axis=0)


def _huber_error(xp: Any, A: Array, Y: Array, delta: float) -> Array:
    """dZ_{L-1} of Huber's loss: A_{L-1} - Y between -δ and δ."""
    return xp.maximum(xp.minimum(A - Y, delta), -delta)


def _quantile(xp: Any, Z: Array, Y: Array, q: float) -> Array:
    """Σ q(y - ŷ) where y > ŷ, else (1 - q)(ŷ - y), with ŷ = z (Koenker and Bassett, 1978)."""
    residual = Y - Z.astype(xp.float64)
    return xp.maximum(q * residual, (q - 1) * residual).sum(axis=0)


def _quantile_error(xp: Any, A: Array, Y: Array, q: float) -> Array:
    """dZ_{L-1} of the quantile loss: 1 - q above Y, -q below it, 0 where they are equal."""
    residual = A - Y
    return xp.where(residual > 0, 1 - q, xp.where(residual < 0, -q, residual)).astype(A.dtype)


def _output_error(xp: Any, A: Array, Y: Array) -> Array:
    """dZ_{L-1} = A_{L-1} - Y, as for every canonical pair of loss and output activation."""
    return A - Y


def binary_targets(xp: Any, Y: Array) -> Array:
    """Where Y is 0 or 1."""
    return (Y == 0) | (Y == 1)


def _one_hot(xp: Any, Y: Array) -> Array:
    return binary_targets(xp, Y).all(axis=0, keepdims=True) & (Y.sum(axis=0, keepdims=True) == 1)


def finite_targets(xp: Any, Y: Array) -> Array:
    """Where Y is finite."""
    return xp.isfinite(Y)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "binary_cross_entropy",
            0,
            "Σ -[y log ŷ + (1 - y) log(1 - ŷ)],  ŷ = sigmoid(z)",
            "sigmoid",
            "mean",
            _binary_cross_entropy,
            _output_error,
            "labels 0 or 1",
            binary_targets,
        ),
        Loss(
            "categorical_cross_entropy",
            1,
            "-Σ y log ŷ,  ŷ = softmax(z)",
            "softmax",
            "mean",
            _categorical_cross_entropy,
            _output_error,
            "one-hot columns: labels 0 or 1, one 1 per sample",
            _one_hot,
        ),
        Loss(
            "squared_error",
            2,
            "½ ‖y - ŷ‖²,  ŷ = z",
            "identity",
            "mean",
            _squared_error,
            _output_error,
            "finite numbers",
            finite_targets,
        ),
        Loss(
            "poisson",
            3,
            "Σ y log(y / ŷ) - y + ŷ,  ŷ = exp(z)",
            "exp",
            "mean",
            _poisson,
            _output_error,
            "numbers >= 0",
            lambda xp, Y: (Y >= 0) & xp.isfinite(Y),
        ),
        Loss(
            "sum_squared_error",
            4,
            "½ ‖y - ŷ‖²,  ŷ = sigmoid(z), summed over the samples",
            "sigmoid",
            "sum",
            _sum_squared_error,
            lambda xp, A, Y: (A - Y) * A * (1 - A),
            "finite numbers",
            finite_targets,
        ),
        Loss(
            "absolute_error",
            5,
            "Σ |y - ŷ|,  ŷ = z",
            "identity",
            "mean",
            _absolute_error,
            _sign_of_error,
            "finite numbers",
            finite_targets,
        ),
        Loss(
            "huber",
            6,
            "Σ ½ (y - ŷ)², linear beyond huber:δ,  ŷ = z",
            "identity",
            "mean",
            lambda xp, Z, Y: _huber(xp, Z, Y, 1.0),
            lambda xp, A, Y: _huber_error(xp, A, Y, 1.0),
            "finite numbers",
            finite_targets,
            1.0,
        ),
        Loss(
            "quantile",
            7,
            "Σ q (y - ŷ) or (1 - q) (ŷ - y), quantile:q,  ŷ = z",
            "identity",
            "mean",
            lambda xp, Z, Y: _quantile(xp, Z, Y, 0.5),
            lambda xp, A, Y: _quantile_error(xp, A, Y, 0.5),
            "finite numbers",
            finite_targets,
            0.5,
        ),
    )
}
"""The losses; those with a number are here with its default."""

_NUMBERS = {
    "huber": ("delta", math.inf, _huber, _huber_error),
    "quantile": ("q", 1.0, _quantile, _quantile_error),
}
"""Loss -> its number's name, what it stays below (it is above 0), and the functions that take it."""


def loss_named(name: str) -> Loss:
    """The row of a name: a key of `LOSSES`, or one of its losses with a number, such as "quantile:0.9".

    Raises
    ------
    ValueError
        There is no such loss, or its number is out of range.
    """
    if isinstance(name, str) and name.partition(":")[0] in _NUMBERS and ":" in name:
        return _with_number(name)
    return LOSSES[check_choice("loss", name, LOSSES)]


@cache
def _with_number(name: str) -> Loss:
    kind, _, text = name.partition(":")
    argument, limit, *functions = _NUMBERS[kind]
    try:
        given = float(text)
    except ValueError:
        raise ValueError(f"loss: expected a number after {kind!r} and the colon; got {name!r}") from None
    number = check_number(f"loss: {kind}", given, 0, limit)
    per_sample, dZ = (partial(function, **{argument: number}) for function in functions)
    return replace(LOSSES[kind], name=f"{kind}:{number!r}", per_sample=per_sample, dZ=dZ, parameter=number)


def loss_of_outputs(name: str, A: Array, Y: Array) -> float:
    """J of outputs that have no logits of their own, such as a mean of several networks' outputs.

    Parameters
    ----------
    name : str
    A : numpy.ndarray of shape (n_L, m)
        Kept from 0 and 1 by the smallest normal number where a logarithm is taken.
    Y : numpy.ndarray of shape (n_L, m)
    """
    loss, a = loss_named(name), A.astype(np.float64)
    tiny, below_1 = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg
    if loss.output_activation == "sigmoid":
        a = np.clip(a, tiny, below_1)
        Z = np.log(a) - np.log1p(-a)
    elif loss.output_activation == "identity":
        Z = a
    else:
        Z = np.log(np.maximum(a, tiny))
    j = loss.per_sample(np, Z, Y.astype(np.float64))
    return float(j.mean() if loss.reduction == "mean" else j.sum())
