"""ComposedEngine: every pass from a backend's primitives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from fusedmlp.engines.base import Engine
from fusedmlp.engines.batches import Batch, Batching, Epoch, Masks, sum_of_weights
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.options import PLAIN, EpochOptions, EpochPosition
from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.sparse import SparseMatrix, outer_product, product
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATIONS, Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import loss_named
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters


class ComposedEngine(Batching, Engine):
    """Every pass from a backend's primitives, for every activation, loss and depth.

    It is complete, and the reference that fused engines are tested against.

    Samples pass in chunks, so that memory stays within ``backend.workspace_bytes`` whatever m is: a chunk's
    activations A_1 ... A_{L-1} and errors dZ_l are stored, the gradients are summed over the chunks.
    """

    kind: ClassVar[Literal["composed", "fused"]] = "composed"

    def __init__(self, backend: Primitives, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        self._loss = loss_named(architecture.loss)
        self._activation = HIDDEN_ACTIVATIONS[architecture.hidden_activation]
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
        order: Array | None = None,
    ) -> float:
        matrices: list[Array | None] = [X, Y, sample_weight]
        m = X.shape[1] if order is None else len(order)
        if order is not None and isinstance(X, HostMatrix):
            matrices, order = self._taken(matrices, order), None
        samples = None if order is None else self.backend.asarray(order)

        def all_chunks() -> float:
            J: Array | float = 0.0
            total_weight: Array | float = 0.0
            with self._parts(matrices, self._chunks(m), samples) as parts:
                for _, (X_part, Y_part, weight) in parts:
                    J = J + self._sum_losses(parameters, X_part, Y_part, weight)
                    total_weight = total_weight + sum_of_weights(weight, X_part.shape[1])
            return float(J * self._factor(float(total_weight), m) + self._l2_loss(parameters, alpha, m))

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
            factor = self._factor(float(sum_of_weights(sample_weight, m)), m)
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
        options: EpochOptions = PLAIN,
    ) -> float:
        m = X.shape[1] if order is None else len(order)
        matrices: list[Array | None] = [X, Y, sample_weight]
        on_host = isinstance(X, HostMatrix)
        columns = order
        if order is not None and on_host:
            matrices, order = self._taken(matrices, order), None
        elif order is not None:
            order = columns = self.backend.asarray(order)
        position = options.position or EpochPosition()
        end = m if position.end is None else min(m, position.end * batch_size)
        parts, batch = options.parts, position.batches
        done = batch * batch_size if parts is None else int(parts.starts[batch])
        epoch = Epoch(matrices, order, columns, m, end, batch_size, options, done, position.loss, batch)
        try:
            with self.backend.computing():
                train = partial(self._train, parameters, optimizer_state, epoch)
                self._with_room(train, m if on_host else min(batch_size, m))
        finally:
            position.batches, position.loss = epoch.batch, float(epoch.total)
        return position.loss

    def _taken(self, matrices: list[Array | None], order: Array) -> list[Array | None]:
        """Matrices in host memory with the samples of an order; nothing is copied."""
        samples = self.backend.to_numpy(order)
        return [x if x is None else x.take(samples) for x in matrices]

    # All chunks ------------------------------------------------------------------------------------------------------

    def _predictions(self, parameters: Parameters, X: Array) -> Array:
        """A_{L-1} of all samples, where X is."""
        shape, dtype = (self.architecture.n_outputs, X.shape[1]), self.architecture.dtype
        on_host = isinstance(X, HostMatrix)
        outputs = np.empty(shape, dtype) if on_host else self.backend.empty(shape, dtype)
        with self._parts([X], self._chunks(X.shape[1])) as parts:
            for chunk, (part,) in parts:
                if on_host:
                    out = self._buffer("outputs", (shape[0], part.shape[1]))
                    self._predict(parameters, part, out)
                    outputs[:, chunk] = self.backend.to_numpy(out)
                else:
                    self._predict(parameters, part, outputs[:, chunk])
        return outputs

    def _gradient_pass(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None,
        samples: Array | None = None,
        masks: Masks | None = None,
        poll: Callable[[], None] | None = None,
    ) -> Array | float:
        """Σ wᵢ jᵢ of the samples (None: all), and Σ wᵢ ∂jᵢ/∂parameters written into `gradients`.

        The first is still on the device: waiting for it after every batch would leave a GPU idle.
        """
        m = X.shape[1] if samples is None else len(samples)
        J: Array | float = 0.0
        if m == 0:  # all samples of the batch lie in other processes
            gradients.flat[...] = 0
        with self._parts([X, Y, sample_weight], self._chunks(m), samples) as parts:
            for chunk, (X_part, Y_part, weight) in parts:
                into = gradients if chunk.start == 0 else self._partial_sums()
                if masks is None:
                    J = J + self._pass(parameters, X_part, Y_part, weight, into)
                else:
                    J = J + self._masked_pass(parameters, X_part, Y_part, weight, into, masks.of(chunk))
                if into is not gradients:
                    gradients.flat[...] += into.flat
                if poll is not None and chunk.stop < m:
                    poll()
        return J

    def _train(self, parameters: Parameters, optimizer_state: OptimizerState, epoch: Epoch) -> None:
        """The batches of an epoch that are still to come: called again after a failure, it repeats no step."""
        if self._gradients is None:
            self._gradients = Gradients(self.architecture, self.backend.xp.empty_like(parameters.flat))
        poll = epoch.options.poll
        with closing(self._batches(epoch)) as batches:
            for batch in batches:
                masks = self._masks(epoch, batch.size, optimizer_state.t)
                X, Y, sample_weight = batch.matrices
                J = self._gradient_pass(parameters, X, Y, self._gradients, sample_weight, batch.samples, masks, poll)
                self._finish_batch(parameters, optimizer_state, epoch, batch, J)
                if poll is not None:
                    poll()

    def _masks(self, epoch: Epoch, size: int, step: int) -> Masks | None:
        """Dropout's masks of the next batch."""
        dropout = epoch.options.dropout
        if dropout is None:
            return None
        columns = epoch.columns
        samples = slice(epoch.done, epoch.done + size)
        chosen = np.arange(samples.start, samples.stop) if columns is None else columns[samples]
        parts = epoch.options.parts
        if parts is not None and parts.numbers is not None:
            chosen = parts.numbers[self.backend.to_numpy(chosen)]
        return Masks(self.backend.xp, dropout, step, self.backend.asarray(chosen))

    def _finish_batch(
        self,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        epoch: Epoch,
        batch: Batch,
        J: Array | float,
    ) -> None:
        """The gradient phase and the update of a batch, from the sums over its samples."""
        assert self._gradients is not None
        options, size, total_weight = epoch.options, float(batch.size), batch.total_weight
        if options.gradient_phase is not None:
            sums = np.array([float(J), total_weight, size])
            options.gradient_phase.apply(self._gradients.flat, sums)
            J, total_weight, size = sums.tolist()
        factor = self._factor(total_weight, size, options.mean_weight)
        penalized = total_weight if options.penalty_by_weight else size
        alpha = options.alpha if penalized else 0.0
        J = J * (factor * options.loss_factor) + self._l2_loss(parameters, alpha, penalized)
        here = batch.size if options.parts is None else size
        total = epoch.total + (J * (here / epoch.samples) if self._loss.reduction == "mean" else J)
        self._take_step(optimizer_state, parameters, factor, alpha / (penalized or 1.0), options.clip_norm)
        # Nothing is allocated between the step and this: a step that was taken is a step that counts.
        epoch.total, epoch.done, epoch.batch = total, epoch.done + batch.size, epoch.batch + 1

    def _take_step(
        self,
        optimizer_state: OptimizerState,
        parameters: Parameters,
        factor: float,
        decay: float,
        clip_norm: float | None,
    ) -> None:
        assert self._gradients is not None
        try:
            self.backend.take_step(optimizer_state, parameters, self._gradients, factor, decay, clip_norm)
        except self.backend.memory_errors as error:  # half a step may be done: nothing that could be done again
            raise MemoryError(f"no memory for a step of {optimizer_state.optimizer}: {error}") from error

    # One chunk -------------------------------------------------------------------------------------------------------

    def _forward(self, parameters: Parameters, X: Array) -> Array:
        """Z_{L-1} of a chunk; each A_l overwrites its Z_l."""
        weights, biases = parameters.weights, parameters.biases
        A, last = X, len(weights) - 1
        for layer, W in enumerate(weights):
            Z = product(self.backend, W, A, out=self._buffer(f"A{layer}", (W.shape[1], X.shape[1])))
            b = biases[layer] if biases else None
            if layer < last:
                A = self.backend.activate(Z, self.architecture.hidden_activation, b, out=Z)
            elif b is not None:
                Z += b
        return Z

    def _forward_keeping(
        self, parameters: Parameters, X: Array, masks: Masks | None
    ) -> tuple[list[Array], list[Array], list[Array | None], Array]:
        """(inputs of every layer, f' or A of every hidden layer, dropout's factors of every input, Z_{L-1})."""
        inputs, slopes, factors = [], [], []
        weights, biases = parameters.weights, parameters.biases
        A, last = X, len(weights) - 1
        for layer, W in enumerate(weights):
            factor = None if masks is None else masks.factors(layer, A)
            if factor is not None:
                A = A.toarray() if isinstance(A, SparseMatrix) else A
                A = self.backend.xp.multiply(A, factor, out=self._buffer(f"dropped{layer}", A.shape))
            inputs.append(A)
            factors.append(factor)
            Z = product(self.backend, W, A, out=self._buffer(f"A{layer}", (W.shape[1], X.shape[1])))
            b = biases[layer] if biases else None
            if layer < last:
                slope = self._buffer(f"slope{layer}", Z.shape) if self._activation.stores_slope else None
                A = self.backend.activate(Z, self._activation.name, b, out=Z, slope=slope)
                slopes.append(A if slope is None else slope)
            elif b is not None:
                Z += b
        return inputs, slopes, factors, Z

    def _predict(self, parameters: Parameters, X: Array, out: Array) -> None:
        """A_{L-1} of a chunk into `out`."""
        logits = self._forward(parameters, X)
        out[...] = self._output(self.backend.xp, logits, logits)

    def _sum_losses(self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None) -> Array:
        """Σ wᵢ jᵢ of a chunk, still on the device."""
        logits = self._forward(parameters, X)
        return self._weighted_loss(logits, Y, sample_weight)

    def _pass(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """Σ wᵢ jᵢ of a chunk, and Σ wᵢ ∂jᵢ/∂parameters written into `gradients`: reference.trace without the 1/Σw."""
        return self._masked_pass(parameters, X, Y, sample_weight, gradients, None)

    def _masked_pass(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        sample_weight: Array | None,
        gradients: Gradients,
        masks: Masks | None,
    ) -> Array:
        """`_pass` with dropout, A_l ← A_l ⊙ factors and dZ_l ← dZ_l ⊙ factors; composed on every engine."""
        backend = self.backend
        inputs, slopes, factors, Z = self._forward_keeping(parameters, X, masks)
        J = self._weighted_loss(Z, Y, sample_weight)
        dZ = self._loss.dZ(backend.xp, self._output(backend.xp, Z, Z), Y)
        if sample_weight is not None:
            dZ *= sample_weight
        weights, dW, db = parameters.weights, gradients.weights, gradients.biases
        for layer in range(len(weights) - 1, -1, -1):
            outer_product(backend, inputs[layer], dZ, out=dW[layer])
            if db:
                dZ.sum(axis=1, keepdims=True, out=db[layer])
            if layer:
                out = self._buffer(f"dZ{layer}", inputs[layer].shape)
                dZ = backend.fused_backward(weights[layer], dZ, slopes[layer - 1], self._activation.name, out=out)
                if factors[layer] is not None:
                    dZ *= factors[layer]
        return J

    def _weighted_loss(self, logits: Array, Y: Array, sample_weight: Array | None) -> Array:
        """Σ wᵢ jᵢ, still on the device."""
        j = self._loss.per_sample(self.backend.xp, logits, Y)
        return (j if sample_weight is None else j * sample_weight[0]).sum()

    # Sizes and sums --------------------------------------------------------------------------------------------------

    def _factor(self, total_weight: float, size: float, mean_weight: float | None = None) -> float:
        """The factor of sums over samples: 1 / Σw or 1 / (mean weight · samples); 1 for a loss that is a sum."""
        if self._loss.reduction == "sum":
            return 1.0
        total = total_weight if mean_weight is None else mean_weight * size
        return 1.0 / total if total else 0.0  # a batch whose weights are all 0 adds nothing

    def _l2_loss(self, parameters: Parameters, alpha: float, m: float) -> Array | float:
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
