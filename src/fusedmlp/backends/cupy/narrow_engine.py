"""NarrowEngine: one kernel computes the whole step of a narrow network and stores no activations."""

from __future__ import annotations

from fusedmlp.backends.cupy.captured_engine import CapturedEngine
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.narrow_step import NarrowStep, Variant, variant_of
from fusedmlp.engines.chunking import SMALLEST_CHUNK
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.model.parameters import Gradients, Parameters

_LARGEST_SHARED_BYTES = 227 * 1024  # of a block, on the GPUs of compute capability 9.0


class NarrowEngine(CapturedEngine):
    """For networks with one hidden layer and few inputs, units and outputs (`narrow_step.variant_of`).

    Of a chunk of samples, only the logits are stored.
    """

    path = "narrow"

    @classmethod
    def covers(cls, architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
        """Whether there are kernels for the network on some GPU; `paths.choose_path` says whether they pay."""
        exists = variant_of(architecture, architecture.dtype, _LARGEST_SHARED_BYTES, clusters=True) is not None
        return exists and super().covers(architecture, optimizer)

    def __init__(self, backend: GpuPrimitives, architecture: Architecture, variant: Variant) -> None:
        super().__init__(backend, architecture)
        self._narrow = NarrowStep(backend.launcher, backend.xp, architecture, variant)
        # Per sample: logits, their parts, and x if it is copied.
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
        """As the base class."""
        logits = self._logits(parameters, X) if self._narrow.needs_logits else self._logits_buffer(X.shape[1])
        self._narrow.step(parameters, X, Y, sample_weight, logits, gradients, self.output_layer)
        return logits

    def _logits(self, parameters: Parameters, X: Array) -> Array:
        """The logits of a chunk, (m, n_out), a row per sample."""
        m, tiles = X.shape[1], self._narrow.tiles
        logits = self._logits_buffer(m)
        parts = None if tiles == 1 else self._buffer("parts", (tiles, m * self.architecture.n_outputs))
        self._narrow.forward(parameters, X, logits, parts)
        return logits

    def _logits_buffer(self, m: int) -> Array:
        return self._buffer("logits", (m, self.architecture.n_outputs))
