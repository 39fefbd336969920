"""Launches of ``kernels/optimizer.cu``: a step of an optimizer on the flat vector, and clipping by the norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.backends.cupy.cuda_tables import CUDA_RULES
from fusedmlp.backends.cupy.launch import NULL, THREADS, Launcher, pointer
from fusedmlp.engines.options import CLIP_EPSILON
from fusedmlp.model.activations import Array
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

_MOST_BLOCKS = THREADS  # of `gradient_squares`: one block adds up their sums
ENDLESS = 2**60
"""A step number at which all bias corrections are 1: the numbers of a rule without them."""


class ClipBuffers:
    """Device memory for clipping: the sums of blocks, and the factor of the gradient.

    Parameters
    ----------
    cupy : module
    n_parameters : int
    """

    def __init__(self, cupy: Any, n_parameters: int) -> None:
        self.squares = cupy.empty((min(_MOST_BLOCKS, -(-n_parameters // THREADS)),), "float64")
        self.factor = cupy.empty((1,), "float64")


def moments_of(state: OptimizerState) -> tuple[Array | None, Array | None]:
    """The two vectors that a kernel takes for a rule's moments; None for one that the rule does not have."""
    optimizer = state.optimizer
    moments = [] if optimizer.rule == "sgd" else [state.moments[name] for name in optimizer.moments]
    first, second = [*moments, None, None][:2]
    return first, second


class OptimizerStep:
    """The kernels.

    Parameters
    ----------
    launcher : Launcher
    cupy : module
    """

    def __init__(self, launcher: Launcher, cupy: Any) -> None:
        self._launcher, self._cupy = launcher, cupy

    @staticmethod
    def covers(optimizer: Optimizer) -> bool:
        """Whether there is a kernel for the optimizer's rule."""
        return optimizer.rule in CUDA_RULES

    def launch(
        self,
        state: OptimizerState,
        parameters: Parameters,
        gradients: Gradients,
        factor: float,
        decay: float,
        clip_norm: float | None = None,
        clip_buffers: ClipBuffers | None = None,
        progress: Array | None = None,
    ) -> None:
        """Step number ``state.t``, along factor · gradients + decay · W.

        Parameters
        ----------
        state : OptimizerState
            Its moments change; its step count does not.
        parameters : Parameters
        gradients : Gradients
        factor, decay : float
            As in `Gradients.scale`.
        clip_norm : float, optional
            As in `EpochOptions`: two more launches.
        clip_buffers : ClipBuffers, optional
            Memory for clipping; None: it is allocated.
        progress : array of shape (7,), optional
            Device memory that the learning rate, Adam's corrections and `factor` are read from, instead of `state` and
            `factor` (`cuda_tables.PROGRESS`).
        """
        captured = progress is not None
        optimizer, number = state.optimizer, parameters.flat.dtype.type
        rule = optimizer.rule
        assert rule is not None
        numbers = (
            optimizer.numbers(1.0, ENDLESS) if captured else optimizer.numbers(state.learning_rate, max(1, state.t))
        )
        first, second = moments_of(state)
        regularised = self._regularised(parameters, decay or numbers.decay)
        clip = NULL
        if clip_norm is not None:
            buffers = clip_buffers or ClipBuffers(self._cupy, parameters.flat.size)
            clip = self._clip(parameters, gradients, number(factor), number(decay), clip_norm, buffers, progress)
        beta_1, beta_2 = numbers.beta_1, numbers.beta_2
        scalars = (numbers.rate, factor, decay, beta_1, 1 - beta_1, beta_2, 1 - beta_2, numbers.epsilon, numbers.decay)
        vectors = [("parameters", parameters.flat), ("gradients", gradients.flat), ("m", first), ("v", second)]
        rest = [*regularised, clip, pointer(progress)]
        self._launcher.launch_flat("optimizer.cu", rule, vectors, [*(number(x) for x in scalars), *rest])

    def _regularised(self, parameters: Parameters, decay: float) -> list[Any]:
        """(where the weights lie in the flat vector, the number of weight matrices): two arguments of the kernels."""
        ranges = self._launcher.weight_ranges(parameters.architecture) if decay else NULL
        return [ranges, np.int32(len(parameters.weights))]

    def _clip(
        self,
        parameters: Parameters,
        gradients: Gradients,
        factor: np.floating,
        decay: np.floating,
        clip_norm: float,
        buffers: ClipBuffers,
        progress: Array | None,
    ) -> Array:
        """The factor of the gradient in device memory, shape (1,); both sums have a fixed order."""
        dtype, blocks = parameters.flat.dtype, buffers.squares.size
        arguments = (
            parameters.flat, gradients.flat, np.int64(parameters.flat.size), factor, decay,
            *self._regularised(parameters, float(decay)), buffers.squares, pointer(progress),
        )  # fmt: skip
        kernel = self._launcher.kernel("optimizer.cu", f"gradient_squares_{dtype}")
        kernel((blocks,), (THREADS,), arguments, shared_mem=8 * THREADS)
        kernel = self._launcher.kernel("optimizer.cu", "clip_factor")
        numbers = np.int32(blocks), np.float64(clip_norm), np.float64(CLIP_EPSILON)
        kernel((1,), (THREADS,), (buffers.squares, *numbers, buffers.factor), shared_mem=8 * THREADS)
        return buffers.factor
