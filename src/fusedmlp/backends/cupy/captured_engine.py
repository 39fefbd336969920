"""CapturedEngine: what cupy's fused engines share, the output layer and training by captured steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakKeyDictionary

from fusedmlp.backends.cupy import cuda_tables
from fusedmlp.backends.cupy.captured_steps import CapturablePasses, CapturedSteps, Epochs
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.backends.cupy.resident import ResidentEpochs
from fusedmlp.backends.cupy.resident_costs import stays_resident
from fusedmlp.backends.cupy.resident_plan import ResidentPlan, moments_of, plan_of
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.options import PLAIN, EpochOptions, EpochPosition
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

_log = logging.getLogger("fusedmlp")


class CapturedEngine(CapturablePasses):
    """A fused engine on the GPU.

    Epochs run as captured steps where samples are on the device and the optimizer has a kernel. A gradient phase runs
    on the host between the fused passes and the update, step by step. Dropout has no kernels: epochs with dropout run
    on a composed engine.

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
        self._steps: WeakKeyDictionary[OptimizerState, CapturedSteps | ResidentEpochs] = WeakKeyDictionary()
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
        steps = None
        by_weight = options.penalty_by_weight and sample_weight is not None and options.alpha > 0
        capturable = not isinstance(X, HostMatrix) and options.gradient_phase is None
        if capturable and self.covers(self.architecture, optimizer_state.optimizer):
            numbers = options.alpha, options.mean_weight, options.clip_norm, options.loss_factor, by_weight
            ordered = None if order is None else len(order)
            size = min(batch_size, X.shape[1] if ordered is None else ordered)
            epochs = Epochs(parameters, (X, Y, sample_weight), ordered, size, *numbers)
            steps = self._steps_of(optimizer_state, epochs)
        if steps is None:
            return super().train_epoch(*arguments)
        with self.backend.computing():
            return steps.run_epoch(optimizer_state, order, options.position or EpochPosition(), options.poll)

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

    def _steps_of(self, optimizer_state: OptimizerState, epochs: Epochs) -> CapturedSteps | ResidentEpochs | None:
        """The captured steps of this training; None where there are none for its batches or its L2 term."""
        steps = self._steps.get(optimizer_state)
        if steps is None or not steps.epochs.same(epochs):
            self._steps.pop(optimizer_state, None)
            with self.backend.computing():
                steps = self._with_room(lambda: self._capture(epochs, optimizer_state), epochs.batch_size)
        if steps is not None:
            self._steps[optimizer_state] = steps
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
