"""The second note, N2.1 to N2.30: rows as samples, no bias, several outputs, J = Σ ½(y - ŷ)²."""

from __future__ import annotations

import numpy as np
import pytest
from notes_math import Formulas, derivative, hadamard, product
from notes_networks import SecondNote, changed, f, f_slope

from fusedmlp import Network

formula = Formulas()

M, N_IN, N_HIDDEN, N_OUT = 5, 3, 4, 2


@pytest.fixture(scope="module")
def note() -> SecondNote:
    return SecondNote(N_IN, N_HIDDEN, N_OUT, M)


@pytest.mark.parametrize("name", formula)
def test_second_note(note, name):
    formula.check(name, note)


def delta3(n):
    return hadamard(-(n.y - n.yhat), f_slope(n.z3))


def delta2(n):
    return hadamard(product(delta3(n), n.W2.T), f_slope(n.z2))


# The table of symbols ------------------------------------------------------------------------------------------------


@formula("N2.1")
def X_has_a_row_per_sample(n):
    yield n.X.shape, (M, N_IN)
    for i in range(M):
        yield n.trace["z2"][[i]], n.net.trace(n.X[[i]], n.y[[i]], rows=True)["z2"]


@formula("N2.2")
def y_has_a_row_per_sample(n):
    yield n.y.shape, (M, N_OUT)
    alone = sum(n.net.trace(n.X[[i]], n.y[[i]], rows=True)["J"] for i in range(M))
    yield n.trace["J"], alone


@formula("N2.3", "N2.4")
def shapes_of_the_weights(n):
    yield n.net.weights[0].shape, (N_IN, N_HIDDEN)
    yield n.net.weights[1].shape, (N_HIDDEN, N_OUT)
    yield len(n.net.biases), 0


@formula("N2.5", "N2.15")
def logits_of_the_hidden_layer(n):
    yield n.trace["z2"].shape, (M, N_HIDDEN)
    yield n.trace["z2"], product(n.X, n.W1)


@formula("N2.6", "N2.16")
def activations_of_the_hidden_layer(n):
    yield n.trace["a2"].shape, (M, N_HIDDEN)
    yield n.trace["a2"], f(n.z2)


@formula("N2.7", "N2.26")
def logits_of_the_output_layer(n):
    yield n.trace["z3"].shape, (M, N_OUT)
    yield n.trace["z3"], product(n.a2, n.W2)


@formula("N2.17")
def output(n):
    yield n.trace["yhat"].shape, (M, N_OUT)
    yield n.trace["yhat"], f(n.z3), n.net.forward(n.X.T).T


@formula("N2.8", "N2.18")
def loss_is_one_number(n):
    terms = [0.5 * (n.y[i, o] - n.yhat[i, o]) ** 2 for i in range(M) for o in range(N_OUT)]
    yield n.trace["J"], n.net.loss(n.X.T, n.y.T), sum(terms)


@formula("N2.9", "N2.14", "N2.21")
def error_of_the_output_layer(n):
    yield n.trace["delta3"].shape, (M, N_OUT)
    yield n.trace["delta3"], n.partial("J", "z3"), delta3(n)


@formula("N2.13", "N2.22")
def error_of_the_hidden_layer(n):
    yield n.trace["delta2"].shape, (M, N_HIDDEN)
    yield n.trace["delta2"], n.partial("J", "z2"), delta2(n)


@formula("N2.23")
def error_of_the_hidden_layer_in_one(n):
    output_error = hadamard(-(n.y - n.yhat), f_slope(n.z3))
    yield n.trace["delta2"], n.partial("J", "z2"), hadamard(product(output_error, n.W2.T), f_slope(n.z2))


@formula("N2.11")
def slope_of_z3_in_z2(n):
    written = np.einsum("ij,oh,jh->iojh", np.eye(M), n.W2.T, f_slope(n.z2))
    numeric = n.partial("z3", "z2")
    yield numeric, written
    yield n.trace["delta2"], np.einsum("io,iojh->jh", n.trace["delta3"], numeric)


# Back-propagation ----------------------------------------------------------------------------------------------------


@formula("N2.10", "N2.20")
def gradient_in_W2(n):
    yield n.trace["dJdW2"].shape, (N_HIDDEN, N_OUT)
    yield n.trace["dJdW2"], n.partial("J", "W2"), product(n.a2.T, delta3(n))


@formula("N2.12")
def gradient_in_W1(n):
    yield n.trace["dJdW1"].shape, (N_IN, N_HIDDEN)
    yield n.trace["dJdW1"], n.partial("J", "W1"), product(n.X.T, delta2(n))


