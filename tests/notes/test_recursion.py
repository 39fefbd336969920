"""The recursion δˡ, N1.86 to N1.95, for four layers of weights and every hidden activation."""

from __future__ import annotations

import numpy as np
import pytest
from notes_deep_network import ACTIVATIONS, COSTS, DeepNetwork
from notes_math import Formulas, derivative, hadamard, product

formula = Formulas()


@pytest.fixture(scope="module", params=COSTS)
def loss(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=ACTIVATIONS)
def network(request, loss) -> DeepNetwork:
    return DeepNetwork(request.param, loss)


@pytest.mark.parametrize("name", formula)
def test_recursion(network, name):
    formula.check(name, network)


@formula("N1.86")
def delta_is_the_slope_in_z(n):
    for i in n.samples:
        for layer in n.layers:
            yield n.column(i, layer).ravel(), [n.partial(i, "z", layer, k) for k in n.units(layer)]


@formula("N1.87")
def delta_of_the_outputs(n):
    for i in n.samples:
        for k in n.units(n.last):
            slope = n.slope(n.last, n.z[i][n.last][k])
            written = n.cost_slope(n.a[i][n.last][k], n.Y[k, i]) * slope
            yield n.delta(i, n.last, k), n.partial(i, "a", n.last, k) * slope, written


@formula("N1.88")
def delta_of_the_output_layer(n):
    for i in n.samples:
        nabla = np.array([[n.cost_slope(a, y)] for a, y in zip(n.a[i][n.last], n.Y[:, i], strict=True)])
        yield n.column(i, n.last), hadamard(nabla, n.slopes(i, n.last))


@formula("N1.89")
def z_of_the_next_layer(n):
    for i in n.samples:
        for layer in n.layers:
            for k in n.units(layer):
                total = sum(n.w[layer][k, j] * n.a[i][layer - 1][j] for j in n.units(layer - 1)) + n.b[layer][k]
                yield n.trace[f"Z{layer}"][k, i], total


@formula("N1.90")
def slope_of_the_next_z(n):
    for i in n.samples:
        for layer in n.layers[:-1]:
            for j in n.units(layer):
                numeric = derivative(lambda h, i=i, at=("z", layer, j): n.sample(i, at, h)["z"][at[1] + 1])
                yield numeric, [n.w[layer + 1][k, j] * n.slope(layer, n.z[i][layer][j]) for k in n.units(layer + 1)]


@formula("N1.91")
def delta_from_the_layer_above(n):
    for i in n.samples:
        for layer in n.layers[:-1]:
            for j in n.units(layer):
                terms = (n.delta(i, layer + 1, k) * n.w[layer + 1][k, j] for k in n.units(layer + 1))
                yield (
                    n.delta(i, layer, j),
                    n.partial(i, "z", layer, j),
                    sum(terms) * n.slope(layer, n.z[i][layer][j]),
                )


@formula("N1.92")
def delta_as_a_row_times_a_column(n):
    for i in n.samples:
        for layer in n.layers[:-1]:
            for j in n.units(layer):
                row = np.array([[n.w[layer + 1][k, j] for k in n.units(layer + 1)]])
                written = n.slope(layer, n.z[i][layer][j]) * product(row, n.column(i, layer + 1)).item()
                yield n.delta(i, layer, j), written


@formula("N1.93")
def delta_of_a_layer(n):
    for i in n.samples:
        for layer in n.layers[:-1]:
            written = hadamard(product(n.w[layer + 1].T, n.column(i, layer + 1)), n.slopes(i, layer))
            yield n.column(i, layer), written


@formula("N1.94")
def slope_in_w(n):
    for i in n.samples:
        for layer in n.layers:
            for k in n.units(layer):
                for j in n.units(layer - 1):
                    yield n.partial(i, "w", layer, k, j), n.delta(i, layer, k) * n.a[i][layer - 1][j]
    for layer in n.layers:
        a = np.array([n.a[i][layer - 1] for i in n.samples]).T
        yield n.trace[f"dW{layer}"], product(a, n.trace[f"dZ{layer}"].T) / n.averaged_over


@formula("N1.95")
def slope_in_b(n):
    for i in n.samples:
        for layer in n.layers:
            yield n.column(i, layer).ravel(), [n.partial(i, "b", layer, k) for k in n.units(layer)]
    for layer in n.layers:
        yield n.trace[f"db{layer}"], sum(n.column(i, layer) for i in n.samples) / n.averaged_over


def test_gradients_are_the_slopes_of_J(network):
    """Central differences of `Network.loss` in the flat vector of all parameters of the deep network."""
    n = network
    flat, start = n.net.parameters.flat, n.net.parameters.flat.copy()

    def loss_at(change: np.ndarray) -> float:
        flat[...] = start + change
        return n.net.loss(n.X, n.Y)

    try:
        slopes = [derivative(lambda h, unit=unit: loss_at(h * unit)) for unit in np.eye(len(start))]
    finally:
        flat[...] = start
    traced = [n.trace[f"d{kind}{layer}"].ravel() for layer in n.layers for kind in "Wb"]
    np.testing.assert_allclose(np.concatenate(traced), slopes, rtol=1e-6, atol=1e-9)
