"""Launches of ``kernels/mini_batch.cu``: what a step does on the device besides its pass and its update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusedmlp.backends.cupy.cuda_tables import PROGRESS
from fusedmlp.backends.cupy.launch import NULL, THREADS, Launcher, grid_and_block, pointer, strided
from fusedmlp.backends.cupy.optimizer_step import ENDLESS
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.engines.options import EpochPosition
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.model.parameters import Parameters

_MOST_BLOCKS = THREADS  # of `squares`: one block adds up their sums
SMALL_BATCH = 2048  # one block sums the losses of such a batch in less time than a launch takes


class MiniBatch:
    """The kernels for an architecture, and the numbers of an epoch on the device.

    Parameters
    ----------
    launcher : Launcher
    cupy : module
    architecture : Architecture

    Attributes
    ----------
    progress : array of shape (7,)
        On the device (`cuda_tables.PROGRESS`).
    """

    def __init__(self, launcher: Launcher, cupy: Any, architecture: Architecture) -> None:
        self._launcher, self._cupy, self._architecture = launcher, cupy, architecture
        self._blocks = min(_MOST_BLOCKS, -(-architecture.n_parameters // THREADS))
        self._squares = cupy.empty((self._blocks,), "float64")
        self.progress = cupy.empty((len(PROGRESS),), "float64")

    def begin_epoch(self, learning_rate: float, steps: int, position: EpochPosition) -> None:
        """Start an epoch that has come to `position`, after `steps` steps of the optimizer, those of the epoch too."""
        numbers = np.zeros(len(PROGRESS))
        numbers[PROGRESS.index("RATE")] = learning_rate
        numbers[PROGRESS.index("STEPS")] = steps - position.batches
        numbers[PROGRESS.index("BATCH")], numbers[PROGRESS.index("LOSS")] = position.batches, position.loss
        self.progress.set(numbers)

    @property
    def loss(self) -> float:
        """The loss of the epoch so far; waits for the device."""
        return float(self.progress[PROGRESS.index("LOSS")])

    def gather(
        self, order: Array | None, samples: Sequence[Array | None], batch: Sequence[Array | None], batch_size: int
    ) -> None:
        """Copy the samples of the current batch.

        Parameters
        ----------
        order : array of int64, shape (m,), optional
        samples : sequence of array of shape (n_in, m), (n_out, m), (1, m) or None
            X, Y and the weights, of any strides.
        batch : sequence of array of shape (size, n_in), (size, n_out), (size,) or None
            Where the batch's samples are copied to, without gaps.
        batch_size : int
            The size of every batch but the last.
        """
        X, Y, weights = samples
        x, y, w = batch
        n_in, n_out, dtype = self._architecture.n_inputs, self._architecture.n_outputs, self._architecture.dtype
        assert x is not None
        size = len(x)
        sizes = (np.int64(n) for n in (n_in, n_out, size, batch_size))
        arguments = (
            self.progress, pointer(order), *strided(X), *strided(Y), *strided(weights)[::2],
            x, y, pointer(w), *sizes,
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
        divisor: float | None,
        optimizer: Optimizer,
    ) -> None:
        """Add the batch's loss, from before the step, to the epoch's; compute the step's rate and factor.

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
            What the batch's loss is multiplied by in the epoch's.
        divisor : float, optional
            What the sums over the samples are divided by; None: by Σ w of the batch.
        optimizer : Optimizer
        """
        if alpha:
            layers = np.int32(len(parameters.weights))
            arguments = parameters.flat, self._launcher.weight_ranges(self._architecture), layers, self._squares
            kernel = self._launcher.kernel("mini_batch.cu", f"squares_{self._architecture.dtype}")
            kernel((self._blocks,), (THREADS,), arguments, shared_mem=8 * THREADS)
        size, n_out = logits.shape
        Y, weights = batch
        small = size <= SMALL_BATCH
        if not small:
            output_layer.sum_losses(logits, Y, weights)
        corrected = optimizer.rule in ("adam", "adamw")
        betas = optimizer.numbers(1.0, ENDLESS)[1:3] if corrected else (0.0, 0.0)
        rules = (np.float64(x) for x in (alpha / size, share, *betas, divisor or 0.0))
        arguments = (
            self.progress, logits if small else NULL, *strided(Y), *strided(weights)[::2], np.int64(size),
            np.int32(n_out), output_layer.loss, output_layer.most, output_layer.sums, self._squares,
            np.int32(self._blocks if alpha else 0), *rules, np.int32(divisor is not None),
        )  # fmt: skip
        kernel = self._launcher.kernel("mini_batch.cu", f"finish_{self._architecture.dtype}")
        kernel((1,), (THREADS,), arguments, shared_mem=8 * THREADS)
