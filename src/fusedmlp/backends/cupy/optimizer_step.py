"""Launches of ``kernels/optimizer.cu``: a step of an optimizer on the flat vector."""

from __future__ import annotations

import numpy as np

from fusedmlp.backends.cupy.launch import NULL, Launcher
from fusedmlp.model.activations import Array
from fusedmlp.model.optimizers import SGD, Adam, Optimizer, OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters


class OptimizerStep:
    """The kernels.

    Parameters
    ----------
    launcher : Launcher
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    @staticmethod
    def covers(optimizer: Optimizer) -> bool:
        """Whether there is a kernel for it: for this package's own."""
        return type(optimizer) in (SGD, Adam)

    def launch(
        self,
        state: OptimizerState,
        parameters: Parameters,
        gradients: Gradients,
        factor: float,
        decay: float,
        progress: Array | None = None,
    ) -> None:
        """Step number ``state.t``, along factor · gradients + decay · W.

        Parameters
        ----------
        state : OptimizerState
            Its moments change; its count does not.
        parameters : Parameters
        gradients : Gradients
        factor, decay : float
            As in `Gradients.scale`.
        progress : array of shape (6,), optional
            Where the learning rate and `factor` come from instead (``kernels/progress.cuh``).
        """
        kind, moments, numbers = _step_of(state)
        number = parameters.flat.dtype.type
        rate, *rest = numbers
        vectors = [("parameters", parameters.flat), ("gradients", gradients.flat), *moments]
        weights = self._launcher.weight_ranges(parameters.architecture) if decay else NULL
        layers = np.int32(len(parameters.weights))
        scalars = [number(x) for x in (rate, factor, decay, *rest)]
        rest_of_them = [weights, layers, NULL if progress is None else progress]
        self._launcher.launch_flat("optimizer.cu", kind, vectors, [*scalars, *rest_of_them])


def _step_of(state: OptimizerState) -> tuple[str, list[tuple[str, Array | None]], list[float]]:
    """(the kernel, its moments, [rate, β₁, 1 - β₁, β₂, 1 - β₂, ε]) of an optimizer's step number `state.t`."""
    optimizer, rate = state.optimizer, state.learning_rate
    if isinstance(optimizer, Adam):
        beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
        rate = optimizer.numbers(rate, max(1, state.t)).rate
        moments: list[tuple[str, Array | None]] = [("m", state.moments["m"]), ("v", state.moments["v"])]
        return "adam", moments, [rate, beta_1, 1 - beta_1, beta_2, 1 - beta_2, optimizer.epsilon]
    assert isinstance(optimizer, SGD)
    velocity = state.moments["velocity"] if optimizer.momentum else None
    return optimizer.rule or "", [("velocity", velocity), ("v", None)], [rate, optimizer.momentum, 0.0, 0.0, 0.0, 0.0]
