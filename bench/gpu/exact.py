"""Loss and gradients in float64, on the device, by its array module alone: no code of the package, none of a peer."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers import exact
from bench.peers.cases import Problem

CHUNK_BYTES = 2**30
"""Of hidden activations at a time on a GPU."""


def expected(problem: Problem, xp: Any) -> dict[str, np.ndarray]:
    """What every library should compute, as numpy arrays.

    An epoch is small, and computed on the host as for the other benchmarks. A step is that of a network with one
    sigmoid hidden layer and binary cross-entropy.

    Parameters
    ----------
    problem : Problem
        With X and Y in arrays of `xp`.
    """
    if problem.case.task == "epoch":
        return exact.expected(problem._replace(X=to_host(problem.X), Y=to_host(problem.Y)))
    m = problem.case.m
    W1, b1, W2, b2 = (xp.asarray(x.astype(np.float64)) for x in problem.layers())
    names, sums = exact.names(problem.case), [xp.zeros_like(x) for x in (W1, b1, W2, b2)]
    J, chunk = xp.zeros(()), max(1, CHUNK_BYTES // (8 * problem.case.layer_sizes[1]))
    for start in range(0, m, chunk):
        x, y = (part[start : start + chunk].astype(np.float64) for part in (problem.X, problem.Y))
        A1 = _sigmoid(xp, x @ W1 + b1)
        Z2 = A1 @ W2 + b2
        J = J + (xp.logaddexp(xp.zeros_like(Z2), Z2) - y * Z2).sum()
        dZ2 = _sigmoid(xp, Z2) - y
        sums[2] += A1.T @ dZ2
        sums[3] += dZ2.sum(axis=0)
        dZ1 = dZ2 * W2[:, 0] if W2.shape[1] == 1 else dZ2 @ W2.T
        dZ1 *= A1
        A1 -= 1
        dZ1 *= A1  # A1 - 1: the sign is put right below
        sums[0] -= x.T @ dZ1
        sums[1] -= dZ1.sum(axis=0)
    gradients = {f"d{name}": to_host(total / m) for name, total in zip(names, sums, strict=True)}
    return {"J": to_host(J / m), **gradients}


def to_host(x: Any) -> np.ndarray:
    """A numpy array of what may be a CuPy array."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def _sigmoid(xp: Any, Z: Any) -> Any:
    A = xp.exp(-Z)
    A += 1
    return xp.reciprocal(A, out=A)
