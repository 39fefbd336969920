"""EpochOptions: what the batches of an epoch have in common, besides samples and optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fusedmlp.model.activations import Array
from fusedmlp.model.dropout import Dropout


class GradientPhase(ABC):
    """Runs once a batch, between the sums over its samples and everything that follows from them.

    A sum over several processes is its main use: each process has summed its own part of a batch, and the phase
    replaces the sums by those of all.
    """

    @abstractmethod
    def apply(self, gradient: Array, sums: np.ndarray) -> None:
        """Change the sums of a batch in place.

        Parameters
        ----------
        gradient : array of shape (n_parameters,)
            Σ wᵢ ∂jᵢ/∂θ, not divided by anything, without the L2 term; the backend's own kind of array.
        sums : numpy.ndarray of shape (3,), float64
            Σ wᵢ jᵢ, Σ wᵢ and the number of samples. The gradient's factor, the L2 term's share and the batch's loss
            follow from the changed values.
        """

    def compiled(self) -> tuple[int, int] | None:
        """(address, context) of a C function that does the same without Python, or None.

        Its signature is void(int64 gradient, int64 n_parameters, int64 sums, int64 context), the first and third
        being addresses. Without one, the fused CPU engine calls `apply`.
        """
        return None


@dataclass
class EpochPosition:
    """How far an epoch has come: a pass over it begins there, and leaves it where it ends, by an exception too.

    So a pass may end before its last batch, and another one goes on: together they have the bits of one pass.

    Attributes
    ----------
    batches : int
        Batches that are done: the next pass begins with the one after them.
    loss : float
        What they add to the loss of the epoch.
    end : int, optional
        A pass ends before this batch; None: after the last one.
    """

    batches: int = 0
    loss: float = 0.0
    end: int | None = None


@dataclass(frozen=True)
class EpochOptions:
    """How the batches of an epoch become steps.

    Attributes
    ----------
    alpha : float
        L2: every batch adds ½·alpha·Σ‖W‖² / (samples of the batch).
    mean_weight : float, optional
        The sums of a batch are divided by mean_weight · (samples of the batch). With the mean weight of the training
        set the gradient's expectation is that of J, for every batch size. None: they are divided by the batch's own
        Σ wᵢ, as scikit-learn does. A loss that is a sum is not divided at all.
    dropout : Dropout, optional
    clip_norm : float, optional
        A gradient, L2 term included, whose norm over all parameters is larger is multiplied by
        clip_norm / (norm + 10⁻⁶), as torch.nn.utils.clip_grad_norm_ does.
    gradient_phase : GradientPhase, optional
    poll : callable, optional
        Called from time to time, at least every 0.1 s, in the thread that runs the epoch. An exception from it ends the
        epoch: the parameters are those after the last whole batch, and ``optimizer_state.t`` counts the steps taken.
    penalty_by_weight : bool
        The L2 term of a batch is divided by the batch's Σ wᵢ in place of its number of samples, as scikit-learn does.
    loss_factor : float
        Multiplies Σ wᵢ jᵢ in the loss that is returned, and in nothing else: neither the L2 term nor the gradient.
    position : EpochPosition, optional
        Where the epoch begins and ends; None: with its first batch, and after its last one.
    """

    alpha: float = 0.0
    mean_weight: float | None = None
    dropout: Dropout | None = None
    clip_norm: float | None = None
    gradient_phase: GradientPhase | None = None
    poll: Callable[[], None] | None = None
    penalty_by_weight: bool = False
    loss_factor: float = 1.0
    position: EpochPosition | None = None


PLAIN = EpochOptions()

CLIP_EPSILON = 1e-6


def clip_factor(norm: float, clip_norm: float) -> float:
    """The factor that clipping gives a gradient of this norm."""
    return min(1.0, clip_norm / (norm + CLIP_EPSILON))
