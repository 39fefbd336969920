"""The table of activations: f as a function of Z, and f' in terms of A = f(Z) or, where that cannot be, of Z.

Writing f' in terms of A lets the backward pass do without Z: the forward pass overwrites Z with A. For softplus, gelu,
silu and mish, f' does not follow from A: the forward pass stores the slope f'(Z) beside A.
``xp`` is the array module of a backend (numpy, or cupy, which has the same functions).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
"""An array of a backend (``numpy.ndarray`` or ``cupy.ndarray``)."""


@dataclass(frozen=True)
class Activation:
    """A row of the table: an activation of the hidden layers.

    Attributes
    ----------
    name : str
    code : int
        Stands for the activation in compiled code and CUDA sources. It never changes its meaning.
    formula, derivative_formula : str
        The mathematics, for documentation and ``--help``.
    value : callable ``(xp, Z, out) -> out``
        A = f(Z); ``out`` may be ``Z`` itself.
    derivative : callable ``(xp, A) -> array``, optional
        f'(Z) in terms of A.
    slope : callable ``(xp, Z) -> array``, optional
        f'(Z) in terms of Z. A row has either this or `derivative`.
    glorot_factor : float
        The bound of the uniform initialiser is sqrt(glorot_factor / (n_in + n_out)).
    """

    name: str
    code: int
    formula: str
    derivative_formula: str
    value: Callable[[Any, Array, Array], Array]
    derivative: Callable[[Any, Array], Array] | None = None
    slope: Callable[[Any, Array], Array] | None = None
    glorot_factor: float = 6.0

    def __post_init__(self) -> None:
        if (self.derivative is None) == (self.slope is None):
            raise ValueError(f"{self.name}: expected either derivative or slope; got both or neither")

    @property
    def stores_slope(self) -> bool:
        """Whether the forward pass has to store f'(Z) beside A."""
        return self.slope is not None


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


LEAKY_SLOPE = 0.01
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
"""λ and α of Klambauer et al., "Self-normalizing neural networks", NIPS 2017, eq. 14."""


def leaky_relu(xp: Any, Z: Array, out: Array) -> Array:
    """A = Z where Z > 0, else 0.01 Z."""
    return xp.maximum(Z, Z * Z.dtype.type(LEAKY_SLOPE), out=out)


def elu(xp: Any, Z: Array, out: Array) -> Array:
    """A = Z where Z > 0, else exp(Z) - 1."""
    out[...] = xp.where(Z > 0, Z, xp.expm1(xp.minimum(Z, 0)))
    return out


def selu(xp: Any, Z: Array, out: Array) -> Array:
    """A = λ Z where Z > 0, else λ α (exp(Z) - 1)."""
    number = Z.dtype.type
    negative = number(SELU_SCALE * SELU_ALPHA) * xp.expm1(xp.minimum(Z, 0))
    out[...] = xp.where(Z > 0, number(SELU_SCALE) * Z, negative)
    return out


def softplus(xp: Any, Z: Array, out: Array) -> Array:
    """A = log(1 + exp(Z)) = max(Z, 0) + log(1 + exp(-|Z|))."""
    out[...] = xp.maximum(Z, 0) + xp.log1p(xp.exp(-xp.abs(Z)))
    return out


def gelu(xp: Any, Z: Array, out: Array) -> Array:
    """A = Z Φ(Z), Φ the normal distribution's (Hendrycks and Gimpel, "Gaussian error linear units", 2016)."""
    return xp.multiply(Z, _normal_cdf(xp, Z), out=out)


def silu(xp: Any, Z: Array, out: Array) -> Array:
    """A = Z sigmoid(Z)."""
    return xp.multiply(Z, _sigmoid_of(xp, Z), out=out)


def mish(xp: Any, Z: Array, out: Array) -> Array:
    """A = Z tanh(softplus(Z)) (Misra, "Mish: a self regularized non-monotonic activation function", BMVC 2020)."""
    return xp.multiply(Z, xp.tanh(softplus(xp, Z, xp.empty_like(Z))), out=out)


def softsign(xp: Any, Z: Array, out: Array) -> Array:
    """A = Z / (1 + |Z|) (Bergstra et al., "Quadratic polynomials learn better image features", 2009)."""
    out[...] = Z / (1 + xp.abs(Z))
    return out


