"""Activations as a table: f as a function of Z, and f' in terms of A = f(Z).

Writing f' in terms of A is what lets the backward pass drop Z: the forward pass overwrites Z with A.
``xp`` is the array module of a backend (numpy, or cupy, which has the same functions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
"""An array of whichever backend is at work (``numpy.ndarray`` or ``cupy.ndarray``)."""


@dataclass(frozen=True)
class Activation:
    """An activation of the hidden layers.

    Attributes
    ----------
    name : str
    formula, derivative_formula : str
        The mathematics, for documentation and ``--help``.
    value : callable ``(xp, Z, out) -> out``
        A = f(Z); ``out`` may be ``Z`` itself.
    derivative : callable ``(xp, A) -> array``
        f'(Z) written in terms of A.
    glorot_factor : float
        The bound of the uniform initialiser is sqrt(glorot_factor / (n_in + n_out)).
    """

    name: str
    formula: str
    derivative_formula: str
    value: Callable[[Any, Array, Array], Array]
    derivative: Callable[[Any, Array], Array]
    glorot_factor: float


def sigmoid(xp: Any, Z: Array, out: Array) -> Array:
    """A = 1 / (1 + exp(-Z)), in four in-place passes. exp may overflow to infinity: 1 / inf is the right 0."""
    with np.errstate(over="ignore"):
        xp.negative(Z, out=out)
        xp.exp(out, out=out)
    out += 1
    return xp.reciprocal(out, out=out)


def tanh(xp: Any, Z: Array, out: Array) -> Array:
    """A = tanh(Z)."""
    return xp.tanh(Z, out=out)


def relu(xp: Any, Z: Array, out: Array) -> Array:
    """A = max(Z, 0)."""
    return xp.maximum(Z, 0, out=out)


def identity(xp: Any, Z: Array, out: Array) -> Array:
    """A = Z."""
    if out is not Z:
        out[...] = Z
    return out


def softmax(xp: Any, Z: Array, out: Array) -> Array:
    """A = exp(Z) / Σ exp(Z) over the outputs (axis 0), shifted by the largest logit so that nothing overflows."""
    # The difference of two logits near the limits of the type may overflow to -infinity: exp(-inf) is the right 0.
    with np.errstate(over="ignore"):
        xp.subtract(Z, Z.max(axis=0, keepdims=True), out=out)
    xp.exp(out, out=out)
    out /= out.sum(axis=0, keepdims=True)
    return out


def largest_exponent(dtype: Any) -> np.floating:
    """The largest x whose exp(x) is finite in this floating-point type, and whose sums over samples are in float64."""
    number = np.dtype(dtype).type
    sums_stay_finite = number(np.log(np.finfo(np.float64).max) - 40)
    return min(np.nextafter(np.log(np.finfo(dtype).max), number(0)), sums_stay_finite)


def exp(xp: Any, Z: Array, out: Array) -> Array:
    """A = exp(Z), with Z held at the last value whose exponential is finite."""
    xp.minimum(Z, largest_exponent(Z.dtype), out=out)
    return xp.exp(out, out=out)


HIDDEN_ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("sigmoid", "1 / (1 + exp(-Z))", "A (1 - A)", sigmoid, lambda xp, A: A * (1 - A), 2.0),
        Activation("tanh", "tanh(Z)", "1 - A²", tanh, lambda xp, A: 1 - A * A, 6.0),
        Activation("relu", "max(Z, 0)", "1 where A > 0, else 0", relu, lambda xp, A: (A > 0).astype(A.dtype), 6.0),
        Activation("identity", "Z", "1", identity, lambda xp, A: xp.ones_like(A), 6.0),
    )
}

OUTPUT_ACTIVATIONS: dict[str, Callable[[Any, Array, Array], Array]] = {
    "sigmoid": sigmoid,
    "softmax": softmax,
    "identity": identity,
    "exp": exp,
}
"""What a loss may put on the logits; each loss fixes its own (see ``losses.LOSSES``)."""