@formula("N2.19")
def gradient_in_the_weights_of_any_layer(n):
    a = {1: n.X, 2: n.a2}
    delta = {2: delta2(n), 3: delta3(n)}
    for k in (1, 2):
        yield n.trace[f"dJdW{k}"], n.partial("J", f"W{k}"), product(a[k].T, delta[k + 1])


@formula("N2.24")
def chain_through_the_output(n):
    yield n.trace["dJdW2"], np.einsum("io,iohp->hp", -(n.y - n.yhat), n.partial("yhat", "W2"))


@formula("N2.25")
def chain_through_z3(n):
    output_slope = np.einsum("ioio->io", n.partial("yhat", "z3"))
    by_tensors = np.einsum("io,io,iohp->hp", -(n.y - n.yhat), output_slope, n.partial("z3", "W2"))
    yield n.trace["dJdW2"], by_tensors, product(n.a2.T, hadamard(-(n.y - n.yhat), f_slope(n.z3)))


@formula("N2.27")
def slope_of_z3_in_one_weight(n):
    numeric = n.partial("z3", "W2")
    for o in range(N_OUT):
        for h in range(N_HIDDEN):
            yield numeric[:, o, h, o], n.a2[:, h], n.trace["a2"][:, h]
    yield numeric, np.einsum("ih,op->iohp", n.a2, np.eye(N_OUT))


@formula("N2.28")
def every_gradient_through_the_last_z(n):
    for k in (1, 2):
        yield n.trace[f"dJdW{k}"], np.einsum("io,iohp->hp", delta3(n), n.partial("z3", f"W{k}"))


@formula("N2.29")
def link_from_z_to_the_a_below(n):
    links = np.einsum("iojh,jhkl->iokl", n.partial("z3", "a2"), n.partial("a2", "W1"))
    yield n.partial("z3", "W1"), links
    yield n.partial("z3", "a2"), np.einsum("ij,oh->iojh", np.eye(M), n.W2.T)


@formula("N2.30")
def link_from_a_to_its_z(n):
    yield n.partial("a2", "W1"), np.einsum("ih,ihkl->ihkl", f_slope(n.z2), n.partial("z2", "W1"))
    yield n.partial("z2", "W1"), np.einsum("ik,hl->ihkl", n.X, np.eye(N_HIDDEN))


def test_trace_in_rows_holds_the_names_of_the_note(note):
    expected = ["z2", "a2", "z3", "yhat", "J", "delta3", "dJdW2", "delta2", "dJdW1"]
    assert list(note.trace) == expected


def test_gradients_are_the_slopes_of_the_networks_own_loss(note):
    _, gradients = note.net.loss_and_gradients(note.X.T, note.y.T)
    for layer in (1, 2):
        traced = note.trace[f"dJdW{layer}"]
        np.testing.assert_allclose(gradients.weights[layer - 1], traced, rtol=1e-13, atol=1e-16)
        for (r, c), value in np.ndenumerate(traced):
            slope = derivative(
                lambda h, at=(layer, "W", r + 1, c + 1): changed(note.net, *at, h).loss(note.X.T, note.y.T)
            )
            np.testing.assert_allclose(value, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_are_the_transposes_of_columns(bias):
    """`trace(rows=True)` gives the quantities of `trace` for a deep network, under the second note's names."""
    net = Network([3, 4, 2, 3, 2], "tanh", "sum_squared_error", bias, "float64", "numpy", random_state=1)
    generator = np.random.default_rng(2)
    X, y = generator.normal(size=(6, 3)), generator.uniform(size=(6, 2))
    columns, rows = net.trace(X.T, y.T), net.trace(X, y, rows=True)
    assert len(rows) == len(columns)
    assert rows["J"] == columns["J"]
    np.testing.assert_array_equal(rows["yhat"], columns["A4"].T)
    for layer in (1, 2, 3, 4):
        np.testing.assert_array_equal(rows[f"z{layer + 1}"], columns[f"Z{layer}"].T)
        np.testing.assert_array_equal(rows[f"delta{layer + 1}"], columns[f"dZ{layer}"].T)
        np.testing.assert_array_equal(rows[f"dJdW{layer}"], columns[f"dW{layer}"])
        if layer < 4:
            np.testing.assert_array_equal(rows[f"a{layer + 1}"], columns[f"A{layer}"].T)
        if bias:
            np.testing.assert_array_equal(rows[f"dJdb{layer}"], columns[f"db{layer}"].T)
