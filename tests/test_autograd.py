"""loss_and_gradients equals jax's automatic differentiation in float64, for every combination of a network's parts."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from compare import assert_close
from fusedmlp.network import Network
from machine import require
from problems import COMBINATIONS, FLAGS, Problem, make_problem

jax = pytest.importorskip("jax", reason="jax is not installed: pip install 'fusedmlp[test]'")
jax.config.update("jax_enable_x64", True)
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
}
# j of every sample, in rows, from the logits.
LOSSES = {
    "binary_cross_entropy": lambda z, y: (nn.softplus(z) - y * z).sum(axis=1),
    "categorical_cross_entropy": lambda z, y: -(y * nn.log_softmax(z)).sum(axis=1),
    "squared_error": lambda z, y: 0.5 * ((z - y) ** 2).sum(axis=1),
    "poisson": lambda z, y: (jax.scipy.special.xlogy(y, y) - y * z - y + jnp.exp(z)).sum(axis=1),
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


@cache
def jax_loss_and_gradients(activation, loss, depth):
    """{(bias, weighted): (J, [dW1, ...], [db1, ...])} by automatic differentiation in float64, all in one batch."""
    problems = [problem_of((activation, loss, depth, *flags)) for flags in FLAGS]

    def batched(arrays):
        return np.stack([np.asarray(x, np.float64) for x in arrays])

    def share(problem):
        w = np.ones(problem.X.shape[1]) if problem.sample_weight is None else problem.sample_weight.astype(np.float64)
        return w if loss == "sum_squared_error" else w / w.sum()

    def biases_or_zeros(net, layer):
        return net.biases[layer].T if net.architecture.bias else np.zeros((1, net.weights[layer].shape[1]))

    weights = [batched(p.net.weights[layer] for p in problems) for layer in range(depth)]
    biases = [batched(biases_or_zeros(p.net, layer) for p in problems) for layer in range(depth)]
    X, Y = batched(p.X.T for p in problems), batched(p.Y.T for p in problems)

    def J(weights, biases, X, Y, share):
        A = X
        for layer, (W, b) in enumerate(zip(weights, biases, strict=True)):
            Z = A @ W + b
            A = ACTIVATIONS[activation](Z) if layer < depth - 1 else Z
        penalty = sum((W * W).sum() for W in weights)
        return (share * LOSSES[loss](A, Y)).sum() + 0.5 * ALPHA / len(X) * penalty

    found = jax.vmap(jax.value_and_grad(J, argnums=(0, 1)))(weights, biases, X, Y, batched(map(share, problems)))
    Js, (dWs, dbs) = jax.tree.map(np.asarray, found)
    return {
        flags: (float(Js[k]), [dW[k] for dW in dWs], [db[k].T for db in dbs] if flags[0] else [])
        for k, flags in enumerate(FLAGS)
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("name", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda parts: "-".join(map(str, parts)))
def test_autograd_agrees(combination, name, dtype, tolerance):
    problem = problem_of(combination, dtype, require(name))
    J, gradients = problem.net.loss_and_gradients(problem.X, problem.Y, problem.sample_weight, ALPHA)
    expected_J, dWs, dbs = jax_loss_and_gradients(*combination[:3])[combination[3:]]
    assert pytest.approx(expected_J, rel=tolerance) == J
    for layer, dW in enumerate(dWs):
        assert_close(gradients.weights[layer], dW, f"dW{layer + 1}", tolerance=tolerance)
    for layer, db in enumerate(dbs):
        assert_close(gradients.biases[layer], db, f"db{layer + 1}", tolerance=tolerance)
