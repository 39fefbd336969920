"""Mini-batch steps captured in CUDA graphs: the host starts one step, or sixteen, with one call.

A step of a small network is a handful of kernels of a few microseconds each. Launched one by one, they would wait for
the host. Numbers that change from step to step are read from device memory (`cuda_tables.PROGRESS`), so that one
captured step serves as any step.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.mini_batch import MiniBatch
from fusedmlp.backends.cupy.optimizer_step import ClipBuffers
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.engines.options import EpochPosition
from fusedmlp.model.activations import Array
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

_STEPS_OF_A_GRAPH = (16, 1)
_POLL_SECONDS = 0.05


class CapturablePasses(ComposedEngine):
    """An engine whose pass over a batch consists of kernel launches only, so that it can be captured.

    Attributes
    ----------
    output_layer : OutputLayer
    """

    backend: GpuPrimitives
    output_layer: OutputLayer

    @property
    def loss_is_mean(self) -> bool:
        """Whether J is a mean over samples."""
        return self._loss.reduction == "mean"

    @abstractmethod
    def backpropagate(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """Write Σ wᵢ ∂jᵢ/∂parameters of a chunk into `gradients`.

        Returns
        -------
        array of shape (m, n_out)
            The logits; the next pass overwrites them.
        """


class Epochs(NamedTuple):
    """The arguments that all epochs of a training share.

    Attributes
    ----------
    parameters : Parameters
    samples : tuple of array of shape (n_in, m), (n_out, m), (1, m) or None
        X, Y and the weights, on the device.
    ordered : int, optional
        The number of samples in the order of every epoch; None: no order, an epoch visits all samples as they lie.
    batch_size : int
        At most the samples of an epoch, and at most a chunk of the engine.
    alpha : float
    mean_weight, clip_norm : float, optional
    loss_factor : float
    penalty_by_weight : bool
        As in `EpochOptions`; the last one only for resident networks, and True only where it makes a difference.
    """

    parameters: Parameters
    samples: tuple[Array, Array, Array | None]
    ordered: int | None
    batch_size: int
    alpha: float
    mean_weight: float | None
    clip_norm: float | None
    loss_factor: float = 1.0
    penalty_by_weight: bool = False

    def same(self, other: Epochs) -> bool:
        """Whether steps captured for one serve the other: equal numbers, and arrays in the same memory."""
        alike = self.parameters is other.parameters and self[2:] == other[2:]
        return alike and all(_is_same(a, b) for a, b in zip(self.samples, other.samples, strict=True))


def _is_same(a: Array | None, b: Array | None) -> bool:
    """Whether two arrays are one piece of memory, seen in the same way."""
    if a is None or b is None:
        return a is b
    return a is b or (a.data.ptr, a.shape, a.strides, a.dtype) == (b.data.ptr, b.shape, b.strides, b.dtype)


def put_order(backend: GpuPrimitives, room: Array, order: Any) -> None:
    """Copy the order of an epoch, in host memory or on the device, to where kernels read it."""
    if backend.owns(order):
        room[...] = order
    else:
        room.set(np.ascontiguousarray(order, np.int64))


class CapturedSteps:
    """The steps of a training, epoch after epoch, on arrays that do not move.

    This object keeps every array that a graph has captured, except for the optimizer's moments: the caller keeps their
    state while an epoch runs.

    Parameters
    ----------
    engine : CapturablePasses
        Its `backpropagate` is captured.
    epochs : Epochs
    """

    def __init__(self, engine: CapturablePasses, epochs: Epochs) -> None:
        self._engine, self.epochs = engine, epochs
        cupy, architecture = engine.backend.xp, engine.architecture
        X, _, weights = epochs.samples
        self._m = X.shape[1] if epochs.ordered is None else epochs.ordered
        in_place = X.flags.c_contiguous or X.flags.f_contiguous
        self._gathers = epochs.ordered is not None or epochs.batch_size < self._m or not in_place
        self._order = None if epochs.ordered is None else cupy.empty((self._m,), "int64")
        self._batch: list[Array | None] = [None, None, None]
        if self._gathers:
            widths = (architecture.n_inputs, architecture.n_outputs, *([] if weights is None else [1]))
            batch = [cupy.empty((epochs.batch_size, width), architecture.dtype) for width in widths]
            for x in batch:
                x.fill(0)  # the first pass, below, comes before the first batch
            self._batch = [*batch, None][:3]
        flat = epochs.parameters.flat
        self._gradients = Gradients(architecture, cupy.empty_like(flat))
        self._clip_buffers = None if epochs.clip_norm is None else ClipBuffers(cupy, flat.size)
        self._mini_batch = MiniBatch(engine.backend.launcher, cupy, architecture)
        self._buffers: dict[str, Array] = {}
        self._loaded: set[int] = set()
        self._graphs: dict[tuple[int, int], Any] = {}
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pace, self._taken = _Pace(self._stream), 0
        with self._working():
            # Allocates the pass's buffers. It may fail here, where no step has been taken yet.
            self._pass(epochs.batch_size)
            engine.backend.launcher.weight_ranges(architecture)

    def run_epoch(
        self,
        state: OptimizerState,
        order: Array | None,
        position: EpochPosition,
        poll: Callable[[], None] | None = None,
    ) -> float:
        """Take a step for each batch; return the epoch's loss as `Engine.train_epoch` does.

        Parameters
        ----------
        state : OptimizerState
            The same one every time, of an optimizer that has a kernel. If an exception ends the epoch, its step count
            is that of the steps that were taken.
        order : array of int of shape (ordered,), optional
        position : EpochPosition
            Where the epoch begins; where it ended, afterwards.
        poll : callable, optional
            Called about every 0.05 s, when all launched steps are done.
        """
        if self._order is not None:
            put_order(self._engine.backend, self._order, order)
        self._mini_batch.begin_epoch(state.learning_rate, state.t, position)
        whole, rest = divmod(self._m, self.epochs.batch_size)
        end = whole + 1 if position.end is None else position.end
        self._pace.begin(poll)
        first, self._taken = state.t, 0
        try:
            with self._working():
                self._run(state, self.epochs.batch_size, min(whole, end) - position.batches)
                if rest and end > whole >= position.batches:
                    self._run(state, rest, 1)
        finally:
            state.t = first + self._taken
            self._pace.begin(None)  # `poll` may lead to the state, which these steps must not keep alive
            position.batches, position.loss = position.batches + self._taken, self._mini_batch.loss
        return position.loss

    def _run(self, state: OptimizerState, size: int, count: int) -> None:
        """Take `count` steps of a batch size. The first step of a size is not captured: it loads the kernels."""
        if count > 0 and size not in self._loaded:
            self._step(state, size)
            self._loaded.add(size)
            self._taken += 1
            count -= 1
            self._pace.begin(self._pace.poll)
        while count > 0:
            steps = next(n for n in _STEPS_OF_A_GRAPH if n <= (1 if self._pace.must_be_short else count))
            if (size, steps) not in self._graphs:
                self._graphs[size, steps] = self._captured(state, size, steps)
            self._graphs[size, steps].launch(self._stream)
            self._taken += steps
            count -= steps
            self._pace.after_launch(steps)

    def _captured(self, state: OptimizerState, size: int, steps: int) -> Any:
        """A graph of `steps` steps."""
        self._stream.begin_capture()
        try:
            for _ in range(steps):
                self._step(state, size)
        finally:
            graph = self._stream.end_capture()
        return graph

    def _step(self, state: OptimizerState, size: int) -> None:
        """Gather, pass, loss and factors, update: launches only, no allocation, no transfer."""
        engine, epochs = self._engine, self.epochs
        parameters, samples, _, batch_size, alpha, mean_weight, clip_norm, factor, _ = epochs
        if self._gathers:
            batch = [x if x is None else x[:size] for x in self._batch]
            self._mini_batch.gather(self._order, samples, batch, batch_size)
        logits, targets = self._pass(size)
        share = 1.0
        divisor: float | None = 1.0
        if engine.loss_is_mean:
            share = size / self._m
            divisor = None if mean_weight is None else mean_weight * size
        # share · (factor · loss + penalty) is share · factor times (loss + penalty / factor).
        self._mini_batch.finish(
            *(parameters, engine.output_layer, logits, targets),
            *(alpha / factor, share * factor, divisor, state.optimizer),
        )
        progress, buffers = self._mini_batch.progress, self._clip_buffers
        step = engine.backend.optimizer_step
        step.launch(state, parameters, self._gradients, 1.0, alpha / size, clip_norm, buffers, progress)

    def _pass(self, size: int) -> tuple[Array, tuple[Array, Array | None]]:
        """Compute the batch's gradients; (its logits, (its Y, its weights))."""
        X, Y, weights = [x if x is None else x[:size].T for x in self._batch] if self._gathers else self.epochs.samples
        logits = self._engine.backpropagate(self.epochs.parameters, X, Y, weights, self._gradients)
        return logits, (Y, weights)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Launch on the graphs' stream, after all earlier work of the current stream, which then waits for it."""
        cuda = self._engine.backend.xp.cuda
        current = cuda.get_current_stream()
        follow(cuda, self._stream, current)
        try:
            with self._engine.passes_in(self._buffers), self._stream:
                yield
        finally:
            follow(cuda, current, self._stream)


