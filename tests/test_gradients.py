"""Gradients against central differences in float64, for every activation, loss and depth: relative error <= 1e-6."""

from __future__ import annotations

import numpy as np
import pytest

from problems import COMBINATIONS, make_problem


def numerical_gradient(problem, alpha, step=1e-5):
    """∂J/∂θ of every parameter θ, by central differences."""
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


@pytest.mark.parametrize(("activation", "loss", "depth", "bias", "weighted"), COMBINATIONS)
def test_gradients(activation, loss, depth, bias, weighted):
    problem = make_problem(activation, loss, depth, bias, weighted)
    assert relative_error(problem, 0.7) <= 1e-6
