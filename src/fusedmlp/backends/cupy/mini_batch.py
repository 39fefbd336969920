"""Launches of ``kernels/mini_batch.cu``: what a step does besides its pass and its update, without the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusedmlp.backends.cupy.launch import NULL, THREADS, Launcher, grid_and_block
from fusedmlp.backends.cupy.output_layer import OutputLayer, strided
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Adam, Optimizer
from fusedmlp.model.parameters import Parameters

_MOST_BLOCKS = THREADS  # of `squares`: one block adds up what they have
_SMALL_BATCH = 2048  # whose losses one block sums up in less time than a launch takes
_PROGRESS = ("BATCH", "LOSS", "RATE", "STEPS", "STEP_RATE", "FACTOR")  # as in kernels/progress.cuh


class MiniBatch:
    """The kernels for an architecture, and how far an epoch has come.

    Parameters
    ----------
    launcher : Launcher
    cupy : module
    architecture : Architecture

    Attributes
    ----------
    progress : array of shape (6,)
        On the device (``kernels/progress.cuh``).
    """

    def __init__(self, launcher: Launcher, cupy: Any, architecture: Architecture) -> None:
        self._launcher, self._cupy, self._architecture = launcher, cupy, architecture
        self._blocks = min(_MOST_BLOCKS, -(-architecture.n_parameters // THREADS))
        self._squares = cupy.empty((self._blocks,), "float64")
        self.progress = cupy.empty((len(_PROGRESS),), "float64")

    def begin_epoch(self, learning_rate: float, steps: int) -> None:
        """Start at batch 0, after so many steps of the optimizer."""
        numbers = np.zeros(len(_PROGRESS))
        numbers[_PROGRESS.index("RATE")], numbers[_PROGRESS.index("STEPS")] = learning_rate, steps
        self.progress.set(numbers)

    @property
    def loss(self) -> float:
        """Of the epoch so far."""
        return float(self.progress[_PROGRESS.index("LOSS")])

    def gather(
        self, order: Array | None, samples: Sequence[Array | None], batch: Sequence[Array | None], batch_size: int
    ) -> None:
        """The samples of the batch at hand.

        Parameters
        ----------
        order : array of int64, shape (m,), optional
        samples : sequence of array of shape (n_in, m), (n_out, m), (1, m) or None
            X, Y and the weights, of any strides.
        batch : sequence of array of shape (size, n_in), (size, n_out), (size,) or None
            Where those of the batch go, without gaps.
        batch_size : int
            Of every batch but a smaller last one.
        """
        X, Y, weights = samples
        x, y, w = batch
        n_in, n_out, dtype = self._architecture.n_inputs, self._architecture.n_outputs, self._architecture.dtype
        assert x is not None
        size = len(x)
        sizes = (np.int64(n) for n in (n_in, n_out, size, batch_size))
        arguments = (
            self.progress, NULL if order is None else order, *strided(X), *strided(Y), *strided(weights)[::2],
            x, y, NULL if w is None else w, *sizes,
        )  # fmt: skip
        grid, block = grid_and_block(size, n_in, 1, self._launcher.multiprocessors())
        self._launcher.kernel("mini_batch.cu", f"gather_{dtype}")(grid, block, arguments)

    def finish(
        self,
        parameters: Parameters,
        output_layer: OutputLayer,
        logits: Array,
        batch: Sequence[Array | None],
        alpha: float,
        share: float,
        mean: bool,
        optimizer: Optimizer,
    ) -> None:
        """Count the batch: its loss, before the step, and the rate and the factor of the step.

        Parameters
        ----------
        parameters : Parameters
        output_layer : OutputLayer
        logits : array of shape (size, n_out)
            Without gaps.
        batch : sequence (Y, weights) of array of shape (n_out, size), (1, size) or None
        alpha : float
            L2.
        share : float
            Of the batch's loss in the epoch's.
        mean : bool
            Whether the loss is a mean over samples.
        optimizer : Optimizer
        """
        if alpha:
            layers = np.int32(len(parameters.weights))
            arguments = parameters.flat, self._launcher.weight_ranges(self._architecture), layers, self._squares
            kernel = self._launcher.kernel("mini_batch.cu", f"squares_{self._architecture.dtype}")
            kernel((self._blocks,), (THREADS,), arguments, shared_mem=8 * THREADS)
        size, n_out = logits.shape
        Y, weights = batch
        small = size <= _SMALL_BATCH
        if not small:
            output_layer.sum_losses(logits, Y, weights)
        betas = (optimizer.beta_1, optimizer.beta_2) if isinstance(optimizer, Adam) else (0.0, 0.0)
        rules = (np.float64(x) for x in (alpha / size, share, *betas))
        arguments = (
            self.progress, logits if small else NULL, *strided(Y), *strided(weights)[::2], np.int64(size),
            np.int32(n_out), output_layer.loss, output_layer.most, output_layer.sums, self._squares,
            np.int32(self._blocks if alpha else 0), *rules, np.int32(mean),
        )  # fmt: skip
        kernel = self._launcher.kernel("mini_batch.cu", f"finish_{self._architecture.dtype}")
        kernel((1,), (THREADS,), arguments, shared_mem=8 * THREADS)
