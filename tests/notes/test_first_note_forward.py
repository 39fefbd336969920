"""The first note, N1.1 to N1.24: the layout of its matrices, the forward pass, the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from notes_math import Formulas, derivative, product, sigmoid
from notes_networks import FirstNote, changed

formula = Formulas()


@pytest.fixture(scope="module")
def note() -> FirstNote:
    return FirstNote()


@pytest.mark.parametrize("name", formula)
def test_forward(note, name):
    formula.check(name, note)


# Layout --------------------------------------------------------------------------------------------------------------


@formula("N1.1")
def a_sample_is_a_column(n):
    for i in n.samples:
        column = np.array([[n.x(i, k)] for k in n.inputs])
        yield column.shape, (n.n1, 1)
        yield n.trace["Z1"][:, [i - 1]], n.net.trace(column, n.Y[:, [i - 1]])["Z1"]


@formula("N1.2")
def X_has_a_column_per_sample(n):
    X = np.array([[n.x(i, k) for i in n.samples] for k in n.inputs])
    yield X.shape, (n.n1, n.m)
    yield n.trace["Z1"], n.net.trace(X, n.Y)["Z1"]
    with pytest.raises(ValueError, match=r"pass X\.T"):
        n.net.trace(X.T, n.Y)


@formula("N1.3")
def a_target_is_a_number(n):
    for i in n.samples:
        yield n.alone(i)["J"], n.net.trace(n.X[:, [i - 1]], [[n.y(i)]])["J"]


@formula("N1.4")
def Y_has_a_column_per_sample(n):
    Y = np.array([[n.y(i) for i in n.samples]])
    yield Y.shape, (1, n.m)
    yield n.trace["J"], n.net.trace(n.X, Y)["J"]
    with pytest.raises(ValueError, match=r"pass Y\.T"):
        n.net.trace(n.X, Y.T)


@formula("N1.5", "N1.6")
def column_j_of_W1_holds_the_weights_of_unit_j(n):
    yield n.net.weights[0].shape, (n.n1, n.n2)
    for j in n.units:
        for k in n.inputs:
            slope = derivative(lambda h, j=j, k=k: changed(n.net, 1, "W", k, j, h).trace(n.X, n.Y)["Z1"])
            expected = np.zeros((n.n2, n.m))
            expected[j - 1] = n.X[k - 1]
            yield slope, expected


@formula("N1.7")
def b1_has_an_element_per_unit(n):
    yield n.net.biases[0].shape, (n.n2, 1)
    for j in n.units:
        slope = derivative(lambda h, j=j: changed(n.net, 1, "b", j, 1, h).trace(n.X, n.Y)["Z1"])
        expected = np.zeros((n.n2, n.m))
        expected[j - 1] = 1
        yield slope, expected


@formula("N1.15", "N1.16")
def W2_is_one_column(n):
    yield n.net.weights[1].shape, (n.n2, 1)
    for j in n.units:
        slope = derivative(lambda h, j=j: changed(n.net, 2, "W", j, 1, h).trace(n.X, n.Y)["Z2"])
        yield slope, n.trace["A1"][[j - 1]]


@formula("N1.17")
def b2_is_one_number(n):
    yield n.net.biases[1].shape, (1, 1)
    slope = derivative(lambda h: changed(n.net, 2, "b", 1, 1, h).trace(n.X, n.Y)["Z2"])
    yield slope, np.ones((1, n.m))


# From the input to the hidden layer ----------------------------------------------------------------------------------


@formula("N1.8")
def z1_of_a_unit(n):
    for j in n.units:
        W1_j = np.array([[n.w1(j, k)] for k in n.inputs])
        for i in n.samples:
            x = np.array([[n.x(i, k)] for k in n.inputs])
            terms = sum(n.w1(j, k) * n.x(i, k) for k in n.inputs) + n.b1(j)
            yield n.trace["Z1"][j - 1, i - 1], (product(W1_j.T, x) + n.b1(j)).item(), terms


@formula("N1.9", "N1.10")
def z1_of_a_sample_is_a_column_of_Z1(n):
    for i in n.samples:
        column = np.array([[sum(n.w1(j, k) * n.x(i, k) for k in n.inputs) + n.b1(j)] for j in n.units])
        yield n.trace["Z1"][:, [i - 1]], column


@formula("N1.11")
def elements_of_Z1(n):
    yield n.trace["Z1"], np.array([[n.z1(j, i) for i in n.samples] for j in n.units])


@formula("N1.12", "N1.14")
def elements_of_A1(n):
    yield n.trace["A1"], np.array([[sigmoid(n.z1(j, i)) for i in n.samples] for j in n.units])


@formula("N1.13")
def columns_of_A1(n):
    for i in n.samples:
        yield n.trace["A1"][:, [i - 1]], np.array([[sigmoid(n.z1(j, i))] for j in n.units])


# From the hidden layer to the output ---------------------------------------------------------------------------------


@formula("N1.18", "N1.19")
def z2_of_a_sample(n):
    W2 = np.array([[n.w2(j)] for j in n.units])
    for i in n.samples:
        terms = sum(n.w2(j) * n.a1(j, i) for j in n.units) + n.b2()
        yield n.trace["Z2"][:, [i - 1]], product(W2.T, n.column("a1", i)) + n.b2(), [[terms]]


@formula("N1.20")
def Z2_is_a_row(n):
    yield n.trace["Z2"], np.array([[n.z2(i) for i in n.samples]])


@formula("N1.21")
def a2_of_a_sample(n):
    for i in n.samples:
        yield n.trace["A2"][0, i - 1], sigmoid(sum(n.w2(j) * n.a1(j, i) for j in n.units) + n.b2())


@formula("N1.22")
def A2_is_a_row(n):
    row = np.array([[sigmoid(n.z2(i)) for i in n.samples]])
    yield n.trace["A2"], n.net.forward(n.X), row


# Loss ----------------------------------------------------------------------------------------------------------------


@formula("N1.23")
def loss_of_a_sample(n):
    for i in n.samples:
        yield n.alone(i)["J"], -(n.y(i) * math.log(n.a2(i)) + (1 - n.y(i)) * math.log(1 - n.a2(i)))


@formula("N1.24")
def loss_is_the_mean_over_the_samples(n):
    total = sum(n.y(i) * math.log(n.a2(i)) + (1 - n.y(i)) * math.log(1 - n.a2(i)) for i in n.samples)
    yield n.trace["J"], n.net.loss(n.X, n.Y), -total / n.m


def test_trace_holds_every_quantity_of_the_note_in_the_order_of_computation(note):
    shapes = {name: np.shape(value) for name, value in note.trace.items()}
    n1, n2, m = note.n1, note.n2, note.m
    assert list(shapes.items()) == [
        ("Z1", (n2, m)),
        ("A1", (n2, m)),
        ("Z2", (1, m)),
        ("A2", (1, m)),
        ("J", ()),
        ("dZ2", (1, m)),
        ("dW2", (n2, 1)),
        ("db2", (1, 1)),
        ("dZ1", (n2, m)),
        ("dW1", (n1, n2)),
        ("db1", (n2, 1)),
    ]
    assert {np.asarray(value).dtype for value in note.trace.values()} == {np.dtype("float64")}