class _Pace:
    """Waits for the device and polls about every 0.05 s; without `poll` it does nothing.

    Launches return at once, so that the host could be minutes ahead of the device. Between two waits there are only as
    many steps as the device does in about 0.05 s, measured between earlier waits.

    Parameters
    ----------
    stream : cupy.cuda.Stream
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._step_seconds: float | None = None
        self.poll: Callable[[], None] | None = None

    def begin(self, poll: Callable[[], None] | None) -> None:
        """Start to measure."""
        self.poll, self._steps = poll, 0
        if poll is not None:
            self._stream.synchronize()
        self._since = time.perf_counter()

    @property
    def must_be_short(self) -> bool:
        """Whether a launch may have one step only: steps are long, or have not been measured yet."""
        most = _POLL_SECONDS / _STEPS_OF_A_GRAPH[0]
        return self.poll is not None and (self._step_seconds is None or self._step_seconds > most)

    def after_launch(self, steps: int) -> None:
        """Wait for the device and poll, if it is time; to be called after each launch of a graph."""
        self._steps += steps
        if self.poll is None or self._steps * (self._step_seconds or 1.0) < _POLL_SECONDS:
            return
        self._stream.synchronize()
        now = time.perf_counter()
        self._step_seconds, self._since = (now - self._since) / self._steps, now
        self._steps = 0
        self.poll()


def follow(cuda: Any, later: Any, earlier: Any) -> None:
    """Order the later stream's future work after the earlier stream's past work."""
    event = cuda.Event(disable_timing=True)
    event.record(earlier)
    later.wait_event(event)
