"""The fused engine of numba-cpu: activations never reach main memory.

Samples pass through forward, loss and backward in tiles that stay in a core's cache; only gradients come out. No array
of n × m besides X and Y is allocated or written, so memory does not grow with m. It moves X and Y once, (n1 + nL)·m
numbers, and computes what `reference.trace` does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.backends.numba_cpu import layout
from fusedmlp.backends.numba_cpu.epochs import Epoch
from fusedmlp.backends.numba_cpu.kernels import (
    activation_formulas,
    batch_ends,
    inputs,
    loss_kernels,
    many,
    passes,
    sparse_products,
)
from fusedmlp.backends.numba_cpu.machine.buffers import AlignedArray, address_of
from fusedmlp.backends.numba_cpu.machine.interruption import POLL_NS, STOP_EARLY, GuardedCallback
from fusedmlp.backends.numba_cpu.machine.records import Run
from fusedmlp.backends.numba_cpu.sparsity import is_mostly_zero, sparse_copy
from fusedmlp.backends.numba_cpu.work_sizes import MOST_PIECES, Inputs, WorkSizes
from fusedmlp.backends.numba_cpu.workers import blas, crew, gemm, threads
from fusedmlp.backends.numba_cpu.workspaces import Workspaces
from fusedmlp.engines.base import Engine
from fusedmlp.engines.options import PLAIN, BatchParts, EpochOptions, EpochPosition
from fusedmlp.engines.sparse import SparseMatrix
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import loss_named
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

# A shorter run stays on one worker, even where another is awake.
_WORTH_A_HELPER_NS = 30_000
# A longer run gives Python its turn from time to time.
_WORTH_POLLING_NS = 10_000_000
# What workers write to for each other: apart, so that one does not take the other's cache line.
_STATE, _DONE, _STOP, _STEPS, _INVALID, _STATE_SIZE = 0, 16, 32, 48, 64, 80

_log = logging.getLogger("fusedmlp.compilation")


class TiledEngine(Engine):
    """Tiles through the whole network, for every activation, loss and depth, both memory orders, any m."""

    kind = "fused"

    @classmethod
    def covers(cls, architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
        """Whether there is compiled code for the activation, the loss, and the optimizer's rule."""
        stepped = optimizer is None or optimizer.rule is not None
        loss = loss_named(architecture.loss).kind
        known = architecture.hidden_activation in activation_formulas.TAGS and loss_kernels.covers(loss)
        return known and stepped

    def __init__(self, backend: Backend, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        a = architecture
        self._knows_targets = layout.target_code(loss_named(a.loss)) != inputs.OTHERS
        self._mean = loss_named(a.loss).reduction == "mean"
        self._blocked = layout.blocked_layers(a)
        self._gemm = gemm.gemm(a.dtype, gemm.library())
        # SciPy's BLAS is held to one thread while workers call it; MKL's layer has no other.
        by_scipy = self._gemm.library == "SciPy" and not all(self._blocked)
        self.blas: AbstractContextManager[Any] = blas.scipy_one_thread if by_scipy else nullcontext()
        self.sizes = sizes = WorkSizes(a)
        self._n_parameters, self._dtype = a.n_parameters, np.dtype(a.dtype)
        self._slots = AlignedArray(0, a.dtype)
        self._slot_sums = AlignedArray(2 * sizes.most_slots, "float64")
        self._sums = AlignedArray(batch_ends.NORMS // 8 + MOST_PIECES, "float64")
        self._losses = AlignedArray(1, "float64")
        self._gradient = np.empty(self._n_parameters, a.dtype)
        self._state = AlignedArray(_STATE_SIZE, "int64")
        self._invalid = self._state.address + 8 * _INVALID
        self._stop = self._state.numbers[_STOP : _STOP + 1]
        self._for_phases = self._gradient, self._sums.numbers[:3], self._stop
        self._run = Run(
            **{name: self._state.address + 8 * at for name, at in _PLACES.items()},
            slot_sums=self._slot_sums.address,
            sums=self._sums.address,
            pieces=sizes.pieces,
            piece=sizes.piece,
        )
        self._plain = Workspaces(a, self._gemm.address, sizes.sample_ns, dropout=False)
        self._masked: Workspaces | None = None
        self._work = 0
        self._flat, self._flat_address = np.empty(0), 0

    def prepared(self, X: Inputs) -> Inputs:
        """A `SparseMatrix` in place of an array in memory that is mostly zeros."""
        if not isinstance(X, np.ndarray) or X.dtype != self._dtype or not is_mostly_zero(X, self.architecture):
            return X
        copy = sparse_copy(X)
        return X if copy is None else copy

    def forward(self, parameters: Parameters, X: Inputs) -> np.ndarray:
        return self._outputs(parameters, X, 0)

    def forward_if_finite(self, parameters: Parameters, X: np.ndarray) -> np.ndarray | None:
        """`forward`; None where a number of X is NaN or infinite, which is seen while a tile of X is in the cache."""
        if not self._blocked[0]:
            return super().forward_if_finite(parameters, X)
        A = self._outputs(parameters, X, self._invalid)
        return None if self._state.numbers[_INVALID] else A

    def _outputs(self, parameters: Parameters, X: Inputs, invalid: int) -> np.ndarray:
        m = X.shape[1]
        out = np.empty((self.architecture.n_outputs, m), self._dtype)
        part = self.sizes.part_of(X, self._plain.layout.tile)
        nanoseconds = m * self.sizes.sample_ns_of(X) / 3
        self._share(
            -(-m // part), nanoseconds, parameters.flat, X, None, (address_of(out), part, invalid, *_NO_BATCHES)
        )
        return out

    def loss(
        self,
        parameters: Parameters,
        X: Inputs,
        Y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        alpha: float = 0.0,
        order: np.ndarray | None = None,
    ) -> float:
        m = X.shape[1] if order is None else len(order)
        return float(self._batches(parameters, X, Y, sample_weight, order, m, alpha=alpha)[0])

    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: Inputs,
        Y: np.ndarray,
        gradients: Gradients,
        sample_weight: np.ndarray | None = None,
        alpha: float = 0.0,
    ) -> float:
        m, result = X.shape[1], gradients.flat
        return float(self._batches(parameters, X, Y, sample_weight, None, m, result, alpha=alpha)[0])

    def loss_and_gradients_if_valid(
        self, parameters: Parameters, X: np.ndarray, Y: np.ndarray, gradients: Gradients, alpha: float = 0.0
    ) -> float | None:
        """J, or None; X and Y are checked while a tile of them is in the cache."""
        if not (self._blocked[0] and self._knows_targets):
            return None
        m, result = X.shape[1], gradients.flat
        J = self._batches(parameters, X, Y, None, None, m, result, alpha=alpha, invalid=self._invalid)[0]
        return None if self._state.numbers[_INVALID] else float(J)

    def train_epoch(
        self,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        X: Inputs,
        Y: np.ndarray,
        sample_weight: np.ndarray | None,
        order: np.ndarray | None,
        batch_size: int,
        options: EpochOptions = PLAIN,
    ) -> float:
        m = X.shape[1] if order is None else len(order)
        m = m if options.parts is None else options.parts.samples
        batch_size = min(batch_size, m)
        position = options.position or EpochPosition()
        first, batches = position.batches, -(-m // batch_size)
        losses = self._losses.with_room(batches + 1)
        losses.numbers[batches] = position.loss
        samples = parameters, X, Y, sample_weight, order, batch_size
        try:
            if optimizer_state.optimizer.rule is None:
                self._step_in_python(optimizer_state, options, position, *samples)
            else:
                epoch = Epoch(options, optimizer_state, batches, *self._for_phases, first=first)
                try:
                    self._batches(*samples, self._gradient, epoch, end=position.end)
                finally:
                    position.batches = max(first, int(self._state.numbers[_STEPS]))
                    optimizer_state.t += position.batches - first
        finally:
            span = first, position.batches, batch_size, m, int(self._mean)
            position.loss = float(many.compiled_epoch_loss()(losses.address + 8 * batches, losses.address, *span))
        return position.loss

    def _step_in_python(
        self,
        optimizer_state: OptimizerState,
        options: EpochOptions,
        position: EpochPosition,
        parameters: Parameters,
        X: Inputs,
        Y: np.ndarray,
        sample_weight: np.ndarray | None,
        order: np.ndarray | None,
        batch_size: int,
    ) -> None:
        """The batches of an epoch whose optimizer is the user's own: it steps after each fused gradient."""
        m = X.shape[1] if order is None else len(order)
        order = np.arange(m) if order is None else order
        parts, losses, polled = options.parts, self._losses, time.monotonic_ns()
        starts = [*range(0, m, batch_size), m] if parts is None else parts.starts.tolist()
        end = len(starts) - 1 if position.end is None else min(len(starts) - 1, position.end)
        for start, stop in pairwise(starts[position.batches : end + 1]):
            samples = order[start:stop]
            if parts is not None:
                part = BatchParts(np.array([0, len(samples)]), parts.samples, parts.numbers)
                options = replace(options, parts=part)
            epoch = Epoch(options, optimizer_state, 1, *self._for_phases, steps=False)
            # The run has one batch, whose loss is the first number of the room that the losses of all have.
            kept, size = losses.numbers[0], max(1, len(samples))
            loss = self._batches(parameters, X, Y, sample_weight, samples, size, self._gradient, epoch)[0]
            losses.numbers[0], losses.numbers[position.batches] = kept, loss
            optimizer_state.step(np, parameters.flat, self._gradient)
            position.batches += 1
            if options.poll is not None and time.monotonic_ns() - polled > POLL_NS:
                options.poll()
                polled = time.monotonic_ns()

    # Runs ------------------------------------------------------------------------------------------------------------

    def _batches(
        self,
        parameters: Parameters,
        X: Inputs,
        Y: np.ndarray,
        sample_weight: np.ndarray | None,
        order: np.ndarray | None,
        batch_size: int,
        result: np.ndarray | None = None,
        epoch: Epoch | None = None,
        alpha: float = 0.0,
        invalid: int = 0,
        end: int | None = None,
    ) -> np.ndarray:
        """The losses of the batches before `end` (None: of all); the gradient of the last in `result`, if given."""
        samples = X.shape[1] if order is None else len(order)
        sizes, batches = self.sizes, -(-samples // batch_size)
        fields = epoch.fields if epoch is not None else {"alpha": float(alpha)} if alpha else {}
        if epoch is not None and epoch.parts is not None:
            fields = fields | epoch.parts_of(epoch.parts, lambda size: sizes.slots_of(size, X))
            batches, batch_size = len(epoch.parts.starts) - 1, int(np.diff(epoch.parts.starts).max())
        slots = sizes.slots_of(batch_size, X)
        losses = self._losses.with_room(batches)
        weights = None if sample_weight is None else np.ascontiguousarray(sample_weight.reshape(-1))
        y_row, y_sample = Y.strides
        slot_gradients = result_address = 0
        if result is not None:
            result_address = address_of(result)
            slot_gradients = self._slots.with_room(slots * self._n_parameters).address
        last_slots = slots
        if end is not None and end < batches:
            batches = end
        elif batches > 1:
            last_slots = sizes.slots_of(samples - (batches - 1) * batch_size, X)
        self._share(
            max(2, slots) if epoch is not None and sizes.shares_steps(X) else slots,
            samples * sizes.sample_ns_of(X),
            parameters.flat,
            X,
            order,
            (
                *(0, 0, invalid, address_of(Y), y_row, y_sample, 0 if weights is None else address_of(weights)),
                *(batch_size, batches, slots, last_slots, slot_gradients, losses.address, result_address),
            ),
            epoch,
            fields,
        )
        return losses.numbers[:batches]

    def _share(
        self,
        tasks: int,
        nanoseconds: float,
        flat: np.ndarray,
        X: Inputs,
        order: np.ndarray | None,
        batches: tuple[int, ...],
        epoch: Epoch | None = None,
        fields: dict[str, Any] | None = None,
    ) -> None:
        """A run of so many tasks, on as many workers as it is worth.

        `batches` are the fields of a `RunRecord` from `out` to `result`, `fields` those after them.
        """
        fields = fields or {}
        if order is not None:
            order = np.ascontiguousarray(order, np.int64)
        workers = min(threads.thread_count(), tasks) if nanoseconds > _WORTH_A_HELPER_NS else 1
        workspaces = self.workspaces(epoch is not None and epoch.masked)
        callback = None
        if nanoseconds > _WORTH_POLLING_NS or (epoch is not None and epoch.parts is not None):
            callback = GuardedCallback((epoch and epoch.poll) or _nothing, self._stop, STOP_EARLY)
            fields = fields | {"poll": callback.address, "next_poll": time.monotonic_ns() + POLL_NS}
        X_fields, more = self.fields_of(X, order, epoch is not None and epoch.masks_inputs)
        fields = fields | more if more else fields
        self._state.numbers.fill(0)
        if epoch is not None and epoch.first:
            self._state.numbers[_STATE] = passes.state_of.py_func(epoch.first, batch_ends.SUMS)
        if flat is not self._flat:
            self._flat, self._flat_address = flat, address_of(flat)
        self._run.write((workspaces.network, self._flat_address, *X_fields, *batches), fields)
        with self.blas:
            crew.crew().share(self._work, self._run.address, workspaces.workers(workers), workers, nanoseconds)
        for source in (callback, epoch):
            if source is not None and source.error is not None:
                raise source.error

    def fields_of(self, X: Inputs, order: np.ndarray | None, masked: bool) -> tuple[tuple[int, ...], dict[str, int]]:
        """The fields of a `RunRecord` from `X` to `order`, and those that a sparse X adds.

        Parameters
        ----------
        X : array or SparseMatrix of shape (n1, m)
        order : array of int64, optional
            Contiguous.
        masked : bool
            Whether numbers of X are dropped.
        """
        samples, order_address = (X.shape[1], 0) if order is None else (len(order), address_of(order))
        if isinstance(X, SparseMatrix):
            routines = sparse_products.sparse_products(self.architecture.dtype)
            more = {"x_starts": address_of(X.starts), "x_inputs": address_of(X.inputs)} | routines._asdict()
            return (address_of(X.values), 0, 0, inputs.SPARSE, 0, samples, order_address), more
        x_access = self._x_access(X, order is not None, masked)
        convert = 0 if X.dtype == self._dtype else inputs.convert_address(self._dtype.name, X.dtype.name)
        return (address_of(X), *X.strides, x_access, convert, samples, order_address), {}

    def _x_access(self, X: np.ndarray, ordered: bool, masked: bool) -> int:
        """See `inputs`."""
        if self._blocked[0] or masked:
            return inputs.ROWS_PACKED
        n1, m = X.shape
        row, sample = X.strides
        if ordered or m == 1 or X.dtype != self._dtype:
            return inputs.SAMPLES_PACKED
        samples_contiguous = row == X.itemsize or n1 == 1
        if samples_contiguous and sample % X.itemsize == 0 and n1 * X.itemsize <= sample < 2**31:
            return inputs.SAMPLES_IN_PLACE
        if sample == X.itemsize and row % X.itemsize == 0 and m * X.itemsize <= row < 2**31 * X.itemsize:
            return inputs.ROWS_IN_PLACE
        return inputs.SAMPLES_PACKED

    # Compilation -----------------------------------------------------------------------------------------------------

    def workspaces(self, masked: bool) -> Workspaces:
        """The workers' memory and code. The first call compiles, and logs that if it takes more than a second."""
        if masked and self._masked is None:
            self._masked = Workspaces(self.architecture, self._gemm.address, self.sizes.sample_ns, dropout=True)
        workspaces = self._masked if masked and self._masked is not None else self._plain
        if not workspaces.ready:
            with self._announced():
                self._work = workspaces.compile()
                crew.crew()
        return workspaces

    @contextmanager
    def _announced(self) -> Iterator[None]:
        a = self.architecture
        kernels = a.hidden_activation, a.loss, a.dtype
        if kernels in _COMPILED:  # a thread to wait with would take longer than the rest
            yield
            return
        message = f"compiling kernels for {a.hidden_activation} in {a.dtype}: about ten seconds, once on a machine"
        timer = threading.Timer(1.0, _log.info, (message,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        _COMPILED.add(kernels)


_COMPILED: set[tuple[str, str, str]] = set()
"""Activation, loss and dtype of what this process has compiled or loaded."""
_PLACES = {"state": _STATE, "done": _DONE, "stop": _STOP, "steps": _STEPS}


_NO_BATCHES = (*[0] * 5, 1, *[0] * 5)
"""The fields of a `RunRecord` from `Y` to `result`, to predict."""


def _nothing() -> None:
    """The poll of a run that has none: Python handles signals when it is called."""
