"""Whole passes through a network: the Engine interface, and the engine that any backend's primitives make.

Engines take validated arrays of their backend's own kind, with a column as a sample: X (n1, m), Y (nL, m),
sample_weight (1, m) or None. `fusedmlp.reference.trace` is the mathematics that every engine computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np

from fusedmlp.activations import OUTPUT_ACTIVATIONS, Array
from fusedmlp.architecture import Architecture
from fusedmlp.backends.base import Backend
from fusedmlp.losses import LOSSES
from fusedmlp.optimizers import OptimizerState
from fusedmlp.parameters import Gradients, Parameters


class Engine(ABC):
    """Whole passes, specialised once to an architecture.

    An engine owns a workspace and is used by one thread at a time; make one per thread.

    Attributes
    ----------
    kind : {"composed", "fused"}
        Whether passes are made of primitives, or run fused without storing activations.
    """

    kind: ClassVar[Literal["composed", "fused"]]

    def __init__(self, backend: Backend, architecture: Architecture) -> None:
        self.backend = backend
        self.architecture = architecture

    @abstractmethod
    def forward(self, parameters: Parameters, X: Array) -> Array:
        """A_L, a new array of shape (nL, m)."""

    @abstractmethod
    def loss(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None = None, alpha: float = 0.0
    ) -> float:
        """J, with the L2 term ½·alpha·Σ‖W‖² / m."""

    @abstractmethod
    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
    ) -> float:
        """J as `loss`, and ∂J/∂(flat parameters) written into `gradients`."""

    @abstractmethod
    def train_epoch(
        self,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        X: Array,
        Y: Array,
        sample_weight: Array | None,
        order: Array | None,
        batch_size: int,
        alpha: float = 0.0,
    ) -> float:
        """One pass over the samples in batches, each followed by an optimizer step.

        Parameters
        ----------
        parameters : Parameters
            Changed in place.
        optimizer_state : OptimizerState
            Changed in place.
        order : array of shape (k,) of int, optional
            The samples to visit, in this order; None visits all of them as they lie.
        batch_size : int
            The last batch may be smaller.
        alpha : float
            L2: every batch adds ½·alpha·Σ‖W‖² / (samples of the batch).

        Returns
        -------
        float
            The losses of the batches, each before its step, averaged by their number of samples (summed for a loss
            that is itself a sum).
        """


class ComposedEngine(Engine):
    """Every pass from a backend's primitives, for every activation, loss and depth: complete, and the yardstick.

    Samples pass in chunks, so that memory stays within ``backend.workspace_bytes`` whatever m is: a chunk's
    activations A_1 ... A_L and errors dZ_l are stored, the gradients are summed over the chunks.
    """

    kind: ClassVar[Literal["composed", "fused"]] = "composed"

    def __init__(self, backend: Backend, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        self._loss = LOSSES[architecture.loss]
        self._output = OUTPUT_ACTIVATIONS[self._loss.output_activation]
        # Per sample: A_l and dZ_l of every layer behind the input, and a gathered x.
        numbers = 2 * sum(architecture.layer_sizes[1:]) + architecture.n_inputs
        self._chunk = max(256, backend.workspace_bytes // (numbers * architecture.itemsize))
        self._buffers: dict[str, Array] = {}
        self._gradients: Gradients | None = None
        self._partial: Gradients | None = None

    def forward(self, parameters: Parameters, X: Array) -> Array:
        A_L = self.backend.empty((self.architecture.n_outputs, X.shape[1]), self.architecture.dtype)
        with self.backend.computing():
            for chunk in self._chunks(X.shape[1]):
                self._predict(parameters, X[:, chunk], A_L[:, chunk])
        return A_L

    def loss(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None = None, alpha: float = 0.0
    ) -> float:
        m = X.shape[1]
        J: Array | float = 0.0
        with self.backend.computing():
            for chunk in self._chunks(m):
                J = J + self._sum_losses(parameters, X[:, chunk], Y[:, chunk], _columns(sample_weight, chunk))
        return float(J * self._scale(m, sample_weight) + self._l2_loss(parameters, alpha, m))

    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
    ) -> float:
        with self.backend.computing():
            J, factor = self._gradient_pass(parameters, X, Y, gradients, sample_weight, alpha)
            gradients.scale(parameters, factor, alpha / X.shape[1])
            return float(J)

    def _gradient_pass(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None,
        alpha: float,
    ) -> tuple[Array | float, float]:
        """(J still on the device: waiting for it after every batch would idle a GPU; the factor that makes `gradients`
        those of J, without its L2 term)."""
        m = X.shape[1]
        J: Array | float = 0.0
        for chunk in self._chunks(m):
            into = gradients if chunk.start == 0 else self._partial_sums()
            J = J + self._pass(parameters, X[:, chunk], Y[:, chunk], _columns(sample_weight, chunk), into)
            if into is not gradients:
                gradients.flat += into.flat
        factor = self._scale(m, sample_weight)
        return J * factor + self._l2_loss(parameters, alpha, m), factor

    def train_epoch(
        self,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        X: Array,
        Y: Array,
        sample_weight: Array | None,
        order: Array | None,
        batch_size: int,
        alpha: float = 0.0,
    ) -> float:
        if self._gradients is None:
            self._gradients = Gradients(self.architecture, self.backend.xp.empty_like(parameters.flat))
        m = X.shape[1] if order is None else len(order)
        total: Array | float = 0.0
        with self.backend.computing():
            for start in range(0, m, batch_size):
                stop = min(start + batch_size, m)
                samples = slice(start, stop) if order is None else order[start:stop]
                # X.T[samples] reads whole samples where they are contiguous, as in a table of rows.
                batch = (X.T[samples].T, Y.T[samples].T, self._gradients, _columns(sample_weight, samples), alpha)
                J, factor = self._gradient_pass(parameters, *batch)
                self.backend.take_step(optimizer_state, parameters, self._gradients, factor, alpha / (stop - start))
                total = total + (J * ((stop - start) / m) if self._loss.reduction == "mean" else J)
        return float(total)

    # One chunk -------------------------------------------------------------------------------------------------------

    def _forward(self, parameters: Parameters, X: Array) -> tuple[list[Array], Array]:
        """([A_0 = X, A_1, ..., A_{L-1}], Z_L): each A_l overwrites its Z_l."""
        A = [X]
        last = len(parameters.weights) - 1
        for layer, W in enumerate(parameters.weights):
            Z = self.backend.matmul(W.T, A[-1], out=self._buffer(f"A{layer}", (W.shape[1], X.shape[1])))
            b = parameters.bias(layer)
            if layer < last:
                A.append(self.backend.activate(Z, self.architecture.hidden_activation, b, out=Z))
            elif b is not None:
                Z += b
        return A, Z

    def _predict(self, parameters: Parameters, X: Array, out: Array) -> None:
        """A_L of a chunk into `out`."""
        _, Z_L = self._forward(parameters, X)
        out[...] = self._output(self.backend.xp, Z_L, Z_L)

    def _sum_losses(self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None) -> Array:
        """Σ wᵢ jᵢ of a chunk, still on the device."""
        _, Z_L = self._forward(parameters, X)
        return self._weighted_loss(Z_L, Y, sample_weight)

    def _pass(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """Σ wᵢ jᵢ of a chunk, and Σ wᵢ ∂jᵢ/∂parameters written into `gradients`: reference.trace without the 1/Σw."""
        backend = self.backend
        A, Z = self._forward(parameters, X)
        J = self._weighted_loss(Z, Y, sample_weight)
        dZ = self._loss.dZ(backend.xp, self._output(backend.xp, Z, Z), Y)
        if sample_weight is not None:
            dZ *= sample_weight
        for layer in range(len(parameters.weights) - 1, -1, -1):
            backend.matmul(A[layer], dZ.T, out=gradients.weights[layer])
            if gradients.biases:
                dZ.sum(axis=1, keepdims=True, out=gradients.biases[layer])
            if layer:
                out = self._buffer(f"dZ{layer}", A[layer].shape)
                dZ = backend.fused_backward(
                    parameters.weights[layer], dZ, A[layer], self.architecture.hidden_activation, out=out
                )
        return J

    def _weighted_loss(self, Z_L: Array, Y: Array, sample_weight: Array | None) -> Array:
        """Σ wᵢ jᵢ, still on the device."""
        j = self._loss.per_sample(self.backend.xp, Z_L, Y)
        return (j if sample_weight is None else j * sample_weight[0]).sum()

    # Sizes and sums --------------------------------------------------------------------------------------------------

    def _scale(self, m: int, sample_weight: Array | None) -> float:
        """1 / Σw, or 1 for a loss that is a sum."""
        if self._loss.reduction == "sum":
            return 1.0
        total = m if sample_weight is None else float(sample_weight.sum(dtype=np.float64))
        return 1.0 / total if total else 0.0  # a batch whose weights are all 0 adds nothing

    @staticmethod
    def _l2_loss(parameters: Parameters, alpha: float, m: int) -> Array | float:
        """½·alpha·Σ‖W‖² / m, still on the device."""
        if not alpha:
            return 0.0
        return 0.5 * alpha / m * sum((W * W).sum(dtype=np.float64) for W in parameters.weights)

    def _chunks(self, m: int) -> Iterator[slice]:
        for start in range(0, m, self._chunk):
            yield slice(start, min(start + self._chunk, m))

    def _buffer(self, name: str, shape: tuple[int, int]) -> Array:
        """A reused (n, columns) array: a piece of one flat allocation that grows to the largest chunk seen."""
        size = shape[0] * shape[1]
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = self.backend.empty((size,), self.architecture.dtype)
        return self._buffers[name][:size].reshape(shape)

    def _partial_sums(self) -> Gradients:
        """Where the chunks after the first put their sums."""
        if self._partial is None:
            flat = self.backend.empty((self.architecture.n_parameters,), self.architecture.dtype)
            self._partial = Gradients(self.architecture, flat)
        return self._partial


def _columns(sample_weight: Array | None, samples: slice | Array) -> Array | None:
    return None if sample_weight is None else sample_weight[:, samples]
