"""What every library should compute, in float64 by plain numpy, with no code of the package and none of theirs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax

from bench.exact import CHUNK_BYTES, doubles, sigmoid
from bench.peers.cases import ADAM, SOFTMAX, Case, Problem

Arrays = list[np.ndarray]

ACTIVATIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    # name: (f, f' in terms of A)
    "sigmoid": (sigmoid, lambda A: A * (1 - A)),
    "tanh": (np.tanh, lambda A: 1 - A * A),
    "relu": (lambda Z: np.maximum(Z, 0), lambda A: (A > 0).astype(np.float64)),
}


def names(case: Case) -> list[str]:
    """W1, b1, W2, b2, ..."""
    return [f"{kind}{layer + 1}" for layer in range(len(case.layer_sizes) - 1) for kind in "Wb"]


def expected(problem: Problem) -> dict[str, np.ndarray]:
    """Of a step J, dW1, db1, ...; of an epoch J and the change of all parameters; of a forward pass A, (m, nL)."""
    case = problem.case
    if case.task == "epoch":
        return _epoch(problem)
    layers = [doubles(x) for x in problem.layers()]
    J, gradients, outputs = 0.0, [np.zeros_like(x) for x in layers], []
    chunk = max(1, CHUNK_BYTES // (8 * sum(case.layer_sizes)))
    for start in range(0, case.m, chunk):
        x, y = (doubles(part[start : start + chunk]) for part in (problem.X, problem.Y))
        A = _activations(layers, x, case)
        if case.task == "forward":
            outputs.append(_output(A[-1], y, case)[0])
            continue
        part, parts = _sums(layers, A, y, case)
        J += part
        for gradient, more in zip(gradients, parts, strict=True):
            gradient += more
    if case.task == "forward":
        return {"A": np.concatenate(outputs)}
    named = zip(names(case), gradients, strict=True)
    return {"J": np.array(J / case.m), **{f"d{name}": gradient / case.m for name, gradient in named}}


def _activations(layers: Arrays, x: np.ndarray, case: Case) -> Arrays:
    """X, A1, ..., and the logits."""
    A = [x]
    for layer in range(0, len(layers), 2):
        Z = A[-1] @ layers[layer] + layers[layer + 1]
        A.append(Z if layer == len(layers) - 2 else ACTIVATIONS[case.hidden_activation][0](Z))
    return A


def _output(Z: np.ndarray, Y: np.ndarray, case: Case) -> tuple[np.ndarray, float]:
    """(output of the network, loss summed over samples)."""
    if case.loss == SOFTMAX:
        logs = log_softmax(Z, axis=1)
        return np.exp(logs), -float((Y * logs).sum())
    return sigmoid(Z), float((np.logaddexp(0, Z) - Y * Z).sum())


def _sums(layers: Arrays, A: Arrays, Y: np.ndarray, case: Case) -> tuple[float, Arrays]:
    """Loss and gradients, summed over samples."""
    output, J = _output(A[-1], Y, case)
    dZ, gradients = output - Y, []
    for layer in range(len(layers) - 2, -1, -2):
        gradients = [A[layer // 2].T @ dZ, dZ.sum(axis=0), *gradients]
        if layer:
            dZ = (dZ @ layers[layer].T) * ACTIVATIONS[case.hidden_activation][1](A[layer // 2])
    return J, gradients


def _epoch(problem: Problem) -> dict[str, np.ndarray]:
    case, layers = problem.case, [doubles(x) for x in problem.layers()]
    first, second = ([np.zeros_like(x) for x in layers] for _ in range(2))
    J = 0.0
    assert case.batch_size is not None
    for t, start in enumerate(range(0, case.m, case.batch_size), start=1):
        samples = problem.order[start : start + case.batch_size]
        x, y = doubles(problem.X[samples]), doubles(problem.Y[samples])
        part, gradients = _sums(layers, _activations(layers, x, case), y, case)
        J += part
        rate = ADAM.learning_rate * np.sqrt(1 - ADAM.beta_2**t) / (1 - ADAM.beta_1**t)
        for theta, m, v, g in zip(layers, first, second, gradients, strict=True):
            g /= len(samples)
            m += (1 - ADAM.beta_1) * (g - m)
            v += (1 - ADAM.beta_2) * (g * g - v)
            theta -= rate * m / (np.sqrt(v) + ADAM.epsilon)
    return {"J": np.array(J / case.m), "change": change(problem, layers)}


def change(problem: Problem, layers: Arrays) -> np.ndarray:
    """How far the parameters have moved from the initial ones, as one vector of float64."""
    return np.concatenate([np.ravel(x) for x in layers]).astype(np.float64) - problem.flat
