"""MiddleEngine: one kernel does everything between the two products of the last hidden layer.

A composed step on a network with one hidden layer moves the hidden activations nine times. Here cuBLAS writes Z1,
``kernels/hidden_layer.cu`` reads it and writes dZ1 in its place, and cuBLAS reads that: four times, or five if the
layer has more units than a block of the kernel. `LowerLayers` computes the hidden layers below it.
"""

from __future__ import annotations

import numpy as np

from fusedmlp.backends.cupy.captured_engine import CapturedEngine
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.hidden_layer import HiddenLayer, has_kernel
from fusedmlp.backends.cupy.lower_layers import LowerLayers
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.model.parameters import Gradients, Parameters


class MiddleEngine(CapturedEngine):
    """For networks with hidden layers and up to 16 outputs. A_l.T is (m, n_l) in C order, a row per sample.

    Attributes
    ----------
    lower : LowerLayers
        The hidden layers below the last one; `lower.routes` says how they were computed.
    """

    path = "middle"

    @classmethod
    def covers(cls, architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
        """Whether there are kernels for the network, and for the optimizer's rule."""
        return super().covers(architecture, optimizer) and has_kernel(architecture)

    def __init__(self, backend: GpuPrimitives, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        self._hidden = HiddenLayer(backend.launcher, backend.xp, architecture)
        self.lower = LowerLayers(backend, architecture, self._buffer)

    def forward(self, parameters: Parameters, X: Array) -> Array:
        """As the base class; all NaN where the weights are not finite and a pass may have hidden it."""
        outputs = super().forward(parameters, X)
        if self._hidden_nan(parameters):
            outputs.fill(np.nan)
        return outputs

    def loss(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
        order: Array | None = None,
    ) -> float:
        """As the base class; NaN where the weights are not finite and a pass may have hidden it."""
        J = super().loss(parameters, X, Y, sample_weight, alpha, order)
        return np.nan if self._hidden_nan(parameters) else J

    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
    ) -> float:
        """As the base class; NaN where the weights are not finite and a pass may have hidden it."""
        J = super().loss_and_gradients(parameters, X, Y, gradients, sample_weight, alpha)
        return np.nan if self._hidden_nan(parameters) else J

    def _hidden_nan(self, parameters: Parameters) -> bool:
        return self.lower.hides_nan and not self.backend.all_finite(parameters.flat)

    def _predict(self, parameters: Parameters, X: Array, out: Array) -> None:
        self.output_layer.outputs(self._logits(parameters, X), out)

    def _sum_losses(self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None) -> Array:
        return self.output_layer.sum_losses(self._logits(parameters, X), Y, sample_weight)

    def backpropagate(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """As the base class; dZ overwrites Z."""
        A, Z = self._up_to_last(parameters, X, keep_masks=True)
        logits, parts = self._logits_buffers(X.shape[1])
        self._hidden.forward(parameters, Z, logits, parts, self.output_layer, Y, sample_weight, gradients)
        dZ = Z.T
        for layer in range(len(A) - 1, -1, -1):
            self.backend.matmul(A[layer], dZ.T, out=gradients.weights[layer])
            if layer:
                dZ = self.lower.backward(parameters, layer, A[layer], dZ, gradients)
        return logits

    def _logits(self, parameters: Parameters, X: Array) -> Array:
        _, Z = self._up_to_last(parameters, X, keep_masks=False)
        logits, parts = self._logits_buffers(X.shape[1])
        self._hidden.forward(parameters, Z, logits, parts, self.output_layer)
        return logits

    def _logits_buffers(self, m: int) -> tuple[Array, Array | None]:
        """Memory for the logits, and for the parts of them that tiles of units make."""
        tiles, n_out = self._hidden.tiles, self.architecture.n_outputs
        parts = None if tiles == 1 else self._buffer("parts", (tiles, m * n_out))
        return self._buffer("logits", (m, n_out)), parts

    def _up_to_last(self, parameters: Parameters, X: Array, keep_masks: bool) -> tuple[list[Array], Array]:
        """([A_0 = X, A_1, ...] below the last hidden layer, its Zᵀ (m, n) without the bias)."""
        A, W = self.lower.forward(parameters, X, keep_masks), parameters.weights[-2]
        Z = self.lower.rows("Z", X.shape[1], W.shape[1])
        return A, self.backend.matmul(A[-1].T, W, out=Z)
