"""When a training is written down: after so many epochs, batches or seconds, and where it is interrupted."""

from __future__ import annotations

import datetime
import math
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from fusedmlp.checks import shown

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|epochs?|batch(?:es)?)\s*")

Interval = int | str | datetime.timedelta
"""Epochs; "30s", "10min", "2h", "5 epochs" or "200 batches"; or a time."""


@dataclass(frozen=True)
class Every:
    """How often a training is written down; one of the three is given.

    Attributes
    ----------
    epochs, batches : int, optional
        Batches are counted from the start of each epoch.
    seconds : float, optional
    """

    epochs: int | None = None
    batches: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, argument: str, value: Interval) -> Every:
        """What a value says; a ValueError that names the argument where it says nothing.

        Parameters
        ----------
        argument : str
        value : int, str or datetime.timedelta
        """
        if isinstance(value, datetime.timedelta) and value.total_seconds() > 0:
            return cls(seconds=value.total_seconds())
        if isinstance(value, str) and (match := _TEXT.fullmatch(value)):
            number, unit = float(match[1]), match[2]
            if unit in _UNITS and number > 0:
                return cls(seconds=number * _UNITS[unit])
            if unit not in _UNITS and number >= 1 and number == int(number):
                return cls(batches=int(number)) if unit.startswith("batch") else cls(epochs=int(number))
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return cls(epochs=value)
        raise ValueError(
            f'{argument}: expected a number of epochs, a time such as "30s", "10min" or "2h", or "200 batches"; '
            f"got {shown(value)}"
        )


class Recorder(ABC):
    """Writes a training down whenever it is time for that.

    Parameters
    ----------
    every : Every
    """

    def __init__(self, every: Every) -> None:
        self.every = every
        self._epochs, self._written = 0, time.monotonic()

    @abstractmethod
    def write(self, weights: Any, state: dict[str, Any], finished: bool) -> None:
        """Write a training down.

        Parameters
        ----------
        weights : array of shape (n_parameters,)
            Those of the network, of the backend's kind.
        state : dict
            As `TrainingState.to_dict` gives it.
        finished : bool
            Whether the training is over.
        """

    @abstractmethod
    def announce(self, epoch: int, batch: int) -> None:
        """Say that a training was interrupted in an epoch (from 0), and was written down after so many batches."""

    def record(self, weights: Any, state: dict[str, Any], finished: bool = False) -> None:
        """Write, and count from now on."""
        self.write(weights, state, finished)
        self._epochs, self._written = 0, time.monotonic()

    def next_end(self, batch: int) -> int | None:
        """The batch before which it is time next in an epoch, when `batch` are done; None: not in this epoch."""
        step = self.every.batches
        return None if step is None else (batch // step + 1) * step

    @property
    def is_late(self) -> bool:
        """Whether the time between two checkpoints has passed."""
        return time.monotonic() - self._written >= (self.every.seconds or math.inf)

    def is_due(self) -> bool:
        """Whether it is time after one more epoch."""
        self._epochs += 1
        return self._epochs >= (self.every.epochs or math.inf) or self.is_late
