"""The mathematics of both notes, top to bottom, in the backend's primitives: every quantity is kept and named.

The engines compute the same numbers with less memory and time, and are tested against this.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS, Array
from fusedmlp.model.losses import loss_named
from fusedmlp.model.parameters import Parameters


class Operations(Protocol):
    """The operations that the formulas are written in; every backend has them (`engines.primitives.Primitives`)."""

    @property
    def xp(self) -> Any:
        """The array module."""

    def matmul(self, a: Array, b: Array) -> Array:
        """The product of a (n, k) and b (k, m)."""

    def activate(self, Z: Array, activation: str) -> Array:
        """A = f(Z)."""

    def fused_backward(self, W: Array, dZ: Array, A: Array, activation: str) -> Array:
        """W dZ ⊙ f', with f' in terms of A; where the activation stores its slope, A is the slope itself."""


def trace(
    backend: Operations, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None = None
) -> dict[str, Any]:
    """Forward and backward propagation with every quantity by its name in the first note, for any depth.

    Parameters
    ----------
    backend : Operations
    parameters : Parameters
    X : array of shape (n1, m)
    Y : array of shape (nL, m)
    sample_weight : array of shape (1, m), optional

    Returns
    -------
    dict
        In the order of computation: Z1, A1, Z2, A2, ...: (n_{l+1}, m); J: float; then from the last layer to the first
        dZ_l = ∂(wᵢ jᵢ)/∂z_l: (n_{l+1}, m), dW_l = ∂J/∂W_l: (n_l, n_{l+1}), db_l = ∂J/∂b_l: (n_{l+1}, 1).
    """
    architecture, xp = parameters.architecture, backend.xp
    loss, f, last = loss_named(architecture.loss), architecture.hidden_activation, len(parameters.weights)
    W = dict(enumerate(parameters.weights, start=1))
    b = dict(enumerate(parameters.biases, start=1))
    Z: dict[int, Array] = {}
    A: dict[int, Array] = {0: X}
    quantities: dict[str, Any] = {}

    for layer in range(1, last + 1):  # Z_l = W_lᵀ A_{l-1} + b_l,  A_l = f(Z_l)
        Z[layer] = backend.matmul(W[layer].T, A[layer - 1])
        if architecture.bias:
            Z[layer] += b[layer]
        if layer < last:
            A[layer] = backend.activate(Z[layer], f)
        else:
            A[layer] = OUTPUT_ACTIVATIONS[loss.output_activation](xp, Z[layer], xp.empty_like(Z[layer]))
        quantities |= {f"Z{layer}": Z[layer], f"A{layer}": A[layer]}

    j = loss.per_sample(xp, Z[last], Y)  # (m,)
    w = xp.ones_like(j) if sample_weight is None else sample_weight[0].astype(np.float64)
    total_weight = float(w.sum()) if loss.reduction == "mean" else 1.0  # m, where no weights are given
    quantities["J"] = float((w * j).sum()) / total_weight  # J = Σ wᵢ jᵢ / Σ wᵢ

    dZ = loss.dZ(xp, A[last], Y)  # dZ_{L-1} = A_{L-1} - Y, for every pair of loss and output activation but one
    if sample_weight is not None:
        dZ = dZ * sample_weight
    for layer in range(last, 0, -1):
        dW = backend.matmul(A[layer - 1], dZ.T) / total_weight  # dW_l = A_{l-1} dZ_lᵀ / m
        quantities |= {f"dZ{layer}": dZ, f"dW{layer}": dW}
        if architecture.bias:
            quantities[f"db{layer}"] = dZ.sum(axis=1, keepdims=True) / total_weight  # db_l = Σ dZ_l / m
        if layer > 1:  # dZ_{l-1} = W_l dZ_l ⊙ f'(Z_{l-1}); f' follows from A_{l-1}, or is given as the slope
            slope = HIDDEN_ACTIVATIONS[f].slope
            dZ = backend.fused_backward(W[layer], dZ, slope(xp, Z[layer - 1]) if slope else A[layer - 1], f)
    return quantities


def in_rows(quantities: dict[str, Any]) -> dict[str, Any]:
    """The quantities of `trace` in the notation of the second note: rows as samples, layers counted from the input.

    Z_l becomes z^(l+1) = Z_lᵀ: ``z2``, A_l ``a2`` (the last one ``yhat``), dZ_l ``delta2``, dW_l ``dJdW1``, db_l
    ``dJdb1`` (one row). Only transposes: every array is a view.
    """
    last = max(int(name[1:]) for name in quantities if name[0] == "Z")
    rows: dict[str, Any] = {}
    for name, value in quantities.items():
        if name == "J":
            rows["J"] = value
            continue
        symbol, layer = name.rstrip("0123456789"), int(name.lstrip("ZAdWb"))
        if symbol in ("dW", "db"):
            rows[f"dJ{symbol}{layer}"] = value if symbol == "dW" else value.T
        elif symbol == "A" and layer == last:
            rows["yhat"] = value.T
        else:
            rows[{"Z": "z", "A": "a", "dZ": "delta"}[symbol] + str(layer + 1)] = value.T
    return rows
