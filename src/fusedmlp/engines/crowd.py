"""Crowd: the interface by which a backend trains many networks at once, each for some epochs at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from fusedmlp.engines.base import Engine
from fusedmlp.engines.options import EpochOptions, EpochPosition
from fusedmlp.engines.samples import Samples
from fusedmlp.model.activations import Array
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Parameters

_STRETCH_SECONDS, _LONGEST_STRETCH = 0.02, 50


def epochs_of_a_stretch(epoch_seconds: float) -> int:
    """How many epochs a stretch should have at most: Python has some 0.1 ms of work for each stretch."""
    return max(1, min(_LONGEST_STRETCH, int(_STRETCH_SECONDS / max(1e-6, epoch_seconds))))


class End(Enum):
    """Why a stretch ended."""

    DONE = 0
    PATIENCE = 1
    LOSS = 2
    """A loss became NaN or infinite."""
    WEIGHTS = 3
    """The weights became NaN or infinite."""
    INTERRUPTED = 4


@dataclass
class Best:
    """The best weights so far, and how long ago that was: a crowd follows them as `Training` does.

    After an epoch with the monitored loss J, that of the validation samples or else of the training: `epochs_since`
    becomes 0 where J < loss - tolerance, else one more; where J < loss, `loss` and `weights` are those of now, and
    `epoch` is that epoch's number in the stretch.

    Attributes
    ----------
    weights : array of shape (n_parameters,)
    loss : float
    epochs_since : int
    tolerance : float
    patience : int
        The stretch ends when `epochs_since` is so much; 0: it does not.
    epoch : int
        -1 where no epoch of the stretch was the best.
    """

    weights: Array
    loss: float = math.inf
    epochs_since: int = 0
    tolerance: float = 0.0
    patience: int = 0
    epoch: int = -1


@dataclass
class Stretch:
    """Some epochs of one training, and what came of them.

    Attributes
    ----------
    engine : Engine
        Of the network's architecture.
    parameters : Parameters
        Changed in place.
    optimizer_state : OptimizerState
        Changed in place: its moments, and its `t` by the steps that were taken.
    train, validation : Samples
        The second may be None.
    batch_size : int
    rates : list of float
        The learning rate of every epoch.
    orders : array of int64 of shape (epochs, samples), or None
        The columns of X in the order of each epoch; None: those of `train`, as they lie.
    options : EpochOptions
        Without a gradient phase.
    best : Best
    position : EpochPosition, optional
        Where the first epoch begins, and where it ended. A crowd has none.
    losses, validation_losses, seconds : list of float
        Of the epochs that are done.
    begun : int
        Epochs that are begun.
    end : End
    """

    engine: Engine
    parameters: Parameters
    optimizer_state: OptimizerState
    train: Samples
    validation: Samples | None
    batch_size: int
    rates: list[float]
    orders: np.ndarray | None
    options: EpochOptions
    best: Best
    position: EpochPosition | None = None
    losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    begun: int = 0
    end: End = End.DONE

    @property
    def epochs(self) -> int:
        """Epochs that are wanted."""
        return len(self.rates)


class Crowd(ABC):
    """Trains many networks of one backend at once. The bits of each are those of its engine's `train_epoch`."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """Networks that are trained at the same time; with fewer, some of the hardware is idle."""

    @abstractmethod
    def takes(
        self,
        engine: Engine,
        optimizer: Optimizer,
        train: Samples,
        validation: Samples | None,
        batch_size: int,
        drops: bool = False,
    ) -> bool:
        """Whether such a training is faster beside others than by itself, on all of the hardware.

        Parameters
        ----------
        engine : Engine
        optimizer : Optimizer
        train, validation : Samples
            The second may be None.
        batch_size : int
        drops : bool
            Whether there is dropout.
        """

    @abstractmethod
    def can_share(self, engine: Engine, train: Samples, batch_size: int) -> bool:
        """Whether a training that it takes can use more than one worker when it is the only one."""

    @abstractmethod
    def epoch_seconds(self, engine: Engine, train: Samples, validation: Samples | None) -> float:
        """About how long an epoch takes, on one worker."""

    def prepare(self, stretches: Sequence[Stretch]) -> None:  # noqa: B027 - there need be nothing to do ahead
        """Get ready for stretches that `run` is to be given next, while others are being done."""

    @abstractmethod
    def run(
        self, stretches: Sequence[Stretch], poll: Callable[[], None], meanwhile: Callable[[], None] | None = None
    ) -> None:
        """Do all stretches, the first ones first, and write down what came of them.

        Parameters
        ----------
        stretches : sequence of Stretch
        poll : callable
            Called at least every 0.1 s, in this thread. An exception from it ends all stretches between two of their
            batches, or before the first, as `End.INTERRUPTED`, and is raised again when that is written down.
        meanwhile : callable, optional
            Called once, in this thread, while the stretches are being done; its exceptions are treated as those of
            `poll`.
        """
