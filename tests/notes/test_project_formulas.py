"""What the code computes beside the notes, P.3 to P.15: the fused product, losses from logits, weights, L2."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from notes_math import Formulas, derivative, relative_error

from fusedmlp import Network, get_backend
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES

formula = Formulas()


@pytest.mark.parametrize("name", formula)
def test_project(name):
    formula.check(name)


# The fused product ---------------------------------------------------------------------------------------------------

SLOPES_IN_A = {
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: 1 - a * a,
    "relu": lambda a: float(a > 0),
    "identity": lambda a: 1.0,
}


def activations(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z (3, 5), A = f(Z), and f'(Z) by a central difference."""
    Z = np.random.default_rng(0).normal(size=(3, 5)) * 2
    value = HIDDEN_ACTIVATIONS[name].value
    slope = derivative(lambda h: value(np, Z + h, np.empty_like(Z)))
    return Z, value(np, Z, np.empty_like(Z)), slope


@formula("P.3")
def slope_in_terms_of_A():
    assert set(SLOPES_IN_A) == set(HIDDEN_ACTIVATIONS)
    for name, written in SLOPES_IN_A.items():
        _, A, slope = activations(name)
        yield HIDDEN_ACTIVATIONS[name].derivative(np, A), slope, np.vectorize(written)(A)


@formula("P.4")
def fused_product():
    generator = np.random.default_rng(1)
    W, dZ = generator.normal(size=(3, 2)), generator.normal(size=(2, 5))
    for name in HIDDEN_ACTIVATIONS:
        _, A, slope = activations(name)
        written = [
            [sum(W[j, o] * dZ[o, i] for o in range(2)) * SLOPES_IN_A[name](A[j, i]) for i in range(5)] for j in range(3)
        ]
        numeric = np.einsum("jo,oi,ji->ji", W, dZ, slope)
        yield get_backend("numpy").fused_backward(W, dZ, A, name), written, numeric


@formula("P.5")
def fused_product_of_one_output():
    generator = np.random.default_rng(2)
    w, dz = generator.normal(size=(3, 1)), generator.normal(size=(1, 5))
    _, A, _ = activations("sigmoid")
    written = [[w[j, 0] * dz[0, i] * A[j, i] * (1 - A[j, i]) for i in range(5)] for j in range(3)]
    yield get_backend("numpy").fused_backward(w, dz, A), written


# Losses from logits --------------------------------------------------------------------------------------------------

LOGITS = np.array([[-1e3, -40.0, -1.5, -1e-8, 0.0, 0.3, 2.0, 37.0, 1e3]])


def exact(function) -> float:
    """A value computed with 1000 digits, enough for 1 - exp(-2000)."""
    with localcontext() as context:
        context.prec = 1000
        return float(function())


def sigma(z: float) -> Decimal:
    return 1 / (1 + (-Decimal(z)).exp())


