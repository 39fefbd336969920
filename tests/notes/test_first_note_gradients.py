"""The first note, N1.25 to N1.82: back-propagation, sample by sample and in matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from notes_math import Formulas, derivative, hadamard, product, sigmoid_slope
from notes_networks import FirstNote, changed

formula = Formulas()


@pytest.fixture(scope="module")
def note() -> FirstNote:
    return FirstNote()


@pytest.mark.parametrize("name", formula)
def test_gradient(note, name):
    formula.check(name, note)


def dz2(n, i):
    return n.a2(i) - n.y(i)


def dz1(n, j, i):
    return dz2(n, i) * n.w2(j) * sigmoid_slope(n.z1(j, i))


def dz1_column(n, i):
    return np.array([[dz1(n, j, i)] for j in n.units])


def x_column(n, i):
    return np.array([[n.x(i, k)] for k in n.inputs])


def output_error(n):
    """A2 - Y, (1, m)."""
    return n.matrix("A2") - n.Y


def slope_of_A1(n):
    """σ'(Z1) = A1 ⊙ (1 - A1), (n2, m)."""
    return np.array([[n.a1(j, i) * (1 - n.a1(j, i)) for i in n.samples] for j in n.units])


# One sample ----------------------------------------------------------------------------------------------------------


@formula("N1.25")
def output_error_of_a_sample(n):
    for i in n.samples:
        yield n.trace["dZ2"][0, i - 1], n.partial(i, "j", "z2"), n.a2(i) - n.y(i)


@formula("N1.26", "N1.41", "N1.42", "N1.43")
def slope_of_z2_in_W2(n):
    for i in n.samples:
        for j in n.units:
            yield n.trace["A1"][j - 1, i - 1], n.partial(i, "z2", "W2", j), n.a1(j, i)


@formula("N1.27", "N1.47", "N1.48")
def slope_of_the_loss_in_W2(n):
    for i in n.samples:
        for j in n.units:
            chain = n.partial(i, "j", "a2") * n.partial(i, "a2", "z2") * n.partial(i, "z2", "W2", j)
            yield n.alone(i)["dW2"][j - 1, 0], n.partial(i, "j", "W2", j), chain, dz2(n, i) * n.a1(j, i)


@formula("N1.28", "N1.46")
def gradient_of_a_sample_in_W2(n):
    for i in n.samples:
        yield n.alone(i)["dW2"], n.sample_gradient(i, "W2"), dz2(n, i) * n.column("a1", i)


@formula("N1.29", "N1.53")
def gradient_of_a_sample_in_b2(n):
    for i in n.samples:
        yield n.alone(i)["db2"].item(), n.partial(i, "j", "b2"), dz2(n, i)


@formula("N1.30")
def hidden_error_of_a_unit(n):
    for i in n.samples:
        for j in n.units:
            yield n.trace["dZ1"][j - 1, i - 1], n.partial(i, "j", "z1", j), dz1(n, j, i)


@formula("N1.31")
def hidden_error_of_a_sample(n):
    W2 = np.array([[n.w2(j)] for j in n.units])
    for i in n.samples:
        slope = np.array([[sigmoid_slope(n.z1(j, i))] for j in n.units])
        yield n.trace["dZ1"][:, [i - 1]], hadamard(W2 * dz2(n, i), slope)


@formula("N1.32", "N1.57")
def slope_of_z1_in_W1(n):
    for i in n.samples:
        for j in n.units:
            for k in n.inputs:
                yield n.partial(i, "z1", "W1", j, k, unit=j), n.x(i, k)
                for other in set(n.units) - {j}:
                    yield n.partial(i, "z1", "W1", j, k, unit=other), 0.0


@formula("N1.33")
def slope_of_the_loss_in_W1(n):
    for i in n.samples:
        for j in n.units:
            for k in n.inputs:
                chain = n.partial(i, "j", "z1", j) * n.partial(i, "z1", "W1", j, k, unit=j)
                direct = n.partial(i, "j", "W1", j, k)
                yield n.alone(i)["dW1"][k - 1, j - 1], direct, chain, dz1(n, j, i) * n.x(i, k)


