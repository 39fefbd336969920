"""The fused engine of numba-cpu: activations never reach main memory.

Samples pass through forward, loss and backward in tiles that stay in a core's cache; only gradients come out. No array
of n × m besides X and Y is allocated or written, so memory does not grow with m. It moves X and Y once, (n1 + nL)·m
numbers, and computes what `reference.trace` does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.backends.numba_cpu import blas, crew, gemm, inputs, layout, passes, threads, updates
from fusedmlp.backends.numba_cpu.buffers import AddressCache, AlignedArray, address_of
from fusedmlp.backends.numba_cpu.records import RunRecord, WorkerRecord, size_of, write, written
from fusedmlp.engines.base import Engine
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import SGD, Adam, OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

# A shorter run stays on one worker, even where another is awake.
_WORTH_A_HELPER_NS = 30_000
# A slot is worth its own sums, and the workers' asking for it, from about here.
_WORTH_A_SLOT_NS = 20_000
# Clearing a slot's sums and adding them up takes this long a byte; its samples should take so many times as long.
_BYTE_NS = 0.09
_SLOT_SHARE = 16
_SLOT_BYTES = 32 * 2**20
_MOST_PIECES = 16
# Samples to predict are cut into parts of whole tiles, or, if there are fewer tiles than this, into so many parts.
_FEW_PARTS, _SMALLEST_PART = 8, 64
# Arrays whose addresses are kept: parameters, gradient, X and Y, of two sets.
_ARRAYS = 8
# What workers write to for each other: apart, so that one does not take the other's cache line.
_STATE, _DONE, _STATE_SIZE = 0, 16, 32

_log = logging.getLogger("fusedmlp.compilation")


class TiledEngine(Engine):
    """Tiles through the whole network, for every activation, loss and depth, both memory orders, any m."""

    kind = "fused"

    def __init__(self, backend: Backend, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        a = architecture
        self._mean = LOSSES[a.loss].reduction == "mean"
        self._layout = layout.lay_out(a)
        self._blocked = layout.blocked_layers(a)
        self._gemm = gemm.gemm(a.dtype, gemm.library())
        # SciPy's BLAS is clip_exponent to one thread while workers call it; MKL's layer has no other.
        by_scipy = self._gemm.library == "SciPy" and not all(self._blocked)
        self._blas: AbstractContextManager[Any] = blas.scipy_one_thread if by_scipy else nullcontext()
        # Nanoseconds a sample takes: its products forward and twice backward, and its hidden units' element-wise work.
        flops = 6 * sum(n_in * n_out for n_in, n_out in a.weight_shapes)
        self._sample_ns = flops / 100 * (a.itemsize / 4) + 0.45 * sum(a.layer_sizes[1:-1]) + 20
        self._n_parameters = a.n_parameters
        vector_bytes = self._n_parameters * a.itemsize
        slot_ns = max(_WORTH_A_SLOT_NS, _SLOT_SHARE * vector_bytes * _BYTE_NS)
        self._slot_samples = max(passes.SLOT_STEP, int(slot_ns / self._sample_ns))
        scratch = _SLOT_BYTES // vector_bytes
        self._most_slots = max(2, min(64, 1 << max(0, scratch.bit_length() - 1)), threads.thread_count())
        self._slots = AlignedArray(0, a.dtype)
        self._slot_sums = AlignedArray(2 * self._most_slots, "float64")
        self._losses = AlignedArray(1, "float64")
        self._gradient = np.empty(self._n_parameters, a.dtype)
        self._addresses = AddressCache(_ARRAYS)
        chunks = -(-self._n_parameters // passes.CHUNK)
        self._piece = -(-chunks // _MOST_PIECES) * passes.CHUNK
        self._state = AlignedArray(_STATE_SIZE, "int64")
        self._run = AlignedArray(size_of(RunRecord) // 8, "int64")
        self._network = AlignedArray(0, "int64")
        self._layers = AlignedArray(0, "int64")
        self._work: int | None = None
        self._workers = AlignedArray(0, "int64")
        self._kept: list[list[AlignedArray]] = []

    def forward(self, parameters: Parameters, X: np.ndarray) -> np.ndarray:
        m = X.shape[1]
        out = np.empty((self.architecture.n_outputs, m), self.architecture.dtype)
        # Parts that follow from m alone: the same tiles, and bits, whatever the number of workers. Whole tiles, unless
        # there are too few of them to share.
        sample_ns, tile = self._sample_ns / 3, self._layout.tile
        worth, tiles = int(2 * m * sample_ns / _WORTH_A_SLOT_NS), -(-m // tile)
        parts, step = max(1, min(worth, tiles)), tile
        if tiles < _FEW_PARTS:
            parts, step = max(1, min(worth, _FEW_PARTS, m // _SMALLEST_PART)), passes.SLOT_STEP
        part = -(-m // (parts * step)) * step
        self._share(-(-m // part), m * sample_ns, flat=parameters.flat, X=X, order=None, out=address_of(out), part=part)
        return out

    def loss(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        alpha: float = 0.0,
    ) -> float:
        return float(self._batches(parameters, X, Y, sample_weight, None, alpha, X.shape[1])[0])

    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        gradients: Gradients,
        sample_weight: np.ndarray | None = None,
        alpha: float = 0.0,
    ) -> float:
        return float(self._batches(parameters, X, Y, sample_weight, None, alpha, X.shape[1], gradients.flat)[0])

    def train_epoch(
        self,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        X: np.ndarray,
        Y: np.ndarray,
        sample_weight: np.ndarray | None,
        order: np.ndarray | None,
        batch_size: int,
        alpha: float = 0.0,
    ) -> float:
        m = X.shape[1] if order is None else len(order)
        batch_size = min(batch_size, m)
        starts = np.arange(0, m, batch_size)
        if type(optimizer_state.optimizer) in (SGD, Adam):
            losses = self._batches(
                parameters, X, Y, sample_weight, order, alpha, batch_size, self._gradient, optimizer_state
            )
            optimizer_state.t += len(losses)
        else:  # an optimizer of the user's own steps in Python, after each fused gradient
            order = np.arange(m) if order is None else order
            losses = np.empty(len(starts))
            for batch, start in enumerate(starts):
                samples = order[start : start + batch_size]
                losses[batch] = self._batches(
                    parameters, X, Y, sample_weight, samples, alpha, len(samples), self._gradient
                )[0]
                optimizer_state.step(np, parameters.flat, self._gradient)
        sizes = np.minimum(batch_size, m - starts)
        return float((losses * sizes).sum() / m if self._mean else losses.sum())

    # Runs ------------------------------------------------------------------------------------------------------------

    def _batches(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        sample_weight: np.ndarray | None,
        order: np.ndarray | None,
        alpha: float,
        batch_size: int,
        result: np.ndarray | None = None,
        state: OptimizerState | None = None,
    ) -> np.ndarray:
        """The loss of every batch; the gradient of the last in `result`, if given; a step after each, if `state` is."""
        samples = X.shape[1] if order is None else len(order)
        batches, slots = -(-samples // batch_size), self._slots_of(batch_size)
        losses = self._losses.with_room(batches)
        weights = None if sample_weight is None else np.ascontiguousarray(sample_weight.reshape(-1))
        step, rates = _step_of(state, batches)
        y_row, y_sample = Y.strides
        self._share(
            slots,
            samples * self._sample_ns,
            flat=parameters.flat,
            X=X,
            order=order,
            Y=self._addresses.of(Y),
            y_row=y_row,
            y_sample=y_sample,
            weights=0 if weights is None else address_of(weights),
            batch_size=batch_size,
            batches=batches,
            batch_slots=slots,
            last_slots=slots if batches == 1 else self._slots_of(samples - (batches - 1) * batch_size),
            slots=0 if result is None else self._slots.with_room(slots * self._n_parameters).address,
            slot_sums=self._slot_sums.address,
            losses=losses.address,
            result=0 if result is None else self._addresses.of(result),
            piece=self._piece,
            pieces=-(-self._n_parameters // self._piece),
            rates=0 if rates is None else address_of(rates),
            alpha=float(alpha),
            **step,
        )
        return losses.numbers[:batches]

    def _share(
        self, tasks: int, nanoseconds: float, flat: np.ndarray, X: np.ndarray, order: np.ndarray | None, **fields: Any
    ) -> None:
        """A run of so many tasks, on as many workers as it is worth."""
        if order is not None:
            order = np.ascontiguousarray(order, np.int64)
        x_row, x_sample = X.strides
        workers = min(threads.thread_count(), tasks) if nanoseconds > _WORTH_A_HELPER_NS else 1
        with self._compiled() as work, self._blas:
            run = RunRecord(
                network=self._network.address,
                state=self._state.address + 8 * _STATE,
                done=self._state.address + 8 * _DONE,
                flat=self._addresses.of(flat),
                X=self._addresses.of(X),
                x_row=x_row,
                x_sample=x_sample,
                x_access=self._x_access(X, order is not None),
                samples=X.shape[1] if order is None else len(order),
                order=0 if order is None else address_of(order),
                **fields,
            )
            write(run, self._run)
            self._state.numbers.fill(0)
            crew.crew().share(work, self._run.address, self._records(workers), workers, nanoseconds)

    def _slots_of(self, samples: int) -> int:
        """Slots of a batch: a power of two, so that two workers, or four, have as many each."""
        worth = max(1, min(self._most_slots, samples // self._slot_samples))
        return 1 << (worth.bit_length() - 1)

    def _records(self, workers: int) -> AlignedArray:
        """The addresses of so many workers' records; kept between calls, with what they refer to."""
        while len(self._kept) < workers:
            a, tile = self.architecture, self._layout.tile
            blocks = [AlignedArray(self._layout.end // a.itemsize, a.dtype), AlignedArray(tile, "float64"), AlignedArray(tile, "int64")]
            record = written(WorkerRecord(*(block.address for block in blocks)))
            self._kept.append([record, *blocks])
            self._workers = AlignedArray(len(self._kept), "int64")
            self._workers.numbers[:] = [record.address for record, *_ in self._kept]
        return self._workers

    def _x_access(self, X: np.ndarray, ordered: bool) -> int:
        """See `inputs`."""
        if self._blocked[0]:
            return inputs.ROWS_PACKED
        n1, m = X.shape
        row, sample = X.strides
        if ordered or m == 1:
            return inputs.SAMPLES_PACKED
        samples_contiguous = row == X.itemsize or n1 == 1
        if samples_contiguous and sample % X.itemsize == 0 and n1 * X.itemsize <= sample < 2**31:
            return inputs.SAMPLES_IN_PLACE
        if sample == X.itemsize and row % X.itemsize == 0 and m * X.itemsize <= row < 2**31 * X.itemsize:
            return inputs.ROWS_IN_PLACE
        return inputs.SAMPLES_PACKED

    # Compilation -----------------------------------------------------------------------------------------------------

    def _compiled(self) -> AbstractContextManager[int]:
        """The way into compiled code. A first call says so, where it takes more than a second."""
        return self._compiling() if self._work is None else nullcontext(self._work)

    @contextmanager
    def _compiling(self) -> Iterator[int]:
        a = self.architecture
        message = f"compiling kernels for {a.hidden_activation} in {a.dtype}: about ten seconds, once on a machine"
        timer = threading.Timer(1.0, _log.info, (message,))
        timer.daemon = True
        timer.start()
        try:
            self._network, self._layers = layout.network_record(a, self._layout, self._gemm.address)
            self._work = passes.passes(a.dtype).work
            crew.crew()
        finally:
            timer.cancel()
        yield self._work


def _step_of(state: OptimizerState | None, batches: int) -> tuple[dict[str, Any], np.ndarray | None]:
    """(what a `RunRecord` says of the step, the rate of each batch, with Adam's corrections)."""
    if state is None:
        return {}, None
    optimizer, rates = state.optimizer, np.full(batches, float(state.learning_rate))
    if isinstance(optimizer, Adam):
        t = np.arange(state.t + 1, state.t + batches + 1)
        rates *= np.sqrt(1 - optimizer.beta_2**t) / (1 - optimizer.beta_1**t)
        moments = {"first_moment": address_of(state.moments["m"]), "second_moment": address_of(state.moments["v"])}
        betas = {"beta_1": optimizer.beta_1, "beta_2": optimizer.beta_2, "epsilon": optimizer.epsilon}
        return {"kind": updates.ADAM_STEP, **betas, **moments}, rates
    assert isinstance(optimizer, SGD)
    kinds = {"sgd": updates.SGD_STEP, "momentum": updates.MOMENTUM_STEP, "nesterov": updates.NESTEROV_STEP}
    velocity = address_of(state.moments["velocity"])
    moments = {"first_moment": velocity, "second_moment": velocity}
    return {"kind": kinds[optimizer.rule], "beta_1": optimizer.momentum, **moments}, rates
