"""Callbacks: functions and objects that are called during a training and may change its course."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from fusedmlp.checks import check_count, check_number
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Parameters
from fusedmlp.training.history import History
from fusedmlp.training.state import TrainingState

_log = logging.getLogger("fusedmlp")


class RunningTraining(Protocol):
    """What a callback sees of a training; `fusedmlp.training.loop.Training` has it all."""

    parameters: Parameters
    state: TrainingState
    optimizer_state: OptimizerState
    history: History
    epoch: int
    epochs: int
    deadline: float | None
    rate_factor: float
    network: Any

    def stop(self, reason: str = ...) -> None:
        """End the training after this epoch."""

    @property
    def monitored_loss(self) -> float:
        """The newest validation loss, or training loss where there are no validation samples."""


class Callback:
    """Called at the start, after every epoch and at the end; override what is needed.

    `training` has ``epoch`` (from 0), ``epochs``, ``history``, ``parameters``, ``optimizer_state``, ``state``,
    ``rate_factor``, ``network``, ``deadline`` (a time of ``time.monotonic()`` that ends the training in the middle of
    an epoch) and ``stop(reason)``. An exception from a callback ends the training and reaches the caller. What a
    callback remembers from epoch to epoch is kept in checkpoints by `to_dict` and `from_dict`.

    Attributes
    ----------
    only_watches : bool
        Whether a training is the same without it, so that one may go on from a checkpoint with other such callbacks.
    """

    only_watches = False

    def to_dict(self) -> dict[str, Any]:
        """What it remembers: numbers, text, lists, dicts and numpy arrays."""
        return {}

    def from_dict(self, data: dict[str, Any]) -> None:
        """Remember what `to_dict` told, before `on_fit_begin` of a training that goes on."""

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Before the first epoch."""

    def on_epoch_end(self, training: RunningTraining) -> None:
        """After an epoch; ``training.history`` already has its entry."""

    def on_fit_end(self, training: RunningTraining) -> None:
        """After the last epoch, with the final weights in place; not called where an exception ended the training."""


class _EpochFunction(Callback):
    """A plain function in a callback's place."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function

    def on_epoch_end(self, training: RunningTraining) -> None:
        self._function(training)


def as_callback(callback: Callback | Callable[[Any], object]) -> Callback:
    """The callback itself, or one that calls a plain function after every epoch."""
    if isinstance(callback, Callback):
        return callback
    if not callable(callback):
        raise ValueError(f"callbacks: expected Callback objects or functions of a Training; got {callback!r}")
    return _EpochFunction(callback)


def memories_of(callbacks: Sequence[Callback]) -> list[dict[str, Any]]:
    """What callbacks remember, with the names of their classes."""
    memories = ((type(callback).__qualname__, callback.to_dict()) for callback in callbacks)
    return [{"callback": name, "memory": memory} for name, memory in memories if memory]


def remind(callbacks: Iterable[Any], memories: list[dict[str, Any]]) -> None:
    """Give callbacks their memories, in the order of those of a class."""
    left = list(memories)
    for callback in callbacks:
        for place, memory in enumerate(left):
            if isinstance(callback, Callback) and memory["callback"] == type(callback).__qualname__:
                callback.from_dict(memory["memory"])
                del left[place]
                break


class StopAfter(Callback):
    """End the training after some seconds, in the middle of an epoch if need be.

    Parameters
    ----------
    seconds : float
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_number("seconds", seconds, 0)

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Set the training's deadline."""
        training.deadline = time.monotonic() + self.seconds


class ReduceOnPlateau(Callback):
    """Multiply the learning rate by `factor` whenever the loss has not improved for `patience` epochs.

    Parameters
    ----------
    factor : float in (0, 1), default 0.2
    patience : int, default 2
    tolerance : float, default 1e-4
        An improvement is a loss lower than the best so far by more than this.
    smallest : float, default 1e-6
        The rate is not lowered below this.

    Notes
    -----
    It looks at the validation loss where there is one, else at the training loss.
    """

    def __init__(self, factor: float = 0.2, patience: int = 2, tolerance: float = 1e-4, smallest: float = 1e-6) -> None:
        self.factor = check_number("factor", factor, 0, 1)
        self.patience = check_count("patience", patience)
        self.tolerance = check_number("tolerance", tolerance, 0, include_low=True)
        self.smallest = check_number("smallest", smallest, 0, include_low=True)

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Forget any training before; a training that goes on by its state is remembered."""
        if training.state.epoch == 0 or not hasattr(self, "_best"):
            self._best = float("inf")
            self._epochs_since = 0

    def to_dict(self) -> dict[str, Any]:
        """The lowest loss, and the epochs since."""
        return {"best": self._best, "epochs_since": self._epochs_since}

    def from_dict(self, data: dict[str, Any]) -> None:
        """Go on from what `to_dict` told."""
        self._best, self._epochs_since = data["best"], data["epochs_since"]

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Lower ``training.rate_factor`` on a plateau."""
        loss = training.monitored_loss
        self._epochs_since = 0 if loss < self._best - self.tolerance else self._epochs_since + 1
        self._best = min(self._best, loss)
        if self._epochs_since < self.patience:
            return
        self._epochs_since = 0
        if training.optimizer_state.learning_rate * self.factor >= self.smallest:
            training.rate_factor *= self.factor
            _log.info("epoch %d: learning rate times %g (loss on a plateau)", training.epoch, self.factor)
