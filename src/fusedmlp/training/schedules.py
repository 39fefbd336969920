"""Learning-rate schedules: frozen descriptions; ``schedule(epoch, learning_rate)`` is the rate of an epoch (from 0)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fusedmlp.checks import check_choice, check_count, check_number

Schedule = Callable[[int, float], float]
"""(epoch counted from 0, the optimizer's learning_rate) -> the rate of that epoch."""


@dataclass(frozen=True)
class Constant:
    """The optimizer's rate throughout."""

    def __call__(self, epoch: int, learning_rate: float) -> float:
        return learning_rate


@dataclass(frozen=True)
class StepDecay:
    """rate · gamma^⌊epoch / epochs⌋: multiplied by `gamma` every `epochs` epochs."""

    epochs: int = 30
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_number("gamma", self.gamma, 0, 1, include_high=True)

    def __call__(self, epoch: int, learning_rate: float) -> float:
        return learning_rate * self.gamma ** (epoch // self.epochs)


@dataclass(frozen=True)
class ExponentialDecay:
    """rate · gamma^epoch."""

    gamma: float = 0.95

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0, 1, include_high=True)

    def __call__(self, epoch: int, learning_rate: float) -> float:
        return learning_rate * self.gamma**epoch


@dataclass(frozen=True)
class InverseScaling:
    """rate / (epoch + 1)^power."""

    power: float = 0.5

    def __post_init__(self) -> None:
        check_number("power", self.power, 0)

    def __call__(self, epoch: int, learning_rate: float) -> float:
        return learning_rate / (epoch + 1) ** self.power


@dataclass(frozen=True)
class CosineDecay:
    """From rate to `final`·rate along half a cosine over `epochs` epochs, then constant (Loshchilov, Hutter 2017)."""

    epochs: int = 100
    final: float = 0.0

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_number("final", self.final, 0, 1, include_low=True, include_high=True)

    def __call__(self, epoch: int, learning_rate: float) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0)))
        return learning_rate * (self.final + (1 - self.final) * cosine)


SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "constant": lambda epochs: Constant(),
    "step": lambda epochs: StepDecay(max(1, epochs // 3)),
    "exponential": lambda epochs: ExponentialDecay(),
    "inverse-scaling": lambda epochs: InverseScaling(),
    "cosine": lambda epochs: CosineDecay(epochs),
}
"""Name -> the schedule for a training of so many epochs."""


def as_schedule(schedule: str | Schedule, epochs: int) -> Schedule:
    """The schedule for a name, or itself."""
    if callable(schedule):
        return schedule
    return SCHEDULES[check_choice("schedule", schedule, SCHEDULES)](epochs)
