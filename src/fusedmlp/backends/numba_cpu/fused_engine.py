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
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.architecture import Architecture
from fusedmlp.backends.base import Backend
from fusedmlp.backends.numba_cpu import blas, gemm, threads
from fusedmlp.engine import Engine
from fusedmlp.losses import LOSSES
from fusedmlp.optimizers import SGD, Adam, OptimizerState
from fusedmlp.parameters import Gradients, Parameters

# Products of a layer with inputs of up to so many bytes a sample are blocked over registers; BLAS does the others.
_BLOCKED_BYTES = 16 * 1024
# Waking a worker takes up to 100 µs, and more on a core that has slept: a run shorter than this stays on one.
_WORTH_A_WORKER_NS = 300_000
# A slot is worth its own sums, and a meeting of the workers, from about here.
_WORTH_A_SLOT_NS = 20_000
# Clearing a slot's sums and adding them up takes this long a byte; its samples should take so many times as long.
_BYTE_NS = 0.09
_SLOT_SHARE = 16
_SMALLEST_TILE, _LARGEST_TILE, _TILE_STEP = 256, 512, 64
_LINE_BYTES = 64
_SLOT_BYTES = 32 * 2**20
_NONE = np.empty(0, np.int64)

_log = logging.getLogger("fusedmlp.compilation")


