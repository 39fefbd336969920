"""The operations in float64 on the same numbers, by plain numpy and no code of the package."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bench import operands
from bench.grid import Shape
from fusedmlp import Adam, Gradients, Parameters

CHUNK_BYTES = 4 * 2**20
"""Of hidden activations at a time: they stay in cache."""


def doubles(x: np.ndarray) -> np.ndarray:
    """x in float64."""
    return np.asarray(x, dtype=np.float64)


def sigmoid(Z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-Z))."""
    A = np.exp(-Z)
    A += 1
    return np.reciprocal(A, out=A)


def forward(parameters: Parameters, X: np.ndarray) -> np.ndarray:
    """A2, shape (n3, m)."""
    (W1, W2), (b1, b2) = map(doubles, parameters.weights), map(doubles, parameters.biases)
    return sigmoid(W2.T @ sigmoid(W1.T @ doubles(X) + b1) + b2)


@lru_cache(maxsize=1)
def loss_and_gradients(shape: Shape) -> tuple[float, Gradients]:
    """J and its gradients over all m samples, a chunk of them at a time."""
    parameters, (X, Y) = operands.parameters(shape), operands.samples(shape)
    (W1, W2), (b1, b2) = map(doubles, parameters.weights), map(doubles, parameters.biases)
    gradients = Gradients(parameters.architecture, np.zeros(parameters.flat.size))
    (dW1, dW2), (db1, db2) = gradients.weights, gradients.biases
    J, chunk = 0.0, max(1, CHUNK_BYTES // (8 * shape.n2))
    for start in range(0, shape.m, chunk):
        x, y = doubles(X[:, start : start + chunk]), doubles(Y[:, start : start + chunk])
        A1 = sigmoid(W1.T @ x + b1)
        Z2 = W2.T @ A1 + b2
        J += float((np.logaddexp(0, Z2) - y * Z2).sum()) / shape.m
        dZ2 = (sigmoid(Z2) - y) / shape.m
        dW2 += A1 @ dZ2.T
        db2 += dZ2.sum(axis=1, keepdims=True)
        dZ1 = W2 @ dZ2
        dZ1 *= A1
        dZ1 *= np.subtract(1, A1, out=A1)
        dW1 += x @ dZ1.T
        db1 += dZ1.sum(axis=1, keepdims=True)
    return J, gradients


def adam_moments(shape: Shape) -> dict[str, np.ndarray]:
    """Moments of the gradient's size, as numbers of the shape's dtype: m normal, v its mean square."""
    g = loss_and_gradients(shape)[1].flat
    size = np.sqrt(np.mean(g * g))
    m = size * np.random.default_rng(4).standard_normal(g.size)
    return {"m": m.astype(shape.dtype), "v": np.full(g.size, size * size).astype(shape.dtype)}


def adam_step(shape: Shape, adam: Adam, t: int) -> np.ndarray:
    """Step t of Adam from `adam_moments`: the change of the parameters."""
    g = loss_and_gradients(shape)[1].flat
    moments = adam_moments(shape)
    m = adam.beta_1 * doubles(moments["m"]) + (1 - adam.beta_1) * g
    v = adam.beta_2 * doubles(moments["v"]) + (1 - adam.beta_2) * g * g
    rate = adam.learning_rate * np.sqrt(1 - adam.beta_2**t) / (1 - adam.beta_1**t)
    return -rate * m / (np.sqrt(v) + adam.epsilon)