@formula("N1.34")
def gradient_of_a_sample_in_W1(n):
    for i in n.samples:
        outer = product(x_column(n, i), dz1_column(n, i).T)
        yield n.alone(i)["dW1"], n.sample_gradient(i, "W1"), outer


@formula("N1.35")
def gradient_of_a_sample_in_b1(n):
    for i in n.samples:
        yield n.alone(i)["db1"], n.sample_gradient(i, "b1"), dz1_column(n, i)


@formula("N1.36", "N1.55")
def slope_of_z2_in_a1(n):
    for i in n.samples:
        for j in n.units:
            yield n.partial(i, "z2", "a1", j), n.w2(j), n.net.weights[1][j - 1, 0]


@formula("N1.37", "N1.56")
def slope_of_a1_in_z1(n):
    for i in n.samples:
        for j in n.units:
            yield n.partial(i, "a1", "z1", j, unit=j), n.a1(j, i) * (1 - n.a1(j, i)), sigmoid_slope(n.z1(j, i))


# The chain rule behind it: the output layer --------------------------------------------------------------------------


@formula("N1.38")
def loss_of_a_sample_again(n):
    for i in n.samples:
        yield n.alone(i)["J"], -(n.y(i) * math.log(n.a2(i)) + (1 - n.y(i)) * math.log(1 - n.a2(i)))


@formula("N1.39")
def slope_of_the_loss_in_a2(n):
    for i in n.samples:
        yield n.partial(i, "j", "a2"), (n.a2(i) - n.y(i)) / (n.a2(i) * (1 - n.a2(i)))


@formula("N1.40")
def slope_of_a2_in_z2(n):
    for i in n.samples:
        yield n.partial(i, "a2", "z2"), n.a2(i) * (1 - n.a2(i)), sigmoid_slope(n.z2(i))


@formula("N1.44")
def slope_of_z2_in_the_column_W2(n):
    for i in n.samples:
        yield [[n.partial(i, "z2", "W2", j)] for j in n.units], n.column("a1", i), n.trace["A1"][:, [i - 1]]


@formula("N1.45")
def slope_of_z2_in_b2(n):
    for i in n.samples:
        yield n.partial(i, "z2", "b2"), 1.0


@formula("N1.49")
def slope_of_J_in_W2(n):
    for j in n.units:
        mean = sum((n.a2(i) - n.y(i)) * n.a1(j, i) for i in n.samples) / n.m
        row = np.array([[n.a1(j, i) for i in n.samples]])
        column = np.array([[n.a2(i) - n.y(i)] for i in n.samples])
        yield n.trace["dW2"][j - 1, 0], n.partial_J("W2", j), mean, product(row, column).item() / n.m


@formula("N1.50")
def gradient_of_J_in_W2_is_a_column(n):
    yield n.trace["dW2"], [[n.partial_J("W2", j)] for j in n.units]


@formula("N1.51", "N1.52")
def gradient_of_J_in_W2(n):
    yield n.trace["dW2"], n.gradient("W2"), product(n.matrix("A1"), output_error(n).T) / n.m


@formula("N1.54")
def gradient_of_J_in_b2(n):
    mean = sum(n.partial(i, "j", "b2") for i in n.samples) / n.m
    errors = sum(n.a2(i) - n.y(i) for i in n.samples) / n.m
    yield n.trace["db2"].item(), n.partial_J("b2"), mean, errors, np.sum(output_error(n)) / n.m


# The chain rule behind it: the hidden layer --------------------------------------------------------------------------


@formula("N1.58")
def slope_of_z1_in_b1(n):
    for i in n.samples:
        for j in n.units:
            yield n.partial(i, "z1", "b1", j, unit=j), 1.0


def to_the_hidden_unit(n, i, j):
    """∂j/∂a2 · ∂a2/∂z2 · ∂z2/∂a1 · ∂a1/∂z1, each factor measured."""
    output = n.partial(i, "j", "a2") * n.partial(i, "a2", "z2")
    return output * n.partial(i, "z2", "a1", j) * n.partial(i, "a1", "z1", j, unit=j)


