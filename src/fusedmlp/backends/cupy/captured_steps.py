"""Mini-batch steps captured in CUDA graphs: the host starts a step, or sixteen, with one call.

A step of a small network is a handful of kernels of a few microseconds; started one by one they wait for the host. What
changes from step to step is read from device memory (``kernels/progress.cuh``), so that a captured step is any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusedmlp.backends.cupy.mini_batch import MiniBatch
from fusedmlp.model.activations import Array
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

if TYPE_CHECKING:
    from fusedmlp.backends.cupy.fused_engine import FusedEngine

_STEPS_OF_A_GRAPH = (16, 1)


class Epochs(NamedTuple):
    """What the epochs of a training have in common.

    Attributes
    ----------
    parameters : Parameters
    samples : tuple of array of shape (n_in, m), (n_out, m), (1, m) or None
        X, Y and the weights, on the device.
    shuffled : bool
        Whether epochs have an order.
    batch_size : int
        At most m, and what the engine passes at a time.
    alpha : float
        L2.
    """

    parameters: Parameters
    samples: tuple[Array, Array, Array | None]
    shuffled: bool
    batch_size: int
    alpha: float

    def same(self, other: Epochs) -> bool:
        """Whether steps captured for one serve the other: the very same arrays."""
        arrays = zip((self.parameters, *self.samples), (other.parameters, *other.samples), strict=True)
        return self[2:] == other[2:] and all(a is b for a, b in arrays)


class CapturedSteps:
    """The steps of a training, epoch after epoch, on arrays that stay where they are.

    Every array that a graph has captured is held by this object, so that nobody else is given its memory; but for the
    moments of the optimizer, whose state has to be alive for an epoch to be run.

    Parameters
    ----------
    engine : FusedEngine
        Its `backpropagate` is captured.
    epochs : Epochs
    """

    def __init__(self, engine: FusedEngine, epochs: Epochs) -> None:
        self._engine, self.epochs = engine, epochs
        parameters, samples, shuffled, batch_size, _ = epochs
        cupy, architecture = engine.backend.xp, engine.architecture
        X, _, weights = samples
        self._m = X.shape[1]
        in_place = X.flags.c_contiguous or X.flags.f_contiguous
        self._gathers = shuffled or batch_size < self._m or not in_place
        self._order = cupy.empty((self._m,), "int64") if shuffled else None
        self._batch: list[Array | None] = [None, None, None]
        if self._gathers:
            rows = (batch_size, architecture.n_inputs), (batch_size, architecture.n_outputs), (batch_size, 1)
            needed = rows if weights is not None else rows[:2]
            self._batch = [*(cupy.empty(shape, architecture.dtype) for shape in needed), None][:3]
        self._gradients = Gradients(architecture, cupy.empty_like(parameters.flat))
        self._mini_batch = MiniBatch(engine.backend.launcher, cupy, architecture)
        self._buffers: dict[str, Array] = {}
        self._loaded: set[int] = set()
        self._graphs: dict[tuple[int, int], Any] = {}
        self._stream = cupy.cuda.Stream(non_blocking=True)
        with self._at_work():
            # For the memory that they take: once a step was taken there is no going back.
            self._pass(batch_size)
            engine.backend.launcher.weight_ranges(architecture)

    def run_epoch(self, state: OptimizerState, order: Array | None) -> float:
        """All batches, and a step after each; the loss of the epoch, as of `Engine.train_epoch`.

        Parameters
        ----------
        state : OptimizerState
            The same one every time, of an optimizer that has a kernel.
        order : array of int of shape (m,), optional
        """
        if self._order is not None:
            self._put_order(order)
        self._mini_batch.begin_epoch(state.learning_rate, state.t)
        whole, rest = divmod(self._m, self.epochs.batch_size)
        with self._at_work():
            self._run(state, self.epochs.batch_size, whole)
            if rest:
                self._run(state, rest, 1)
        state.t += whole + (rest > 0)
        return self._mini_batch.loss

    def _put_order(self, order: Any) -> None:
        """Into the place that the graphs read it from."""
        assert self._order is not None
        if self._engine.backend.owns(order):
            self._order[...] = order
        else:
            self._order.set(np.ascontiguousarray(order, np.int64))

    def _run(self, state: OptimizerState, size: int, count: int) -> None:
        """That many batches of a size. The first step of a size is not captured: it loads the kernels."""
        if size not in self._loaded:
            self._step(state, size)
            self._loaded.add(size)
            count -= 1
        for steps in _STEPS_OF_A_GRAPH:
            repeats, count = divmod(count, steps)
            if repeats and (size, steps) not in self._graphs:
                self._graphs[size, steps] = self._captured(state, size, steps)
            for _ in range(repeats):
                self._graphs[size, steps].launch(self._stream)

    def _captured(self, state: OptimizerState, size: int, steps: int) -> Any:
        """A graph of so many steps."""
        self._stream.begin_capture()
        try:
            for _ in range(steps):
                self._step(state, size)
        finally:
            graph = self._stream.end_capture()
        return graph

    def _step(self, state: OptimizerState, size: int) -> None:
        """Gather, pass, count, update: launches alone, no allocation, no word from the host."""
        engine, parameters = self._engine, self.epochs.parameters
        if self._gathers:
            batch = [x if x is None else x[:size] for x in self._batch]
            self._mini_batch.gather(self._order, self.epochs.samples, batch, self.epochs.batch_size)
        logits, of_loss = self._pass(size)
        mean = engine.loss_is_mean
        share = size / self._m if mean else 1.0
        self._mini_batch.finish(
            parameters, engine.output_layer, logits, of_loss, self.epochs.alpha, share, mean, state.optimizer
        )
        engine.backend.optimizer_step.launch(
            state, parameters, self._gradients, 1.0, self.epochs.alpha / size, self._mini_batch.progress
        )

    def _pass(self, size: int) -> tuple[Array, tuple[Array, Array | None]]:
        """(the logits of the batch, (its Y, its weights)); its gradients."""
        X, Y, weights = [x if x is None else x[:size].T for x in self._batch] if self._gathers else self.epochs.samples
        logits = self._engine.backpropagate(self.epochs.parameters, X, Y, weights, self._gradients)
        return logits, (Y, weights)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Launches go to the stream of the graphs, after all that the current one was given, and it waits for them."""
        cuda = self._engine.backend.xp.cuda
        current = cuda.get_current_stream()
        _follow(cuda, self._stream, current)
        try:
            with self._engine.passes_in(self._buffers), self._stream:
                yield
        finally:
            _follow(cuda, current, self._stream)


def _follow(cuda: Any, later: Any, earlier: Any) -> None:
    """What the later stream does from now on comes after what the earlier one has been given so far."""
    event = cuda.Event(disable_timing=True)
    event.record(earlier)
    later.wait_event(event)
