"""Right results in float64: the oracle of the tests (``tests/oracle.py``), applied to chunks of samples."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp import Adam


def _load_oracle() -> Any:
    """The module, by its path: benchmarks run from a checkout only."""
    path = Path(__file__).resolve().parents[1] / "tests" / "oracle.py"
    spec = importlib.util.spec_from_file_location("fusedmlp_oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = _load_oracle()

CHUNK_BYTES, DEVICE_CHUNK_BYTES = 4 * 2**20, 2**29
"""Size of the activations of one chunk of samples, on the host and on a GPU."""


def doubles(x: np.ndarray) -> np.ndarray:
    """x in float64."""
    return np.asarray(x, dtype=np.float64)


def to_host(x: Any) -> np.ndarray:
    """A numpy array with the values of a numpy or CuPy array."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def _chunks(X: Any, widths: Sequence[int]) -> list[slice]:
    n_bytes = CHUNK_BYTES if isinstance(X, np.ndarray) else DEVICE_CHUNK_BYTES
    rows = max(1, n_bytes // (8 * sum(widths)))
    return [slice(start, min(len(X), start + rows)) for start in range(0, len(X), rows)]


def _map(X: Any, function: Any, parts: list[slice]) -> Any:
    """The function of every chunk, in order; on the host on several threads."""
    if not isinstance(X, np.ndarray) or len(parts) == 1:
        return map(function, parts)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, parts))


def forward(layers: Sequence[Any], X: Any, activation: str, loss: str) -> np.ndarray:
    """The network's output, shape (m, nL), for layers W1, b1, W2, ... and X of shape (m, n1)."""
    layers = [x.astype(np.float64) for x in layers]

    def part(rows: slice) -> np.ndarray:
        return to_host(oracle.forward(layers[::2], layers[1::2], X[rows], activation, loss)[1])

    return np.concatenate(list(_map(X, part, _chunks(X, [len(b) for b in layers[1::2]]))))


def loss_and_gradients(
    layers: Sequence[Any], X: Any, Y: Any, activation: str, loss: str
) -> tuple[float, list[np.ndarray]]:
    """J and the gradients of W1, b1, W2, ... by X (m, n1) and Y (m, nL), numpy or CuPy arrays."""
    layers = [x.astype(np.float64) for x in layers]
    weights, biases = layers[::2], layers[1::2]
    divisor = 1 if loss == "sum_squared_error" else len(X)

    def part(rows: slice) -> Any:
        return oracle.loss_and_gradients(weights, biases, X[rows], Y[rows], activation, loss, divisor=divisor)

    J, dWs, dbs = 0.0, [0.0] * len(weights), [0.0] * len(biases)
    for more_J, more_dWs, more_dbs in _map(X, part, _chunks(X, [len(b) for b in biases])):
        J += more_J
        dWs = [total + more for total, more in zip(dWs, more_dWs, strict=True)]
        dbs = [total + more for total, more in zip(dbs, more_dbs, strict=True)]
    return J, [to_host(x) for pair in zip(dWs, dbs, strict=True) for x in pair]


def epoch_of_adam(
    layers: Sequence[np.ndarray],
    X: np.ndarray,
    Y: np.ndarray,
    activation: str,
    loss: str,
    batches: Sequence[np.ndarray],
    adam: Adam,
    corrected_epsilon: bool = False,
) -> tuple[float, np.ndarray]:
    """An epoch from zero moments.

    Parameters
    ----------
    layers, X, Y, activation, loss
        As of `loss_and_gradients`.
    batches : sequence of arrays of int
        The samples of each batch.
    adam : Adam
    corrected_epsilon : bool
        Whether epsilon is added to √(v / (1 - β₂ᵗ)), the root of the corrected moment, as torch does it, and not to √v.

    Returns
    -------
    J : float
        The losses before each step, averaged over the samples.
    change : array of shape (n_parameters,)
        The sum of all steps, in the order of `layers`.
    """
    theta = np.concatenate([np.asarray(np.ravel(x), np.float64, like=X) for x in layers])
    start, ends = theta, np.cumsum([x.size for x in layers])[:-1].tolist()
    moments = np.zeros_like(theta), np.zeros_like(theta)
    total = 0.0
    for t, samples in enumerate(batches, start=1):
        now = [part.reshape(x.shape) for part, x in zip(np.split(theta, ends), layers, strict=True)]
        rows = np.asarray(samples, like=X)
        J, gradients = loss_and_gradients(now, X[rows], Y[rows], activation, loss)
        total += J * len(samples)
        flat = np.concatenate([np.asarray(np.ravel(g), like=X) for g in gradients])
        # η √c / (1 - β₁ᵗ) · m / (√v + ε √c) is η / (1 - β₁ᵗ) · m / (√(v / c) + ε), with c = 1 - β₂ᵗ.
        factor = math.sqrt(1 - adam.beta_2**t) if corrected_epsilon else 1.0
        theta, *moments = adam_step(theta, flat, *moments, t, replace(adam, epsilon=adam.epsilon * factor))
    return total / sum(map(len, batches)), to_host(theta - start)


def adam_step(theta: Any, gradient: Any, m: Any, v: Any, t: int, adam: Adam) -> Any:
    """(theta, m, v) after step t of Adam."""
    return oracle.adam(theta, gradient, m, v, t, adam.learning_rate, adam.beta_1, adam.beta_2, adam.epsilon)