@formula("N1.59", "N1.61")
def chain_to_W1(n):
    for i in n.samples:
        for j in n.units:
            for k in n.inputs:
                five = to_the_hidden_unit(n, i, j) * n.partial(i, "z1", "W1", j, k, unit=j)
                bracket = n.partial(i, "j", "a2") * n.partial(i, "a2", "z2") * n.partial(i, "z2", "W1", j, k)
                outer = (n.a2(i) - n.y(i)) / (n.a2(i) * (1 - n.a2(i))) * (n.a2(i) * (1 - n.a2(i)))
                written = outer * n.w2(j) * n.a1(j, i) * (1 - n.a1(j, i)) * n.x(i, k)
                yield n.partial(i, "j", "W1", j, k), five, bracket, written


@formula("N1.60")
def chain_to_b1(n):
    for i in n.samples:
        for j in n.units:
            four = to_the_hidden_unit(n, i, j) * n.partial(i, "z1", "b1", j, unit=j)
            outer = (n.a2(i) - n.y(i)) / (n.a2(i) * (1 - n.a2(i))) * (n.a2(i) * (1 - n.a2(i)))
            yield n.partial(i, "j", "b1", j), four, outer * n.w2(j) * n.a1(j, i) * (1 - n.a1(j, i))


@formula("N1.62", "N1.63")
def slope_of_z2_in_W1(n):
    for i in n.samples:
        for j in n.units:
            for k in n.inputs:
                slopes = n.partial(i, "z2", "a1", j) * n.partial(i, "a1", "z1", j, unit=j)
                three = slopes * n.partial(i, "z1", "W1", j, k, unit=j)
                yield n.partial(i, "z2", "W1", j, k), three, n.w2(j) * n.a1(j, i) * (1 - n.a1(j, i)) * n.x(i, k)


def slope_in_W1(n, i, j, k):
    return (n.a2(i) - n.y(i)) * n.w2(j) * n.a1(j, i) * (1 - n.a1(j, i)) * n.x(i, k)


@formula("N1.64")
def slope_of_any_sample_in_W1(n):
    for i in n.samples:
        for j in n.units:
            for k in n.inputs:
                traced = n.trace["dZ1"][j - 1, i - 1] * n.X[k - 1, i - 1]
                yield n.partial(i, "j", "W1", j, k), slope_in_W1(n, i, j, k), traced


@formula("N1.65")
def slope_of_the_first_sample_in_W1(n):
    for j in n.units:
        for k in n.inputs:
            yield n.partial(1, "j", "W1", j, k), slope_in_W1(n, 1, j, k), n.alone(1)["dW1"][k - 1, j - 1]


@formula("N1.66", "N1.67", "N1.68", "N1.69")
def slope_of_the_first_sample_in_the_weights_of_unit_1(n):
    for k in (1, 2, 3, 4):
        yield n.partial(1, "j", "W1", 1, k), slope_in_W1(n, 1, 1, k), n.alone(1)["dW1"][k - 1, 0]


@formula("N1.82")
def slope_of_the_second_sample_in_W1(n):
    for j in n.units:
        for k in n.inputs:
            yield n.partial(2, "j", "W1", j, k), slope_in_W1(n, 2, j, k), n.alone(2)["dW1"][k - 1, j - 1]


@formula("N1.70")
def slope_of_J_in_W1(n):
    for j in n.units:
        for k in n.inputs:
            mean = sum(n.partial(i, "j", "W1", j, k) for i in n.samples) / n.m
            written = sum(slope_in_W1(n, i, j, k) for i in n.samples) / n.m
            yield n.trace["dW1"][k - 1, j - 1], n.partial_J("W1", j, k), mean, written


@formula("N1.71")
def slope_of_J_in_b1(n):
    for j in n.units:
        mean = sum(n.partial(i, "j", "b1", j) for i in n.samples) / n.m
        terms = ((n.a2(i) - n.y(i)) * n.w2(j) * n.a1(j, i) * (1 - n.a1(j, i)) for i in n.samples)
        yield n.trace["db1"][j - 1, 0], n.partial_J("b1", j), mean, sum(terms) / n.m


