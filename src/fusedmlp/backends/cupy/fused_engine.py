"""What cupy's fused engines have in common: the output layer, and training by captured steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from fusedmlp.backends.cupy.captured_steps import CapturedSteps, Epochs
from fusedmlp.backends.cupy.optimizer_step import OptimizerStep
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.options import PLAIN, EpochOptions
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters

if TYPE_CHECKING:
    from fusedmlp.backends.cupy.backend import CupyBackend


class FusedEngine(ComposedEngine):
    """An engine whose passes are launches alone, and so can be captured.

    Attributes
    ----------
    path : {"narrow", "middle"}
        Which of the two fused ways it goes.
    output_layer : OutputLayer
    """

    backend: CupyBackend
    kind = "fused"
    path: ClassVar[str]

    def __init__(self, backend: CupyBackend, architecture: Architecture) -> None:
        super().__init__(backend, architecture)
        self.output_layer = OutputLayer(backend.launcher, backend.xp, architecture)
        # They hold samples on the GPU: as long as a training lasts, which its optimizer's state does.
        self._steps: WeakKeyDictionary[OptimizerState, CapturedSteps] = WeakKeyDictionary()

    @property
    def loss_is_mean(self) -> bool:
        """Whether J is a mean over samples."""
        return self._loss.reduction == "mean"

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
        """As the composed engine's; by captured steps, where samples and optimizer are on the device."""
        steps = None
        visits_all = order is None or len(order) == X.shape[1]
        plain = options == EpochOptions(alpha=options.alpha)
        if plain and visits_all and not isinstance(X, HostMatrix) and OptimizerStep.covers(optimizer_state.optimizer):
            size = min(batch_size, X.shape[1])
            epochs = Epochs(parameters, (X, Y, sample_weight), order is not None, size, options.alpha)
            steps = self._steps_of(optimizer_state, epochs)
        if steps is not None:
            with self.backend.computing():
                return steps.run_epoch(optimizer_state, order)
        return super().train_epoch(parameters, optimizer_state, X, Y, sample_weight, order, batch_size, options)

    @abstractmethod
    def backpropagate(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """Σ wᵢ ∂jᵢ/∂parameters of a chunk into `gradients`; the logits (m, n_out), which hold until the next pass."""

    def _pass(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None, gradients: Gradients
    ) -> Array:
        """As the composed engine's."""
        logits = self.backpropagate(parameters, X, Y, sample_weight, gradients)
        return self.output_layer.sum_losses(logits, Y, sample_weight)

    def _steps_of(self, optimizer_state: OptimizerState, epochs: Epochs) -> CapturedSteps | None:
        """Those of a training that goes on, or new ones; None where a batch is more than a chunk."""
        steps = self._steps.get(optimizer_state)
        if steps is None or not steps.epochs.same(epochs):
            self._steps.pop(optimizer_state, None)
            with self.backend.computing():
                steps = self._with_room(lambda: self._capture(epochs), epochs.batch_size)
        if steps is not None:
            self._steps[optimizer_state] = steps
        return steps

    def _capture(self, epochs: Epochs) -> CapturedSteps | None:
        return CapturedSteps(self, epochs) if epochs.batch_size <= self._chunk else None

    def _release(self) -> None:
        self._steps.clear()
        super()._release()
