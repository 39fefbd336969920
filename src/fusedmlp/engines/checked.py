"""Passes over samples that are checked on the way, where an engine can do that: they are read once."""

from __future__ import annotations

from typing import Any

from fusedmlp.engines.base import Engine
from fusedmlp.engines.samples import as_inputs, as_samples, is_ready
from fusedmlp.model.activations import Array
from fusedmlp.model.parameters import Gradients, Parameters


def outputs_of(X: Any, engine: Engine, parameters: Parameters) -> Array:
    """A_{L-1} of an X that `as_inputs` takes, by `Engine.forward`."""
    architecture, backend = engine.architecture, engine.backend
    if is_ready(X, architecture.n_inputs, architecture, backend) and X.shape[1]:
        A = engine.forward_if_finite(parameters, X)
        if A is not None:
            return A
    return engine.forward(parameters, as_inputs(X, architecture, backend))


def loss_and_gradients_of(
    X: Any, Y: Any, sample_weight: Any, alpha: float, engine: Engine, parameters: Parameters, gradients: Gradients
) -> float:
    """J of samples that `as_samples` takes, by `Engine.loss_and_gradients`."""
    a, backend = engine.architecture, engine.backend
    ready = is_ready(X, a.n_inputs, a, backend) and is_ready(Y, a.n_outputs, a, backend)
    if ready and sample_weight is None and X.shape[1] == Y.shape[1] > 0:
        J = engine.loss_and_gradients_if_valid(parameters, X, Y, gradients, alpha)
        if J is not None:
            return J
    samples = as_samples(X, Y, sample_weight, a, backend)
    return engine.loss_and_gradients(parameters, samples.X, samples.Y, gradients, samples.sample_weight, alpha)