@formula("N1.72")
def gradient_of_J_in_b1_is_a_column(n):
    yield n.trace["db1"], [[n.partial_J("b1", j)] for j in n.units]


@formula("N1.73")
def gradient_of_J_in_W1_is_laid_out_as_W1(n):
    yield n.trace["dW1"], [[n.partial_J("W1", j, k) for j in n.units] for k in n.inputs]


# The hidden layer in matrices ----------------------------------------------------------------------------------------


@formula("N1.75")
def output_error_through_W2(n):
    W2 = np.array([[n.w2(j)] for j in n.units])
    written = [[(n.a2(i) - n.y(i)) * n.w2(j) for j in n.units] for i in n.samples]
    yield product(output_error(n).T, W2.T), written, (n.net.weights[1] @ n.trace["dZ2"]).T


def hidden_error_in_rows(n):
    """[(A2 - Y)ᵀ W2ᵀ] ⊙ σ'(Z1)ᵀ, (m, n2)."""
    W2 = np.array([[n.w2(j)] for j in n.units])
    return hadamard(product(output_error(n).T, W2.T), slope_of_A1(n).T)


@formula("N1.76", "N1.77")
def hidden_error_in_matrices(n):
    numeric = [[n.partial(i, "j", "z1", j) for j in n.units] for i in n.samples]
    yield n.trace["dZ1"].T, numeric, hidden_error_in_rows(n)


@formula("N1.74", "N1.78")
def gradient_of_J_in_W1(n):
    yield n.trace["dW1"], n.gradient("W1"), product(n.X, hidden_error_in_rows(n)) / n.m


@formula("N1.79")
def gradient_of_J_in_b1(n):
    mean = sum(hidden_error_in_rows(n)[[i - 1]].T for i in n.samples) / n.m
    yield n.trace["db1"], n.gradient("b1"), mean


@formula("N1.80")
def slope_of_the_hidden_layer(n):
    numeric = [[n.partial(i, "a1", "z1", j, unit=j) for i in n.samples] for j in n.units]
    yield slope_of_A1(n), numeric, n.trace["A1"] * (1 - n.trace["A1"])


@formula("N1.81")
def output_error_of_all_samples(n):
    yield n.trace["dZ2"], output_error(n), [[n.a2(i) - n.y(i) for i in n.samples]]


def test_gradients_of_single_samples_average_to_the_matrix_form(note):
    """(1/m) Σᵢ of what a batch of sample i alone gives is what the batch of all m gives, for every gradient and J."""
    assert note.m > 1
    alone = [note.alone(i) for i in note.samples]
    for name in ("J", "dW1", "db1", "dW2", "db2"):
        np.testing.assert_allclose(sum(one[name] for one in alone) / note.m, note.trace[name], rtol=1e-13, atol=1e-16)
    for name in ("Z1", "A1", "Z2", "A2", "dZ2", "dZ1"):
        np.testing.assert_allclose(np.hstack([one[name] for one in alone]), note.trace[name], rtol=1e-13, atol=1e-16)


def test_gradients_are_the_slopes_of_the_networks_own_loss(note):
    """Central differences of `Network.loss` itself, and `Network.loss_and_gradients` beside `Network.trace`."""
    J, gradients = note.net.loss_and_gradients(note.X, note.Y)
    np.testing.assert_allclose(J, note.trace["J"], rtol=1e-14)
    for layer in (1, 2):
        pairs = {"W": gradients.weights[layer - 1], "b": gradients.biases[layer - 1]}
        for kind, computed in pairs.items():
            traced = note.trace[f"d{kind}{layer}"]
            np.testing.assert_allclose(computed, traced, rtol=1e-13, atol=1e-16)
            for (r, c), value in np.ndenumerate(traced):
                slope = derivative(
                    lambda h, at=(layer, kind, r + 1, c + 1): changed(note.net, *at, h).loss(note.X, note.Y)
                )
                np.testing.assert_allclose(value, slope, rtol=1e-6, atol=1e-9)