@cache
def cache_bytes() -> int:
    """The second-level cache of a core, read from the system; 1 MiB where it does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 2**20


class FusedEngine(Engine):
    """Tiles through the whole network, for every activation, loss and depth, both memory orders, any m."""

    kind = "fused"

    def __init__(self, backend: Backend, architecture: Architecture) -> None:
        from fusedmlp.backends.numba_cpu import outputs, primitives

        super().__init__(backend, architecture)
        self._yielder = primitives.yield_address()
        self._mean = LOSSES[architecture.loss].reduction == "mean"
        self._T, step, buffers, self._workspace_size = _lay_out_workspace(architecture)
        self._blocked = np.array(
            [n_in * architecture.itemsize <= _BLOCKED_BYTES for n_in, _ in architecture.weight_shapes]
        )
        routine = gemm.gemm(architecture.dtype, gemm.library())
        self._rest_of_plan = (
            outputs.LOSS_CODES[architecture.loss],
            np.array(architecture.layer_sizes, np.int64),
            _offsets(architecture),
            buffers,
            self._T,
            step,
            routine.address,
            self._blocked,
        )
        # SciPy's BLAS is held to one thread while workers call it; MKL's layer has no other.
        by_scipy = routine.library == "SciPy" and not self._blocked.all()
        self._blas: AbstractContextManager[Any] = blas.scipy_one_thread if by_scipy else nullcontext()
        # Nanoseconds a sample takes: its products forward and twice backward, and its hidden units' element-wise work.
        flops = 6 * sum(n_in * n_out for n_in, n_out in architecture.weight_shapes)
        self._sample_ns = flops / 100 * (architecture.itemsize / 4) + 0.45 * sum(architecture.layer_sizes[1:-1]) + 20
        slot_ns = max(_WORTH_A_SLOT_NS, _SLOT_SHARE * architecture.n_parameters * architecture.itemsize * _BYTE_NS)
        self._slot_samples = max(16, int(slot_ns / self._sample_ns))
        room = _SLOT_BYTES // (architecture.n_parameters * architecture.itemsize)
        self._most_slots = max(2, min(64, 1 << max(0, room.bit_length() - 1)), threads.thread_count())
        self._slot_gradients = np.empty((0, architecture.n_parameters), architecture.dtype)
        self._gradient = np.empty(architecture.n_parameters, architecture.dtype)
        self._has_run = False
        self._workspaces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def forward(self, parameters: Parameters, X: np.ndarray) -> np.ndarray:
        from fusedmlp.backends.numba_cpu import passes

        m = X.shape[1]
        out = np.empty((self.architecture.n_outputs, m), self.architecture.dtype)
        smallest = int(_WORTH_A_WORKER_NS / self._sample_ns)
        with self._announced(), self._blas:
            x = self._reach(X, _NONE)
            tasks = []
            # Whole tiles to each worker: the same tiles, and bits, whatever the number of workers.
            for worker, (first, last) in enumerate(threads.split(-(-m // self._T), -(-smallest // self._T))):
                arrays = self._worker_arrays(worker)
                part = first * self._T, min(m, last * self._T)
                tasks.append(partial(passes.predict, self._plan(), parameters.flat, arrays, x, _NONE, out, *part))
            threads.run(tasks)
        return out

    def loss(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        alpha: float = 0.0,
    ) -> float:
        return float(self._run(parameters, X, Y, sample_weight, None, alpha, X.shape[1])[0])

    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: np.ndarray,
        Y: np.ndarray,
        gradients: Gradients,
        sample_weight: np.ndarray | None = None,
        alpha: float = 0.0,
    ) -> float:
        return float(self._run(parameters, X, Y, sample_weight, None, alpha, X.shape[1], gradients.flat)[0])

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
            losses = self._run(
                parameters, X, Y, sample_weight, order, alpha, batch_size, self._gradient, optimizer_state
            )
            optimizer_state.t += len(losses)
        else:  # an optimizer of the user's own steps in Python, after each fused gradient
            order = np.arange(m) if order is None else order
            losses = np.empty(len(starts))
            for batch, start in enumerate(starts):
                samples = order[start : start + batch_size]
                losses[batch] = self._run(
                    parameters, X, Y, sample_weight, samples, alpha, len(samples), self._gradient
                )[0]
                optimizer_state.step(np, parameters.flat, self._gradient)
        sizes = np.minimum(batch_size, m - starts)
        return float((losses * sizes).sum() / m if self._mean else losses.sum())

    # One run over batches --------------------------------------------------------------------------------------------

    def _run(
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
        from fusedmlp.backends.numba_cpu import passes

        alpha = float(alpha)  # an int would compile everything again
        order = _NONE if order is None else np.ascontiguousarray(order, np.int64)
        samples = order.size or X.shape[1]
        losses = np.empty(-(-samples // batch_size))
        optimizer, rates, moments = _step_of(state, parameters.flat, len(losses))
        slots = passes.slots_of(batch_size, self._most_slots, self._slot_samples)
        slot_gradients = self._slots(slots) if result is not None else np.empty((slots, 0), parameters.flat.dtype)
        batches = (samples, batch_size, self._most_slots, self._slot_samples, self._mean, result is not None)
        slot_sums = np.empty((slots, 2))
        weights = np.empty(0, parameters.flat.dtype) if sample_weight is None else sample_weight.reshape(-1)
        data = (
            self._reach(X, order),
            (Y.ctypes.data, Y.strides[0], Y.strides[1]),
            np.ascontiguousarray(weights),
            order,
        )
        flat = parameters.flat
        vectors = (flat, flat if result is None else result, moments, slot_gradients, slot_sums)
        counter = np.zeros(1, np.int64)
        wanted = slots if samples * self._sample_ns > _WORTH_A_WORKER_NS else 1
        with self._announced(), threads.gang(wanted) as workers, self._blas:
            tasks = []
            for me in range(workers):
                team, arrays = (me, workers, counter, self._yielder), self._worker_arrays(me)
                run = partial(passes.run_batches, self._plan(), team, batches, alpha, optimizer, rates)
                tasks.append(partial(run, *vectors, arrays, data, losses))
            threads.run(tasks)
        return losses

    def _announced(self) -> AbstractContextManager[None]:
        """Around a first call: say so, where it takes more than a second, that the kernels are being compiled."""
        return nullcontext() if self._has_run else self._announcing()

    @contextmanager
    def _announcing(self) -> Iterator[None]:
        a = self.architecture
        message = f"compiling kernels for {a.hidden_activation} in {a.dtype}: 10 to 20 seconds, once on a machine"
        timer = threading.Timer(1.0, _log.info, (message,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        self._has_run = True

    def _slots(self, slots: int) -> np.ndarray:
        """Room for the gradient of every slot, kept between calls."""
        if len(self._slot_gradients) < slots:
            self._slot_gradients = np.empty((slots, self.architecture.n_parameters), self.architecture.dtype)
        return self._slot_gradients

    def _plan(self) -> tuple[Any, ...]:
        """What `passes` take it for. What is called by address is compiled at the first call."""
        from fusedmlp.backends.numba_cpu import outputs, products, sweeps, updates

        a = self.architecture
        forward, backward = sweeps.sweeps(a.hidden_activation, a.dtype)
        of_dtype = (*products.products(a.dtype), *outputs.outputs(a.dtype), *updates.updates(a.dtype))
        return ((forward, backward, *of_dtype), *self._rest_of_plan)

    def _worker_arrays(self, worker: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(numbers of a tile, its losses, addresses of its samples) for a worker; kept between calls."""
        while len(self._workspaces) <= worker:
            workspace = _aligned_zeros(self._workspace_size, self.architecture.dtype)
            self._workspaces.append((workspace, np.empty(self._T), np.empty(self._T, np.int64)))
        return self._workspaces[worker]

    def _reach(self, X: np.ndarray, order: np.ndarray) -> tuple[int, int, int, int]:
        """(address, bytes between rows, bytes between samples, how a tile is reached)."""
        from fusedmlp.backends.numba_cpu import tiles

        n1, m = X.shape
        row, sample = X.strides
        samples_contiguous = row == X.itemsize or n1 == 1
        if self._blocked[0]:
            how = tiles.ROWS_PACKED
        elif order.size or m == 1:
            how = tiles.SAMPLES_PACKED
        elif samples_contiguous and sample % X.itemsize == 0 and n1 * X.itemsize <= sample < 2**31:
            how = tiles.SAMPLES_IN_PLACE
        elif sample == X.itemsize and row % X.itemsize == 0 and m * X.itemsize <= row < 2**31 * X.itemsize:
            how = tiles.ROWS_IN_PLACE
        else:
            how = tiles.SAMPLES_PACKED
        return X.ctypes.data, row, sample, how


