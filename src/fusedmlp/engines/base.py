"""Engine: the interface of whole passes through a network.

Engines take validated arrays of their backend's own kind, with a column as a sample: X (n1, m), Y (nL, m),
sample_weight (1, m) or None. Samples that stay in host memory are a `HostMatrix` each.
`fusedmlp.model.reference.trace` is the mathematics that every engine computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from fusedmlp.engines.options import PLAIN, EpochOptions
from fusedmlp.engines.primitives import Primitives
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Gradients, Parameters


class Engine(ABC):
    """Whole passes, specialised once to an architecture.

    An engine owns a workspace and is used by one thread at a time; make one per thread.

    Attributes
    ----------
    kind : {"composed", "fused"}
        Whether passes are made of primitives, or run fused without storing activations.
    """

    kind: ClassVar[Literal["composed", "fused"]]

    @classmethod
    def covers(cls, architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
        """Whether this engine computes every pass for the architecture, and every step of the optimizer, itself.

        A backend makes a fused engine only where this is true of the architecture, else the composed one. For an
        optimizer that is not covered, an engine computes the gradients and the optimizer steps in Python.
        """
        return True

    def __init__(self, backend: Primitives, architecture: Architecture) -> None:
        self.backend = backend
        self.architecture = architecture

    def prepared(self, X: Array) -> Array:
        """X as epochs over it are fastest: X itself, or a copy in another form, if that pays for a whole training."""
        return X

    @abstractmethod
    def forward(self, parameters: Parameters, X: Array) -> Array:
        """A_{L-1}, a new array of shape (nL, m), of the backend's own kind; a numpy array where X is a `HostMatrix`."""

    def forward_if_finite(self, parameters: Parameters, X: Array) -> Array | None:
        """`forward`; None where a number of X, an array of the backend's own, is NaN or infinite."""
        return self.forward(parameters, X) if self.backend.all_finite(X) else None

    @abstractmethod
    def loss(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
        order: Array | None = None,
    ) -> float:
        """J, with the L2 term ½·alpha·Σ‖W‖² / m; of the samples that `order` names, or of all."""

    @abstractmethod
    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        gradients: Gradients,
        sample_weight: Array | None = None,
        alpha: float = 0.0,
    ) -> float:
        """J as `loss`, and ∂J/∂(flat parameters) written into `gradients`."""

    def loss_and_gradients_if_valid(
        self, parameters: Parameters, X: Array, Y: Array, gradients: Gradients, alpha: float = 0.0
    ) -> float | None:
        """`loss_and_gradients` of arrays of the backend's own, of the right type and shape.

        None where X is not finite, where Y is not what the loss allows, and where the engine cannot tell.
        """
        return None

    @abstractmethod
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
        """One pass over the samples in batches, each followed by an optimizer step.

        A batch has three parts: the sums over its samples; the gradient phase, where options ask for one; the update.

        Parameters
        ----------
        parameters : Parameters
            Changed in place.
        optimizer_state : OptimizerState
            Changed in place.
        order : array of shape (k,) of int, optional
            The samples to visit, in this order; None visits all of them as they lie. A numpy array will do.
        batch_size : int
            The last batch may be smaller.
        options : EpochOptions

        Returns
        -------
        float
            The losses of the batches, each before its step, averaged by their number of samples (summed for a loss
            that is itself a sum). Where the pass ends early, by `EpochOptions.position`, it is the part of it so far.
        """
