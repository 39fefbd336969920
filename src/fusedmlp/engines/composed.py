"""ComposedEngine: every pass from a backend's primitives."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from fusedmlp.engines.base import Engine
from fusedmlp.engines.chunking import Chunking, slices
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.primitives import Primitives
from fusedmlp.model.activations import OUTPUT_ACTIVATIONS, Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters


class Batch(NamedTuple):
    """The samples of one optimizer step.

    Attributes
    ----------
    X, Y, sample_weight : array of the backend, or `HostMatrix`
    size : int
    factor : float
        What makes sums over these samples the mean, or 1.
    samples : array of int of shape (size,), optional
        Those of the matrices that are meant; None: all of them.
    """

    X: Array
    Y: Array
    sample_weight: Array | None
    size: int
    factor: float
    samples: Array | None = None


@dataclass
class _Epoch:
    """An epoch's X, Y and sample_weight, the order of samples on the device, and how far it has come."""

    matrices: list[Array | None]
    order: Array | None
    m: int
    batch_size: int
    done: int = 0
    total: Array | float = 0.0


class ComposedEngine(Chunking, Engine):
    """Every pass from a backend's primitives, for every activation, loss and depth: complete, and the yardstick.

    Samples pass in chunks, so that memory stays within ``backend.workspace_bytes`` whatever m is: a chunk's
    activations A_1 ... A_L and errors dZ_l are stored, the gradients are summed over the chunks.
    """

    kind: ClassVar[Literal["composed", "fused"]] = "composed"

    def __init__(self, backend: Primitives, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        self._loss = LOSSES[architecture.loss]
        self._output = OUTPUT_ACTIVATIONS[self._loss.output_activation]
        self._gradients: Gradients | None = None
        self._partial: Gradients | None = None

    def forward(self, parameters: Parameters, X: Array) -> Array:
        with self.backend.computing():
            return self._with_room(lambda: self._predictions(parameters, X), X.shape[1])

    def loss(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
    ) -> float:
        m = X.shape[1]

        def all_chunks() -> float:
            J: Array | float = 0.0
            with self._parts([X, Y, sample_weight], self._chunks(m)) as parts:
                for _, (X_part, Y_part, weight) in parts:
                    J = J + self._sum_losses(parameters, X_part, Y_part, weight)
            return float(J * self._scale(m, sample_weight) + self._l2_loss(parameters, alpha, m))

        with self.backend.computing():
            return self._with_room(all_chunks, m)

    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
    ) -> float:
        m = X.shape[1]

        def all_chunks() -> float:
            J = self._gradient_pass(parameters, X, Y, gradients, sample_weight)
            factor = self._scale(m, sample_weight)
            gradients.scale(parameters, factor, alpha / m)
            return float(J * factor + self._l2_loss(parameters, alpha, m))

        with self.backend.computing():
            return self._with_room(all_chunks, m)

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
        m = X.shape[1] if order is None else len(order)
        epoch = _Epoch([X, Y, sample_weight], None, m, batch_size)
        on_host = isinstance(X, HostMatrix)
        if order is not None and on_host:
            order = self.backend.to_numpy(order)
            epoch.matrices = [x if x is None else x.take(order) for x in epoch.matrices]
        elif order is not None:
            epoch.order = self.backend.asarray(order)
        with self.backend.computing():
            train = partial(self._train, parameters, optimizer_state, epoch, alpha)
            self._with_room(train, m if on_host else min(batch_size, m))
        return float(epoch.total)

    # All chunks ------------------------------------------------------------------------------------------------------

    def _predictions(self, parameters: Parameters, X: Array) -> Array:
        """A_L of all samples, where X is."""
        shape, dtype = (self.architecture.n_outputs, X.shape[1]), self.architecture.dtype
        on_host = isinstance(X, HostMatrix)
        A_L = np.empty(shape, dtype) if on_host else self.backend.empty(shape, dtype)
        with self._parts([X], self._chunks(X.shape[1])) as parts:
            for chunk, (part,) in parts:
                if on_host:
                    out = self._buffer("A_L", (shape[0], part.shape[1]))
                    self._predict(parameters, part, out)
                    A_L[:, chunk] = self.backend.to_numpy(out)
                else:
                    self._predict(parameters, part, A_L[:, chunk])
        return A_L

    def _gradient_pass(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None,
        samples: Array | None = None,
    ) -> Array | float:
        """Σ wᵢ jᵢ of the samples (None: all), still on the device, where waiting for it after every batch would idle a
        GPU; and Σ wᵢ ∂jᵢ/∂parameters written into `gradients`."""
        m = X.shape[1] if samples is None else len(samples)
        J: Array | float = 0.0
        with self._parts([X, Y, sample_weight], self._chunks(m), samples) as parts:
            for chunk, (X_part, Y_part, weight) in parts:
                into = gradients if chunk.start == 0 else self._partial_sums()
                J = J + self._pass(parameters, X_part, Y_part, weight, into)
                if into is not gradients:
                    gradients.flat += into.flat
        return J

    def _train(self, parameters: Parameters, optimizer_state: OptimizerState, epoch: _Epoch, alpha: float) -> None:
        """The batches of an epoch that are still to come: called again after a failure, it repeats no step."""
        if self._gradients is None:
            self._gradients = Gradients(self.architecture, self.backend.xp.empty_like(parameters.flat))
        with closing(self._batches(epoch)) as batches:
            for X, Y, sample_weight, size, factor, samples in batches:
                J = self._gradient_pass(parameters, X, Y, self._gradients, sample_weight, samples)
                J = J * factor + self._l2_loss(parameters, alpha, size)
                total = epoch.total + (J * (size / epoch.m) if self._loss.reduction == "mean" else J)
                self._take_step(optimizer_state, parameters, self._gradients, factor, alpha / size)
                # Nothing is allocated between the step and this: a step that was taken is a step that counts.
                epoch.total, epoch.done = total, epoch.done + size

    def _batches(self, epoch: _Epoch) -> Generator[Batch]:
        """From `epoch.done` on. One transfer from main memory serves as many whole batches as fit into a chunk."""
        whole = self._chunk // epoch.batch_size * epoch.batch_size
        X, Y, weight = epoch.matrices
        if whole == 0 or not isinstance(X, HostMatrix):
            for samples in slices(epoch.done, epoch.m, epoch.batch_size):
                yield self._batch(X, Y, weight, samples if epoch.order is None else epoch.order[samples])
            return
        with self._parts(epoch.matrices, slices(epoch.done, epoch.m, whole)) as parts:
            for group, part in parts:
                for samples in slices(group.start, group.stop, epoch.batch_size):
                    size, weight = samples.stop - samples.start, epoch.matrices[2]
                    # Summed where the weights lie: the device need not be waited for.
                    factor = self._scale(size, None if weight is None else weight.take(samples))
                    here = slice(samples.start - group.start, samples.stop - group.start)
                    X, Y, weight = self._take_all(part, here)
                    yield Batch(X, Y, weight, size, factor)

    def _batch(self, X: Array, Y: Array, sample_weight: Array | None, samples: slice | Array) -> Batch:
        """The samples of a step; copies hold until the next batch. What does not fit a chunk is not taken yet."""
        matrices = [X, Y, sample_weight]
        if isinstance(X, HostMatrix):
            X, Y, weight = (x if x is None else x.take(samples) for x in matrices)
        elif isinstance(samples, slice) or len(samples) <= self._chunk:
            X, Y, weight = self._take_all(matrices, samples)
        else:
            factor = self._scale(len(samples), None if sample_weight is None else sample_weight[:, samples])
            return Batch(X, Y, sample_weight, len(samples), factor, samples)
        return Batch(X, Y, weight, X.shape[1], self._scale(X.shape[1], weight))

    def _take_step(
        self,
        optimizer_state: OptimizerState,
        parameters: Parameters,
        gradients: Gradients,
        factor: float,
        decay: float,
    ) -> None:
        try:
            self.backend.take_step(optimizer_state, parameters, gradients, factor, decay)
        except self.backend.memory_errors as error:  # half a step may be done: nothing that could be done again
            raise MemoryError(f"no memory for a step of {optimizer_state.optimizer}: {error}") from error

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

    def _l2_loss(self, parameters: Parameters, alpha: float, m: int) -> Array | float:
        """½·alpha·Σ‖W‖² / m, still on the device."""
        if not alpha:
            return 0.0
        squares = (self.backend.xp.multiply(W, W, out=self._buffer("W²", W.shape)) for W in parameters.weights)
        return 0.5 * alpha / m * sum(square.sum(dtype=np.float64) for square in squares)

    def _partial_sums(self) -> Gradients:
        """Where the chunks after the first put their sums."""
        if self._partial is None:
            flat = self.backend.empty((self.architecture.n_parameters,), self.architecture.dtype)
            self._partial = Gradients(self.architecture, flat)
        return self._partial