def _offsets(architecture: Architecture) -> np.ndarray:
    """Where W and b of each layer start in the flat vector, shape (layers, 2); -1 for a b that is not there."""
    offsets, at = [], 0
    for n_in, n_out in architecture.weight_shapes:
        offsets.append((at, at + n_in * n_out if architecture.bias else -1))
        at += (n_in + architecture.bias) * n_out
    return np.array(offsets, np.int64)


def _lay_out_workspace(architecture: Architecture) -> tuple[int, int, np.ndarray, int]:
    """(samples of a tile, numbers from row to row, where each buffer starts, numbers in all).

    Buffers: Z_1 ... Z_L, then Y, weights, scratch of products, W dZ, and packed X. A tile fits a core's second-level
    cache; that of a wide network takes more, because products slow down on fewer samples. Rows are a cache line longer
    than the tile: at a distance of a power of two they would share few lines of the first-level cache.
    """
    from fusedmlp.backends.numba_cpu import products

    n1, *layers = architecture.layer_sizes
    widest = max(layers[:-1], default=0) if architecture.n_outputs > 1 or len(layers) > 2 else 0
    resident = (sum(layers) + architecture.n_outputs + 1 + widest + n1) * architecture.itemsize
    T = max(_SMALLEST_TILE, min(_LARGEST_TILE, cache_bytes() // resident // _TILE_STEP * _TILE_STEP))
    step = T + _LINE_BYTES // architecture.itemsize
    scratch = -(-products.SCRATCH_BYTES // architecture.itemsize // step)
    starts = np.concatenate([[0], np.cumsum([*layers, architecture.n_outputs, 1, scratch, widest, n1])]) * step
    return T, step, starts[:-1].astype(np.int64), int(starts[-1])


def _aligned_zeros(size: int, dtype: str) -> np.ndarray:
    """Zeros that start at a cache line, so that no register's worth of them lies across two."""
    numbers = np.zeros(size + _LINE_BYTES // np.dtype(dtype).itemsize, dtype)
    skipped = -numbers.ctypes.data % _LINE_BYTES // numbers.itemsize
    return numbers[skipped : skipped + size]


def _step_of(
    state: OptimizerState | None, flat: np.ndarray, batches: int
) -> tuple[tuple[int, float, float, float], np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """((kind of step, beta_1, beta_2, epsilon), the rate of each batch, (first moment, second moment))."""
    from fusedmlp.backends.numba_cpu import updates

    if state is None:
        return (updates.NO_STEP, 0.0, 0.0, 0.0), np.empty(batches), (flat, flat)
    optimizer, rates = state.optimizer, np.full(batches, float(state.learning_rate))
    if isinstance(optimizer, Adam):
        t = np.arange(state.t + 1, state.t + batches + 1)
        rates *= np.sqrt(1 - optimizer.beta_2**t) / (1 - optimizer.beta_1**t)
        moments = state.moments["m"], state.moments["v"]
        return (updates.ADAM_STEP, optimizer.beta_1, optimizer.beta_2, optimizer.epsilon), rates, moments
    assert isinstance(optimizer, SGD)
    kind = updates.SGD_STEP
    if optimizer.momentum:
        kind = updates.NESTEROV_STEP if optimizer.nesterov else updates.MOMENTUM_STEP
    velocity = state.moments["velocity"]
    return (kind, optimizer.momentum, 0.0, 0.0), rates, (velocity, velocity)
