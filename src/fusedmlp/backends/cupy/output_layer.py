"""Launches of ``kernels/output_layer.cu``: the loss and the outputs, from the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.backends.cupy.launch import THREADS, Launcher, strided
from fusedmlp.backends.cupy.sums import sum_rows
from fusedmlp.model.activations import Array, largest_exponent
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import loss_named

_BLOCKS_PER_MULTIPROCESSOR = 4


class OutputLayer:
    """The kernels for an architecture, with memory for the sums of the loss.

    Parameters
    ----------
    launcher : Launcher
    cupy : module
    architecture : Architecture

    Attributes
    ----------
    loss : numpy.int32
        The code of the loss.
    most : numpy.float32 or numpy.float64
        The largest exponent whose power is finite.
    sums : array of shape (2,)
        Σ w j and Σ w of the last `sum_losses`, float64, on the device.
    """

    def __init__(self, launcher: Launcher, cupy: Any, architecture: Architecture) -> None:
        self._launcher = launcher
        self._dtype = architecture.dtype
        self._n_out = np.int32(architecture.n_outputs)
        self._most_blocks = launcher.multiprocessors() * _BLOCKS_PER_MULTIPROCESSOR
        self._partial = cupy.empty((self._most_blocks, 2), "float64")
        self.sums = cupy.empty((2,), "float64")
        self.loss = np.int32(loss_named(architecture.loss).code)
        self.most = np.dtype(self._dtype).type(largest_exponent(self._dtype))

    def sum_losses(self, logits: Array, Y: Array, sample_weight: Array | None) -> Array:
        """Σ w j of the logits (m, n_out), a row per sample, on the device; the next call overwrites it."""
        m = len(logits)
        blocks = self._blocks(m)
        weights = strided(sample_weight)[::2]
        arguments = (logits, *strided(Y), *weights, self._partial, np.int64(m), self._n_out, self.loss, self.most)
        kernel = self._launcher.kernel("output_layer.cu", f"losses_{self._dtype}")
        kernel((blocks,), (THREADS,), arguments, shared_mem=2 * THREADS * 8)
        sum_rows(self._launcher, self._partial[:blocks], self.sums)
        return self.sums[0]

    def outputs(self, logits: Array, out: Array) -> None:
        """Write A_{L-1} into `out` (n_out, m), of any strides; the logits are overwritten."""
        m = len(logits)
        arguments = (logits, *strided(out), np.int64(m), self._n_out, self.loss, self.most)
        kernel = self._launcher.kernel("output_layer.cu", f"outputs_{self._dtype}")
        kernel((self._blocks(m),), (THREADS,), arguments)

    def _blocks(self, m: int) -> int:
        return min(self._most_blocks, -(-m // THREADS))