def _sigmoid_of(xp: Any, Z: Array) -> Array:
    return sigmoid(xp, Z, xp.empty_like(Z))


def _normal_cdf(xp: Any, Z: Array) -> Array:
    """Φ(Z) = ½ erfc(-Z / √2), which keeps its accuracy where Z is far below 0.

    It is computed in float64: a rounded argument of z costs erfc z² times as much, relatively.
    """
    special = importlib.import_module("scipy.special" if xp is np else "cupyx.scipy.special")
    return (0.5 * special.erfc(Z.astype(xp.float64) * -math.sqrt(0.5))).astype(Z.dtype)


def _gelu_slope(xp: Any, Z: Array) -> Array:
    number = Z.dtype.type
    with np.errstate(over="ignore"):  # exp of -infinity is the right 0
        density = xp.exp(Z * Z * number(-0.5)) * number(1 / math.sqrt(2 * math.pi))
    return _normal_cdf(xp, Z) + Z * density


def _silu_slope(xp: Any, Z: Array) -> Array:
    S = _sigmoid_of(xp, Z)
    return S * (1 + Z * (1 - S))


def _mish_slope(xp: Any, Z: Array) -> Array:
    T = xp.tanh(softplus(xp, Z, xp.empty_like(Z)))
    return T + Z * _sigmoid_of(xp, Z) * (1 - T * T)


def _selu_derivative(xp: Any, A: Array) -> Array:
    number = A.dtype.type
    return xp.where(A > 0, number(SELU_SCALE), A + number(SELU_SCALE * SELU_ALPHA))


def _leaky_derivative(xp: Any, A: Array) -> Array:
    return xp.where(A > 0, A.dtype.type(1), A.dtype.type(LEAKY_SLOPE))


def _softsign_derivative(xp: Any, A: Array) -> Array:
    rest = 1 - xp.abs(A)
    return rest * rest


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
        Activation(
            "sigmoid", 0, "1 / (1 + exp(-Z))", "A (1 - A)", sigmoid, lambda xp, A: A * (1 - A), glorot_factor=2.0
        ),
        Activation("tanh", 1, "tanh(Z)", "1 - A²", tanh, lambda xp, A: 1 - A * A),
        Activation("relu", 2, "max(Z, 0)", "1 where A > 0, else 0", relu, lambda xp, A: (A > 0).astype(A.dtype)),
        Activation("identity", 3, "Z", "1", identity, lambda xp, A: xp.ones_like(A)),
        Activation("leaky_relu", 4, "max(Z, 0.01 Z)", "1 where A > 0, else 0.01", leaky_relu, _leaky_derivative),
        Activation(
            "elu", 5, "Z where Z > 0, else exp(Z) - 1", "1 where A > 0, else A + 1", elu,
            lambda xp, A: xp.where(A > 0, A.dtype.type(1), A + 1),
        ),
        Activation(
            "selu", 6, "λ Z where Z > 0, else λ α (exp(Z) - 1)", "λ where A > 0, else A + λ α", selu, _selu_derivative
        ),
        Activation("softplus", 7, "log(1 + exp(Z))", "sigmoid(Z)", softplus, slope=_sigmoid_of),
        Activation("gelu", 8, "Z Φ(Z)", "Φ(Z) + Z φ(Z)", gelu, slope=_gelu_slope),
        Activation("silu", 9, "Z sigmoid(Z)", "S (1 + Z (1 - S)), S = sigmoid(Z)", silu, slope=_silu_slope),
        Activation(
            "mish", 10, "Z tanh(softplus(Z))", "T + Z sigmoid(Z) (1 - T²), T = tanh(softplus(Z))", mish,
            slope=_mish_slope,
        ),
        Activation("softsign", 11, "Z / (1 + |Z|)", "(1 - |A|)²", softsign, _softsign_derivative),
    )
}  # fmt: skip

OUTPUT_ACTIVATIONS: dict[str, Callable[[Any, Array, Array], Array]] = {
    "sigmoid": sigmoid,
    "softmax": softmax,
    "identity": identity,
    "exp": exp,
}
"""What a loss may put on the logits; each loss fixes its own (see ``losses.LOSSES``)."""
