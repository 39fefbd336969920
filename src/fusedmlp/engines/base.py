"""Engine: the interface of whole passes through a network.

Engines take validated arrays of their backend's own kind, with a column as a sample: X (n1, m), Y (nL, m),
sample_weight (1, m) or None; or, where the backend says of them that they do not fit, a `HostMatrix` each.
`fusedmlp.model.reference.trace` is the mathematics that every engine computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from fusedmlp.engines.primitives import Primitives
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import OptimizerState
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

    def __init__(self, backend: Primitives, architecture: Architecture) -> None:
        self.backend = backend
        self.architecture = architecture

    @abstractmethod
    def forward(self, parameters: Parameters, X: Array) -> Array:
        """A_L, a new array of shape (nL, m), of the backend's own kind; a numpy array where X is a `HostMatrix`."""

    @abstractmethod
    def loss(
        self, parameters: Parameters, X: Array, Y: Array, sample_weight: Array | None = None, alpha: float = 0.0
    ) -> float:
        """J, with the L2 term ½·alpha·Σ‖W‖² / m."""

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
        alpha: float = 0.0,
    ) -> float:
        """One pass over the samples in batches, each followed by an optimizer step.

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
        alpha : float
            L2: every batch adds ½·alpha·Σ‖W‖² / (samples of the batch).

        Returns
        -------
        float
            The losses of the batches, each before its step, averaged by their number of samples (summed for a loss
            that is itself a sum).
        """
