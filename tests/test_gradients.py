"""Central differences in float64 for every activation, loss, depth, bias and weighting: relative error <= 1e-6."""

from __future__ import annotations

import numpy as np
import pytest

from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from problems import COMBINATIONS, make_problem


def numerical_gradient(problem, alpha, step=1e-5):
    """∂J/∂parameter by central differences, a parameter at a time."""
    net, flat = problem.net, problem.net.parameters.flat
    gradient = np.empty_like(flat)
    for i in range(flat.size):
        value = flat[i]
        flat[i] = value + step
        above = net.loss(problem.X, problem.Y, problem.sample_weight, alpha)
        flat[i] = value - step
        below = net.loss(problem.X, problem.Y, problem.sample_weight, alpha)
        flat[i] = value
        gradient[i] = (above - below) / (2 * step)
    return gradient


def relative_error(problem, alpha=0.0):
    """‖numerical - analytical‖ / (‖numerical‖ + ‖analytical‖)."""
    numerical = numerical_gradient(problem, alpha)
    _, gradients = problem.net.loss_and_gradients(problem.X, problem.Y, problem.sample_weight, alpha)
    norm = np.linalg.norm
    return norm(numerical - gradients.flat) / (norm(numerical) + norm(gradients.flat))


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize(("activation", "loss", "depth", "bias", "weighted"), COMBINATIONS)
def test_gradients(activation, loss, depth, bias, weighted, alpha):
    problem = make_problem(activation, loss, depth, bias, weighted)
    assert relative_error(problem, alpha) <= 1e-6


@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
def test_the_check_fails_on_a_wrong_derivative(activation, monkeypatch):
    from dataclasses import replace

    wrong = replace(HIDDEN_ACTIVATIONS[activation], derivative=lambda xp, A: 0.99 * xp.ones_like(A) + 0.1 * A)
    monkeypatch.setitem(HIDDEN_ACTIVATIONS, activation, wrong)
    monkeypatch.setattr(
        "fusedmlp.backends.numpy_backend.NumpyBackend.fused_backward",
        lambda self, W, dZ, A, activation="sigmoid", out=None: (W @ dZ) * wrong.derivative(np, A),
    )
    assert relative_error(make_problem(activation, depth=3)) > 1e-4
