"""CapturedEngine: what cupy's fused engines share, the output layer and training by captured steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from fusedmlp.backends.cupy import cuda_tables
from fusedmlp.backends.cupy.captured_steps import CapturablePasses, CapturedSteps, Epochs
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.backends.cupy.resident import ResidentEpochs
from fusedmlp.backends.cupy.resident_costs import stays_resident
from fusedmlp.backends.cupy.resident_plan import ResidentPlan, moments_of, plan_of
from fusedmlp.engines.chunking import slices
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.options import PLAIN, EpochOptions, EpochPosition
from fusedmlp.engines.windows import Windows
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

_ROOMS = 4
"""Captured steps of samples that come in windows: for full windows in each of two rooms, and for the last window."""

_log = logging.getLogger("fusedmlp")


class CapturedEngine(CapturablePasses):
    """A fused engine on the GPU.

    Epochs run as captured steps where the optimizer has a kernel; samples in host memory come to the GPU in windows,
    whose steps are captured too. A gradient phase runs on the host between the fused passes and the update, step by
    step. Dropout has no kernels: epochs with dropout run on a composed engine.

    Attributes
    ----------
    path : {"narrow", "middle"}
        Which of the two fused kernels it uses.
    output_layer : OutputLayer
    other_for_batches : callable, optional
        Batch size -> the engine that takes captured steps of that size in place of this one, or None.
    """

    kind = "fused"
    path: ClassVar[str]
    other_for_batches: Callable[[int], CapturedEngine | None] | None = None

    def __init__(self, backend: GpuPrimitives, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        self.output_layer = OutputLayer(backend.launcher, backend.xp, architecture)
        # They keep samples on the GPU for as long as a training lasts, that is, as its optimizer's state lives.
        self._steps: WeakKeyDictionary[OptimizerState, list[CapturedSteps | ResidentEpochs]] = WeakKeyDictionary()
        self._composed: ComposedEngine | None = None
        self._plans: dict[tuple[int, int], ResidentPlan | None] = {}

    @classmethod
    def covers(cls, architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
        """Whether there are CUDA functions for the activation, the loss and the optimizer's rule."""
        return cuda_tables.covers(architecture, optimizer)

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
        """As the composed engine's, by captured steps where that is possible (see the class)."""
        arguments = (parameters, optimizer_state, X, Y, sample_weight, order, batch_size, options)
        if options.dropout is not None:
            return self._composed_engine().train_epoch(*arguments)
        capturable = options.gradient_phase is None and self.covers(self.architecture, optimizer_state.optimizer)
        if not capturable or (isinstance(X, HostMatrix) and batch_size > self._chunk):
            return super().train_epoch(*arguments)
        if isinstance(X, HostMatrix):
            return self._train_in_windows(
                parameters, optimizer_state, [X, Y, sample_weight], order, batch_size, options
            )
        return self._train_captured(arguments, most=1)

    def _train_captured(self, arguments: tuple[Any, ...], most: int) -> float:
        """An epoch by captured steps, where there are some; `most` of them are kept for a training.

        Parameters
        ----------
        arguments : tuple
            Those of `train_epoch`.
        most : int
        """
        parameters, optimizer_state, X, Y, sample_weight, order, batch_size, options = arguments
        by_weight = options.penalty_by_weight and sample_weight is not None and options.alpha > 0
        numbers = options.alpha, options.mean_weight, options.clip_norm, options.loss_factor, by_weight
        ordered = None if order is None else len(order)
        size = min(batch_size, X.shape[1] if ordered is None else ordered)
        epochs = Epochs(parameters, (X, Y, sample_weight), ordered, size, *numbers)
        steps = self._steps_of(optimizer_state, epochs, most)
        if steps is None:
            return super().train_epoch(*arguments)
        with self.backend.computing():
            return steps.run_epoch(optimizer_state, order, options.position or EpochPosition(), options.poll)

    def _train_in_windows(
        self,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        matrices: list[Any],
        order: Array | None,
        batch_size: int,
        options: EpochOptions,
    ) -> float:
        """An epoch over samples in host memory, which come to the GPU window by window, into two fixed rooms.

        Steps are captured for each room, once for a training.
        """
        matrices = matrices if order is None else self._taken(matrices, order)
        m, position = matrices[0].shape[1], options.position or EpochPosition()
        batch_size = min(batch_size, m)
        scale = m if self.loss_is_mean else 1
        here = EpochPosition(position.batches, 0.0, position.end, position.loss * scale)

        def train() -> None:
            size = self._chunk // batch_size * batch_size
            if not size:  # memory ran out
                place = EpochPosition(here.batches, here.before / scale, here.end)
                given = (parameters, optimizer_state, *matrices, None, batch_size, replace(options, position=place))
                try:
                    super(CapturedEngine, self).train_epoch(*given)
                finally:
                    here.batches, here.before = place.batches, place.loss * scale
                return
            windows = Windows(here, batch_size, size, self.loss_is_mean)
            chunks = [each for each in slices(windows.first * size, m, size) if not windows.over(each.start // size)]
            if here.batches * batch_size >= m or not chunks:
                return
            try:
                with self._parts(matrices, iter(chunks)) as parts:
                    for chunk, part in parts:
                        given = (parameters, optimizer_state, *part, None, batch_size)
                        run = partial(self._train_window, given, options)
                        windows.run(chunk.start // size, chunk.stop - chunk.start, run)
            finally:  # windows of another size may follow, where memory runs out
                here.before, here.loss = windows.share(m) * scale, 0.0

        try:
            self._with_room(train, m)
        finally:
            position.batches, position.loss = here.batches, here.before / scale
        return position.loss

    def _train_window(self, given: tuple[Any, ...], options: EpochOptions, position: EpochPosition) -> None:
        self._train_captured((*given, replace(options, position=position)), most=_ROOMS)

    def _pass(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """As the composed engine's."""
        logits = self.backpropagate(parameters, X, Y, sample_weight, gradients)
        return self.output_layer.sum_losses(logits, Y, sample_weight)

    def _composed_engine(self) -> ComposedEngine:
        """The engine for epochs with dropout."""
        if self._composed is None:
            _log.info("dropout has no CUDA kernels: epochs run on the composed engine")
            self._composed = ComposedEngine(self.backend, self.architecture)
        return self._composed

    def _steps_of(
        self, optimizer_state: OptimizerState, epochs: Epochs, most: int
    ) -> CapturedSteps | ResidentEpochs | None:
        """The captured steps of this training; None where there are none for its batches or its L2 term."""
        kept = self._steps.pop(optimizer_state, [])
        steps = next((each for each in kept if each.epochs.same(epochs)), None)
        if steps is None:
            del kept[: max(0, len(kept) - most + 1)]
            capture = partial(self._capture, epochs, optimizer_state)
            with self.backend.computing():  # in windows, what a window is part of looks for room
                steps = self._with_room(capture, epochs.batch_size) if most == 1 else capture()
            if steps is None:
                return None
            kept.append(steps)
        self._steps[optimizer_state] = kept
        return steps

    def _capture(self, epochs: Epochs, state: OptimizerState) -> CapturedSteps | ResidentEpochs | None:
        size = epochs.batch_size
        plan = self.resident_plan(state.optimizer, size)
        if plan is not None:
            return ResidentEpochs(self, epochs, plan)
        # The kernel of a captured step has no Σ w for the L2 term.
        if size > self._chunk or epochs.penalty_by_weight:
            return None
        other = self.other_for_batches(size) if self.other_for_batches else None
        return CapturedSteps(self if other is None or size > other._chunk else other, epochs)

    def resident_plan(self, optimizer: Optimizer, batch_size: int) -> ResidentPlan | None:
        """The plan of a network that stays in shared memory while it is trained; None where another way is faster.

        Parameters
        ----------
        optimizer : Optimizer
            One that `covers` allows.
        batch_size : int
            The samples of a batch, at most.
        """
        key = moments_of(optimizer), batch_size
        if key not in self._plans:
            launcher = self.backend.launcher
            plan = plan_of(self.architecture, optimizer, batch_size, launcher.shared_bytes(), launcher.has_clusters())
            stays = plan is not None and stays_resident(plan, self.architecture, batch_size, self.backend)
            self._plans[key] = plan if stays else None
        return self._plans[key]

    def _release(self) -> None:
        self._steps.clear()
        super()._release()
