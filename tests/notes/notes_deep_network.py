"""A deep network with the symbols of the first note's recursion, element by element beside the trace of fusedmlp."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from notes_math import derivative, sigmoid, sigmoid_slope

from fusedmlp import Network

ACTIVATIONS = {
    "sigmoid": (sigmoid, sigmoid_slope),
    "tanh": (math.tanh, lambda z: 1 / math.cosh(z) ** 2),
    "relu": (lambda z: max(z, 0.0), lambda z: float(z > 0)),
    "identity": (lambda z: z, lambda z: 1.0),
}

COSTS = {
    "binary_cross_entropy": (
        lambda a, y: -(y * math.log(a) + (1 - y) * math.log(1 - a)),
        lambda a, y: (a - y) / (a * (1 - a)),
    ),
    "sum_squared_error": (lambda a, y: 0.5 * (y - a) ** 2, lambda a, y: a - y),
}
"""C of one output, and ∂C/∂a."""


class DeepNetwork:
    """Four layers of weights; by default every layer has another size than its neighbours.

    w[l][k, j] leads from unit j of layer l - 1 to unit k of layer l. Layers count from 1, units and samples from 0.
    """

    m = 3

    def __init__(self, activation: str, loss: str, sizes: tuple[int, ...] = (4, 3, 5, 2, 3)) -> None:
        generator = np.random.default_rng(5)
        self.sizes, self.last = sizes, len(sizes) - 1
        self.net = Network(list(self.sizes), activation, loss, dtype="float64", backend="numpy", random_state=generator)
        self.net.parameters.flat *= 1.5
        self.X = generator.normal(size=(self.sizes[0], self.m))
        self.Y = generator.integers(0, 2, size=(self.sizes[-1], self.m)).astype(float)
        self.trace = self.net.trace(self.X, self.Y)
        self.w = {layer: W.T for layer, W in enumerate(self.net.weights, start=1)}
        self.b = {layer: b.ravel() for layer, b in enumerate(self.net.biases, start=1)}
        self.layers, self.samples = range(1, self.last + 1), range(self.m)
        self.cost, self.cost_slope = COSTS[loss]
        self.averaged_over = self.m if loss == "binary_cross_entropy" else 1
        self._f, self._slope = ACTIVATIONS[activation]
        self.z = {i: self.sample(i)["z"] for i in self.samples}
        self.a = {i: self.sample(i)["a"] for i in self.samples}
        distances = [abs(z) for i in self.samples for layer in self.layers for z in self.z[i][layer]]
        assert min(distances) > 1e-3, "too near the corner of relu for a central difference"
        assert all(np.any(self.trace[f"dZ{layer}"]) for layer in self.layers), (
            "no error reaches a layer: nothing to check"
        )

    def units(self, layer: int) -> range:
        return range(self.sizes[layer])

    def f(self, layer: int, z: float) -> float:
        return sigmoid(z) if layer == self.last else self._f(z)

    def slope(self, layer: int, z: float) -> float:
        """σ'(z) of a layer; the output layer is a sigmoid."""
        return sigmoid_slope(z) if layer == self.last else self._slope(z)

    def sample(self, i: int, at: tuple[Any, ...] = (), h: float = 0.0) -> dict[str, Any]:
        """z and a of every layer, and C, of a sample, with h added to the quantity named by `at`."""
        z: dict[int, list[float]] = {}
        a: dict[int, list[float]] = {0: list(self.X[:, i])}
        for layer in self.layers:
            z[layer] = []
            for k in self.units(layer):
                total = self.b[layer][k] + h * (at in (("b", layer, k), ("z", layer, k)))
                for j in self.units(layer - 1):
                    total += (self.w[layer][k, j] + h * (at == ("w", layer, k, j))) * a[layer - 1][j]
                z[layer].append(total)
            a[layer] = [self.f(layer, value) + h * (at == ("a", layer, k)) for k, value in enumerate(z[layer])]
        outputs = zip(a[self.last], self.Y[:, i], strict=True)
        return {"z": z, "a": a, "C": sum(self.cost(output, y) for output, y in outputs)}

    def partial(self, i: int, *at: Any) -> float:
        """∂C/∂(the quantity named by `at`), by a central difference."""
        return float(derivative(lambda h: self.sample(i, at, h)["C"]))

    def delta(self, i: int, layer: int, k: int) -> float:
        """δ of a unit as the trace has it."""
        return float(self.trace[f"dZ{layer}"][k, i])

    def column(self, i: int, layer: int) -> np.ndarray:
        """δ of a layer, (n, 1), as the trace has it."""
        return self.trace[f"dZ{layer}"][:, [i]]

    def slopes(self, i: int, layer: int) -> np.ndarray:
        """σ'(z) of a layer, (n, 1)."""
        return np.array([[self.slope(layer, z)] for z in self.z[i][layer]])
