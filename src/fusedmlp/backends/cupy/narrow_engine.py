"""The fused engine of cupy for narrow networks: X goes through the GPU, and only gradients come out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusedmlp.backends.cupy.fused_engine import FusedEngine
from fusedmlp.backends.cupy.narrow_step import NarrowStep, Variant, variant_of
from fusedmlp.engines.chunking import SMALLEST_CHUNK
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Gradients, Parameters

if TYPE_CHECKING:
    from fusedmlp.backends.cupy.backend import CupyBackend


class NarrowEngine(FusedEngine):
    """For networks that `variant` finds a kernel for: one hidden layer, few inputs, units and outputs.

    Nothing of the size of the hidden layer is stored: of a chunk of samples only the logits are.
    """

    path = "narrow"

    def __init__(self, backend: CupyBackend, architecture: Architecture, variant: Variant) -> None:
        super().__init__(backend, architecture)
        self._narrow = NarrowStep(backend.launcher, backend.xp, architecture, variant)
        # Per sample: logits, their parts, and an x that was brought here.
        numbers = architecture.n_outputs * (self._narrow.tiles + 1) + architecture.n_inputs
        self._sample_bytes = numbers * architecture.itemsize
        self._chunk = max(SMALLEST_CHUNK, backend.workspace_bytes // self._sample_bytes)

    def _predict(self, parameters: Parameters, X: Array, out: Array) -> None:
        self.output_layer.outputs(self._logits(parameters, X), out)

    def _sum_losses(self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None) -> Array:
        return self.output_layer.sum_losses(self._logits(parameters, X), Y, sample_weight)

    def backpropagate(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """As `FusedEngine` says."""
        logits = self._logits(parameters, X) if self._narrow.needs_logits else self._room(X.shape[1])
        self._narrow.step(parameters, X, Y, sample_weight, logits, gradients, self.output_layer)
        return logits

    def _logits(self, parameters: Parameters, X: Array) -> Array:
        """Of a chunk, (m, n_out), a row per sample."""
        m, tiles = X.shape[1], self._narrow.tiles
        logits = self._room(m)
        parts = None if tiles == 1 else self._buffer("parts", (tiles, m * self.architecture.n_outputs))
        self._narrow.forward(parameters, X, logits, parts)
        return logits

    def _room(self, m: int) -> Array:
        return self._buffer("logits", (m, self.architecture.n_outputs))


def variant(backend: CupyBackend, architecture: Architecture) -> Variant | None:
    """The kernel that takes a network on the current GPU, or None."""
    launcher = backend.launcher
    precision = backend.precision if launcher.has_tf32() else "strict"
    return variant_of(architecture, precision, launcher.shared_bytes(), launcher.has_clusters())
