"""An independent float64 implementation of every loss and gradient. It shares no code with the package.

Rows are samples here, sums are written out with einsum, and every derivative goes through the chain rule with explicit
Jacobians, so that a mistake in the package's shortcuts (dZ = A - Y, f' in terms of A) cannot be repeated here.
"""

from __future__ import annotations

import numpy as np
from scipy import special

ACTIVATIONS = {
    "sigmoid": (special.expit, lambda z: special.expit(z) * special.expit(-z)),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(np.clip(z, -300, 300)) ** 2),
    "relu": (lambda z: np.where(z > 0, z, 0.0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
}


def _sigmoid_jacobian(z):
    return np.einsum("ij,jk->ijk", special.expit(z) * special.expit(-z), np.eye(z.shape[1]))


def _softmax_jacobian(z):
    p = special.softmax(z, axis=1)
    return np.einsum("ij,jk->ijk", p, np.eye(z.shape[1])) - np.einsum("ij,ik->ijk", p, p)


def _cross_entropy(z, y):
    return (y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)).sum(axis=1)


# loss: (prediction, its Jacobian (m, out, logit), j from the logits, ∂j/∂prediction)
LOSSES = {
    "binary_cross_entropy": (
        special.expit,
        _sigmoid_jacobian,
        _cross_entropy,
        lambda p, y, z: (1 - y) / special.expit(-z) - y / special.expit(z),
    ),
    "categorical_cross_entropy": (
        lambda z: special.softmax(z, axis=1),
        _softmax_jacobian,
        lambda z, y: -(y * special.log_softmax(z, axis=1)).sum(axis=1),
        lambda p, y, z: -y / p,
    ),
    "squared_error": (
        lambda z: z,
        lambda z: np.broadcast_to(np.eye(z.shape[1]), (*z.shape, z.shape[1])),
        lambda z, y: 0.5 * ((y - z) ** 2).sum(axis=1),
        lambda p, y, z: p - y,
    ),
    "poisson": (
        np.exp,
        lambda z: np.einsum("ij,jk->ijk", np.exp(z), np.eye(z.shape[1])),
        lambda z, y: (special.xlogy(y, y) - y * z - y + np.exp(z)).sum(axis=1),
        lambda p, y, z: 1 - y / p,
    ),
    "sum_squared_error": (
        special.expit,
        _sigmoid_jacobian,
        lambda z, y: 0.5 * ((y - special.expit(z)) ** 2).sum(axis=1),
        lambda p, y, z: p - y,
    ),
}


def forward(weights, biases, X, activation, loss):
    """(logits, prediction), rows as samples, for weights (n_in, n_out), biases (n_out,) or none, X (m, n1)."""
    z = _layers(weights, biases, X, activation)[0][-1]
    return z, LOSSES[loss][0](z)


def _layers(weights, biases, X, activation):
    f = ACTIVATIONS[activation][0]
    a, zs, inputs = np.asarray(X, np.float64), [], []
    for layer, W in enumerate(weights):
        inputs.append(a)
        z = np.einsum("ij,jk->ik", a, np.asarray(W, np.float64))
        if biases:
            z = z + np.asarray(biases[layer], np.float64).reshape(1, -1)
        zs.append(z)
        a = f(z)
    return zs, inputs


def loss_and_gradients(weights, biases, X, Y, activation, loss, sample_weight=None, alpha=0.0):
    """(J, [dW1, ...], [db1, ...]) for X (m, n1), Y (m, nL): dW (n_in, n_out), db (n_out,)."""
    weights = [np.asarray(W, np.float64) for W in weights]
    Y = np.asarray(Y, np.float64)
    predict, jacobian, per_sample, slope = LOSSES[loss]
    zs, inputs = _layers(weights, biases, X, activation)
    m = len(Y)
    w = np.ones(m) if sample_weight is None else np.asarray(sample_weight, np.float64)
    share = w if loss == "sum_squared_error" else w / w.sum()
    J = float(np.sum(share * per_sample(zs[-1], Y))) + 0.5 * alpha / m * sum(float(np.sum(W**2)) for W in weights)
    delta = np.einsum("i,ij,ijk->ik", share, slope(predict(zs[-1]), Y, zs[-1]), jacobian(zs[-1]))
    dWs, dbs = [], []
    for layer in range(len(weights) - 1, -1, -1):
        dWs.insert(0, np.einsum("ij,ik->jk", inputs[layer], delta) + alpha / m * weights[layer])
        dbs.insert(0, delta.sum(axis=0))
        if layer:
            delta = np.einsum("ik,jk->ij", delta, weights[layer]) * ACTIVATIONS[activation][1](zs[layer - 1])
    return J, dWs, dbs if biases else []