def output_and_slope(loss: str, Z: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """∂j/∂z as `Loss.dZ` gives it from the output, and by central differences of `Loss.per_sample`."""
    net = Network([len(Z), len(Z)], loss=loss, bias=False, dtype="float64", backend="numpy")
    net.weights[0][...] = np.eye(len(Z))  # logits are the inputs
    numeric = np.stack(
        [derivative(lambda h, e=e: LOSSES[loss].per_sample(np, Z + h * e[:, None], Y)) for e in np.eye(len(Z))]
    )
    return LOSSES[loss].dZ(np, net.forward(Z), Y), numeric


MODERATE = np.random.default_rng(4).normal(size=(3, 6)) * 2
LABELS = np.random.default_rng(5).integers(0, 2, size=(3, 6)).astype(float)
ONE_HOT = np.eye(3)[[0, 2, 1, 1, 0, 2]].T
COUNTS = np.random.default_rng(6).integers(0, 4, size=(3, 6)).astype(float)


@formula("P.6")
def binary_cross_entropy_from_logits():
    per_sample = LOSSES["binary_cross_entropy"].per_sample
    for y in (0.0, 1.0):
        written = [max(z, 0) - y * z + math.log1p(math.exp(-abs(z))) for z in LOGITS[0]]
        truth = [exact(lambda z=z, y=y: -(sigma(z) if y else 1 - sigma(z)).ln()) for z in LOGITS[0]]
        yield per_sample(np, LOGITS, np.full_like(LOGITS, y)), written, truth


@formula("P.7")
def slope_of_binary_cross_entropy():
    yield *output_and_slope("binary_cross_entropy", MODERATE, LABELS), 1 / (1 + np.exp(-MODERATE)) - LABELS


@formula("P.8")
def categorical_cross_entropy_from_logits():
    Z = np.array([[0.0, 900.0, -40.0], [1.0, -900.0, 0.0], [2.0, 5.0, 40.0]])
    for k in range(3):
        Y = np.zeros_like(Z)
        Y[k] = 1
        shift = Z.max(axis=0)
        written = shift + np.log(np.exp(Z - shift).sum(axis=0)) - Z[k]
        truth = [exact(lambda z=z, k=k: sum(Decimal(x).exp() for x in z).ln() - Decimal(z[k])) for z in Z.T]
        yield LOSSES["categorical_cross_entropy"].per_sample(np, Z, Y), written, truth


@formula("P.9")
def slope_of_categorical_cross_entropy():
    softmax = np.exp(MODERATE) / np.exp(MODERATE).sum(axis=0)
    yield *output_and_slope("categorical_cross_entropy", MODERATE, ONE_HOT), softmax - ONE_HOT


@formula("P.10")
def squared_error():
    per_sample = LOSSES["squared_error"].per_sample(np, MODERATE, COUNTS)
    yield per_sample, [sum((y - z) ** 2 for y, z in zip(*pair, strict=True)) / 2 for pair in _columns(COUNTS)]
    yield *output_and_slope("squared_error", MODERATE, COUNTS), MODERATE - COUNTS


@formula("P.11")
def poisson():
    def deviance(y: float, z: float) -> float:
        return (y * math.log(y / math.exp(z)) if y else 0.0) - y + math.exp(z)

    per_sample = LOSSES["poisson"].per_sample(np, MODERATE, COUNTS)
    yield per_sample, [sum(deviance(y, z) for y, z in zip(*pair, strict=True)) for pair in _columns(COUNTS)]
    yield *output_and_slope("poisson", MODERATE, COUNTS), np.exp(MODERATE) - COUNTS


@formula("P.12")
def sum_squared_error():
    A = 1 / (1 + np.exp(-MODERATE))
    per_sample = LOSSES["sum_squared_error"].per_sample(np, MODERATE, LABELS)
    yield per_sample, ((LABELS - A) ** 2).sum(axis=0) / 2
    yield *output_and_slope("sum_squared_error", MODERATE, LABELS), (A - LABELS) * A * (1 - A)


def _columns(Y: np.ndarray):
    return zip(Y.T, MODERATE.T, strict=True)


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 53 * math.log(2)), ("float32", 24 * math.log(2))])
def test_the_loss_from_the_output_breaks_where_the_loss_from_the_logit_does_not(dtype, limit):
    """Past z = ln 2 · (bits of the type) the output is exactly 1, and log(1 - a) of a wrong answer infinite."""
    net = Network([1, 1], bias=False, dtype=dtype, backend="numpy")
    net.weights[0][...] = 1  # the logit is the input
    for factor, lost in ((0.99, False), (1.01, True)):
        X = np.array([[limit * factor]], dtype=dtype)
        a = net.forward(X)
        assert bool(a.item() == 1) is lost
        with np.errstate(divide="ignore"):
            assert bool(np.isinf(-np.log(1 - a)).item()) is lost
        np.testing.assert_allclose(net.loss(X, [[0]]), limit * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        ("binary_cross_entropy", "float32"),
        ("binary_cross_entropy", "float64"),
        ("categorical_cross_entropy", "float32"),
        ("categorical_cross_entropy", "float64"),
        ("sum_squared_error", "float32"),
        ("sum_squared_error", "float64"),
        ("squared_error", "float32"),
        ("poisson", "float32"),
    ],
)
def test_losses_are_finite_for_huge_logits(loss, dtype):
    largest = float(np.finfo(dtype).max) / 4
    Z = np.array([[largest, -largest, 0.0], [-largest, largest, 1.0]], dtype=dtype)
    Y = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    j = LOSSES[loss].per_sample(np, Z, Y)
    assert j.dtype == np.float64
    assert np.isfinite(j).all()


# Weights of samples, L2 ----------------------------------------------------------------------------------------------


def weighted(loss: str):
    net = Network([3, 4, 2], loss=loss, dtype="float64", backend="numpy", random_state=8)
    generator = np.random.default_rng(9)
    X, Y = generator.normal(size=(3, 5)), generator.integers(0, 2, size=(2, 5))
    return net, X, Y, np.array([0.5, 0.0, 2.0, 1.0, 3.0])


@formula("P.13")
def weighted_mean_and_sum():
    for loss, total in (("binary_cross_entropy", 6.5), ("sum_squared_error", 1.0)):
        net, X, Y, w = weighted(loss)
        traced = net.trace(X, Y, sample_weight=w)
        alone = [net.trace(X[:, [i]], Y[:, [i]]) for i in range(5)]
        yield traced["J"], sum(wi * one["J"] for wi, one in zip(w, alone, strict=True)) / total
        yield traced["dZ1"], np.hstack([wi * one["dZ1"] for wi, one in zip(w, alone, strict=True)])
        yield traced["dW1"], sum(wi * one["dW1"] for wi, one in zip(w, alone, strict=True)) / total
        yield traced["db2"], sum(wi * one["db2"] for wi, one in zip(w, alone, strict=True)) / total


@formula("P.14", "P.15")
def l2():
    alpha = 0.7
    for loss in ("binary_cross_entropy", "sum_squared_error"):
        net, X, Y, _ = weighted(loss)
        plain_J, plain = net.loss_and_gradients(X, Y)
        J, gradients = net.loss_and_gradients(X, Y, alpha=alpha)
        squares = sum(element**2 for W in net.weights for element in W.ravel())
        yield J, net.loss(X, Y, alpha=alpha), plain_J + 0.5 * alpha * squares / 5
        for layer in (0, 1):
            yield gradients.weights[layer], plain.weights[layer] + alpha * net.weights[layer] / 5
            yield gradients.biases[layer], plain.biases[layer]


def test_a_wrong_formula_is_told_from_a_right_one():
    """The comparison that all these tests rest on."""
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.0
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.2])) == pytest.approx(0.2 / 2.2)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
