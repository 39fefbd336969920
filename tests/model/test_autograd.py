"""loss_and_gradients equals jax's automatic differentiation in float64, for every combination of a network's parts."""

from __future__ import annotations

from itertools import groupby, product
from operator import itemgetter

import numpy as np
import pytest

from compare import assert_close
from fusedmlp.network import Network
from machine import require
from problems import COMBINATIONS, DEPTHS, Problem, make_problem

jax = pytest.importorskip("jax", reason="jax is not installed: pip install 'fusedmlp[test]'")
jax.config.update("jax_platforms", "cpu")
jnp, nn = jax.numpy, jax.nn

ALPHA = 0.3
ACTIVATIONS = {
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "identity": lambda z: z,
    "leaky_relu": lambda z: nn.leaky_relu(z, 0.01),
    "elu": nn.elu,
    "selu": nn.selu,
    "softplus": nn.softplus,
    "gelu": lambda z: nn.gelu(z, approximate=False),
    "silu": nn.silu,
    "mish": lambda z: z * jnp.tanh(nn.softplus(z)),
    "softsign": nn.soft_sign,
}
# j of every sample, in rows, from the logits.
LOSSES = {
    "binary_cross_entropy": lambda z, y: (nn.softplus(z) - y * z).sum(axis=1),
    "categorical_cross_entropy": lambda z, y: -(y * nn.log_softmax(z)).sum(axis=1),
    "squared_error": lambda z, y: 0.5 * ((z - y) ** 2).sum(axis=1),
    "poisson": lambda z, y: (jax.scipy.special.xlogy(y, y) - y * z - y + jnp.exp(z)).sum(axis=1),
    "absolute_error": lambda z, y: jnp.abs(z - y).sum(axis=1),
    "huber": lambda z, y: jnp.where(jnp.abs(z - y) < 1, 0.5 * (z - y) ** 2, jnp.abs(z - y) - 0.5).sum(axis=1),
    "quantile": lambda z, y: jnp.maximum(0.5 * (y - z), 0.5 * (z - y)).sum(axis=1),
    "sum_squared_error": lambda z, y: 0.5 * ((nn.sigmoid(z) - y) ** 2).sum(axis=1),
}


def problem_of(combination, dtype="float32", backend="numpy"):
    """The network and samples of a combination. Both dtypes have the same numbers, rounded to float32."""
    activation, loss, depth, bias, weighted = combination
    drawn = make_problem(activation, loss, depth, bias, weighted, dtype="float32", m=37, seed=depth)
    a = drawn.net.architecture
    net = Network(a.layer_sizes, activation, loss, bias, dtype, backend)
    net.parameters.flat[...] = drawn.net.parameters.flat
    w = drawn.sample_weight
    return Problem(net, drawn.X.astype(dtype), drawn.Y.astype(dtype), None if w is None else w.astype(dtype))


def jax_loss_and_gradients(combination):
    """(J, [dW1, ...], [db1, ...]) by automatic differentiation in float64."""
    activation, loss, depth, *_ = combination
    problem = problem_of(combination, "float64")
    X, Y, m = problem.X.T, problem.Y.T, problem.X.shape[1]
    w = np.ones(m) if problem.sample_weight is None else problem.sample_weight
    share = w if loss == "sum_squared_error" else w / w.sum()

    def J(weights, biases):
        A = X
        for layer, W in enumerate(weights):
            Z = A @ W + (biases[layer].T if biases else 0)
            A = ACTIVATIONS[activation](Z) if layer < depth - 1 else Z
        penalty = sum((W * W).sum() for W in weights)
        return (share * LOSSES[loss](A, Y)).sum() + 0.5 * ALPHA / m * penalty

    found = jax.value_and_grad(J, argnums=(0, 1))(list(problem.net.weights), list(problem.net.biases))
    return jax.tree.map(np.asarray, found)


@pytest.fixture(autouse=True)
def float64_in_jax():
    """Set for each test: other tests of this process use jax in float32."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# Each activation with each loss at one depth, in turn. The conformance suite has all depths.
PAIRS = [list(pair) for _, pair in groupby(COMBINATIONS, key=lambda parts: parts[:2])]
CHOSEN = [pair[number % len(DEPTHS) % len(pair)] for number, pair in enumerate(PAIRS)]


def test_those_chosen_have_every_pair_every_depth_and_every_case():
    assert len(CHOSEN) == len(ACTIVATIONS) * len(LOSSES)
    for part in (itemgetter(0, 1), itemgetter(0, 2), itemgetter(1, 2), itemgetter(2, 3, 4)):
        assert set(map(part, CHOSEN)) == set(map(part, COMBINATIONS))


@pytest.mark.parametrize("combination", CHOSEN, ids=lambda parts: "-".join(map(str, parts)))
def test_autograd_agrees(combination):
    expected_J, (dWs, dbs) = jax_loss_and_gradients(combination)
    for (dtype, tolerance), name in product([("float64", 1e-10), ("float32", 1e-5)], ["numpy", "numba-cpu"]):
        problem = problem_of(combination, dtype, require(name))
        J, gradients = problem.net.loss_and_gradients(problem.X, problem.Y, problem.sample_weight, ALPHA)
        where = f"{name}, {dtype}"
        assert pytest.approx(float(expected_J), rel=tolerance) == J, where
        for layer, dW in enumerate(dWs):
            assert_close(gradients.weights[layer], dW, f"dW{layer + 1} of {where}", tolerance=tolerance)
        for layer, db in enumerate(dbs):
            assert_close(gradients.biases[layer], db, f"db{layer + 1} of {where}", tolerance=tolerance)
