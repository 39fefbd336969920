"""loss_and_gradients equals torch's autograd on random networks of every combination."""

from __future__ import annotations

import numpy as np
import pytest

from compare import assert_close
from machine import require
from problems import COMBINATIONS, make_problem

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fusedmlp[test]'")

ACTIVATIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda z: z,
}
F = torch.nn.functional
# j of every sample, in rows, from the logits.
LOSSES = {
    "binary_cross_entropy": lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(dim=1),
    "categorical_cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "squared_error": lambda z, y: 0.5 * F.mse_loss(z, y, reduction="none").sum(dim=1),
    "poisson": lambda z, y: (torch.xlogy(y, y) - y + F.poisson_nll_loss(z, y, reduction="none")).sum(dim=1),
    "sum_squared_error": lambda z, y: 0.5 * F.mse_loss(torch.sigmoid(z), y, reduction="none").sum(dim=1),
}


def torch_loss_and_gradients(problem, alpha):
    """(J, [(dW, db), ...]) by autograd, in the dtype of the problem."""
    net, a = problem.net, problem.net.architecture
    linears = []
    for layer, W in enumerate(net.weights):
        linear = torch.nn.Linear(*W.shape, bias=a.bias, dtype=getattr(torch, a.dtype))
        linear.weight.data = torch.from_numpy(np.ascontiguousarray(W.T))
        if a.bias:
            linear.bias.data = torch.from_numpy(net.biases[layer].reshape(-1).copy())
        linears.append(linear)
    x, y = torch.from_numpy(np.ascontiguousarray(problem.X.T)), torch.from_numpy(np.ascontiguousarray(problem.Y.T))
    for linear in linears[:-1]:
        x = ACTIVATIONS[a.hidden_activation](linear(x))
    j = LOSSES[a.loss](linears[-1](x), y)
    w = torch.ones_like(j) if problem.sample_weight is None else torch.from_numpy(problem.sample_weight)
    J = (w * j).sum() if a.loss == "sum_squared_error" else (w * j).sum() / w.sum()
    J = J + 0.5 * alpha / len(y) * sum((linear.weight**2).sum() for linear in linears)
    J.backward()
    return J.item(), [(linear.weight.grad.T, linear.bias.grad if a.bias else None) for linear in linears]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("name", ["numpy", "numba-cpu"])
@pytest.mark.parametrize(("activation", "loss", "depth", "bias", "weighted"), COMBINATIONS)
def test_autograd_agrees(activation, loss, depth, bias, weighted, name, dtype, tolerance):
    alpha = 0.3
    backend = require(name)
    problem = make_problem(activation, loss, depth, bias, weighted, dtype=dtype, backend=backend, m=37, seed=depth)
    J, gradients = problem.net.loss_and_gradients(problem.X, problem.Y, problem.sample_weight, alpha)
    expected_J, expected = torch_loss_and_gradients(problem, alpha)
    assert pytest.approx(expected_J, rel=tolerance) == J
    for layer, (dW, db) in enumerate(expected):
        assert_close(gradients.weights[layer], dW.numpy().astype(float), f"dW{layer + 1}", tolerance=tolerance)
        if bias:
            got = gradients.biases[layer]
            assert_close(got, db.numpy().astype(float)[:, None], f"db{layer + 1}", tolerance=tolerance)
