"""MiddleEngine: one kernel does everything between the two products of the last hidden layer.

A composed step on a network with one hidden layer moves the hidden activations nine times. Here cuBLAS writes Z1,
``kernels/hidden_layer.cu`` reads it and writes dZ1 in its place, and cuBLAS reads that: four times, or five if the
layer has more units than a block of the kernel. Lower hidden layers are computed as in the composed engine.
"""

from __future__ import annotations

from fusedmlp.backends.cupy.captured_engine import CapturedEngine
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.hidden_layer import HiddenLayer, has_kernel
from fusedmlp.backends.cupy.launch import PACK_BYTES
from fusedmlp.backends.cupy.sums import ranges_of, sum_rows
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.model.parameters import Gradients, Parameters


class MiddleEngine(CapturedEngine):
    """For networks with hidden layers and up to 16 outputs. A_l.T is (m, n_l) in C order, a row per sample."""

    path = "middle"

    @classmethod
    def covers(cls, architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
        """Whether there are kernels for the network, and for the optimizer's rule."""
        return super().covers(architecture, optimizer) and has_kernel(architecture)

    def __init__(self, backend: GpuPrimitives, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        self._hidden = HiddenLayer(backend.launcher, backend.xp, architecture)

    def _predict(self, parameters: Parameters, X: Array, out: Array) -> None:
        self.output_layer.outputs(self._logits(parameters, X), out)

    def _sum_losses(self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None) -> Array:
        return self.output_layer.sum_losses(self._logits(parameters, X), Y, sample_weight)

    def backpropagate(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """As the base class; dZ overwrites Z."""
        backend, activation = self.backend, self.architecture.hidden_activation
        A, Z = self._up_to_last(parameters, X)
        logits, parts = self._logits_buffers(X.shape[1])
        self._hidden.forward(parameters, Z, logits, parts, self.output_layer, Y, sample_weight, gradients)
        dZ = Z.T
        for layer in range(len(A) - 1, -1, -1):
            backend.matmul(A[layer], dZ.T, out=gradients.weights[layer])
            if gradients.biases and layer < len(A) - 1:
                self._sum_samples(dZ, gradients.biases[layer])
            if layer:
                out = self._buffer(f"dZ{layer}", A[layer].shape[::-1]).T
                dZ = backend.fused_backward(parameters.weights[layer], dZ, A[layer], activation, out=out)
        return logits

    def _logits(self, parameters: Parameters, X: Array) -> Array:
        _, Z = self._up_to_last(parameters, X)
        logits, parts = self._logits_buffers(X.shape[1])
        self._hidden.forward(parameters, Z, logits, parts, self.output_layer)
        return logits

    def _logits_buffers(self, m: int) -> tuple[Array, Array | None]:
        """Memory for the logits, and for the parts of them that tiles of units make."""
        tiles, n_out = self._hidden.tiles, self.architecture.n_outputs
        parts = None if tiles == 1 else self._buffer("parts", (tiles, m * n_out))
        return self._buffer("logits", (m, n_out)), parts

    def _sum_samples(self, dZ: Array, out: Array) -> None:
        """Write Σ over the samples of dZ (n, m), in Fortran order, into `out` (n, 1)."""
        n, m = dZ.shape
        rows, launcher = dZ.T, self.backend.launcher
        if (ranges := ranges_of(m)) > 1:
            partial = self._buffer("sums", (ranges, n))
            sum_rows(launcher, rows, partial)
            rows = partial
        sum_rows(launcher, rows, out.reshape(n))

    def _rows(self, name: str, m: int, n: int) -> Array:
        """A buffer (m, n) in C order. Each row starts on a multiple of 16 bytes, for accesses of 16 bytes."""
        pack = PACK_BYTES // self.architecture.itemsize
        return self._buffer(name, (m, -(-n // pack) * pack))[:, :n]

    def _up_to_last(self, parameters: Parameters, X: Array) -> tuple[list[Array], Array]:
        """([A_0 = X, A_1, ...] below the last hidden layer, its Zᵀ (m, n) without the bias)."""
        A, m, last = [X], X.shape[1], len(parameters.weights) - 2
        for layer in range(last + 1):
            W = parameters.weights[layer]
            out = self._buffer(f"A{layer}", (m, W.shape[1])) if layer < last else self._rows("Z", m, W.shape[1])
            Z = self.backend.matmul(A[-1].T, W, out=out)
            if layer < last:
                b = parameters.bias(layer)
                A.append(self.backend.activate(Z.T, self.architecture.hidden_activation, b, out=Z.T))
        return A, Z
