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

    def compiled_with(self, stop: int) -> tuple[int, int] | None:
        """`compiled`, of a phase that may end an epoch.

        Parameters
        ----------
        stop : int
            The address of an int64. The C function may store 2 there: then the epoch ends without this batch's step,
            and the engine raises `error`.
        """
        return self.compiled()

    @property
    def error(self) -> BaseException | None:
        """Why the C function ended the epoch; None where it did not."""
        return None

    def poll(self, check: Callable[[], None]) -> None:
        """Look whether the training is to end: `check` raises an exception if so.

        A phase that other processes wait in overrides this, and lets none of them end before the others.
        """
        check()

    def ends_all(self, error: BaseException) -> bool:
        """Whether what has interrupted an epoch ends it in all processes: else no other one joins in what follows."""
        return True


@dataclass(frozen=True, eq=False)
class BatchParts:
    """The part of each batch that is here, where the samples of a batch lie in several processes.

    Attributes
    ----------
    starts : numpy.ndarray of shape (batches + 1,), int64
        Batch b has the samples from starts[b] to starts[b + 1] of an epoch's samples here, perhaps none.
    samples : int
        The samples of all processes, which the losses of the batches are averaged by.
    numbers : numpy.ndarray of int64, optional
        The number of each column of X here among the samples of all processes, by which dropout's masks are drawn;
        None: the columns' own.
    """

    starts: np.ndarray
    samples: int
    numbers: np.ndarray | None = None


@dataclass
class EpochPosition:
    """How far an epoch has come: a pass over it begins there, and leaves it where it ends, by an exception too.

    So a pass may end before its last batch, and another one goes on: together they have the bits of one pass.

    Attributes
    ----------
    batches : int
        Batches that are done: the next pass begins with the one after them.
    loss : float
        What they add to the loss of the epoch; of an epoch in windows, to that of the window.
    end : int, optional
        A pass ends before this batch; None: after the last one.
    before : float
        What the windows add that are done; see `engines.windows`.
    """

    batches: int = 0
    loss: float = 0.0
    end: int | None = None
    before: float = 0.0


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
    parts : BatchParts, optional
        Where the batches lie in several processes, the parts that are here; `batch_size` is then that of all of them,
        and a gradient phase makes the sums those of all.
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
    parts: BatchParts | None = None
    position: EpochPosition | None = None


PLAIN = EpochOptions()

CLIP_EPSILON = 1e-6


def clip_factor(norm: float, clip_norm: float) -> float:
    """The factor that clipping gives a gradient of this norm."""
    return min(1.0, clip_norm / (norm + CLIP_EPSILON))
