"""Optimizers: frozen descriptions, and their update of the flat parameter vector.

A description (`SGD`, `Adam`) says what to do and can be shared; an `OptimizerState` belongs to one training: it
holds the step count, the current learning rate and the moments, in arrays of the parameters' own kind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fusedmlp.checks import check_choice, check_number
from fusedmlp.model.activations import Array


@dataclass(frozen=True)
class Optimizer(ABC):
    """What every optimizer has.

    Parameters
    ----------
    learning_rate : float
        The rate before any schedule.
    """

    learning_rate: float
    moments: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, 0)

    @abstractmethod
    def update(self, xp: Any, state: OptimizerState, theta: Array, gradient: Array) -> None:
        """Change the flat vector `theta` in place; `gradient` is left as it is."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, plain, with momentum, or with Nesterov's momentum.

    v ← momentum·v − rate·g;  θ ← θ + v, or with Nesterov θ ← θ + momentum·v − rate·g.

    Parameters
    ----------
    learning_rate : float, default 0.1
    momentum : float in [0, 1), default 0
    nesterov : bool, default False
        Needs momentum > 0.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    moments: ClassVar[tuple[str, ...]] = ("velocity",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("momentum", self.momentum, 0, 1, include_low=True)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum > 0; got momentum=0")

    @property
    def rule(self) -> str:
        """Which of the three it is: "sgd", "momentum" or "nesterov"."""
        return "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"

    def update(self, xp: Any, state: OptimizerState, theta: Array, gradient: Array) -> None:
        number = theta.dtype.type
        rate_g, v = state.scratch[0], state.moments["velocity"]
        xp.multiply(gradient, number(state.learning_rate), out=rate_g)
        if self.rule == "sgd":
            theta -= rate_g
            return
        v *= number(self.momentum)
        v -= rate_g
        if self.rule == "momentum":
            theta += v
            return
        theta -= rate_g
        xp.multiply(v, number(self.momentum), out=rate_g)
        theta += rate_g


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 2, last paragraph).

    m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  θ ← θ − rate·√(1−β₂ᵗ)/(1−β₁ᵗ) · m / (√v + ε).

    Parameters
    ----------
    learning_rate : float, default 0.001
    beta_1, beta_2 : float in [0, 1), default 0.9 and 0.999
    epsilon : float, default 1e-8
    """

    learning_rate: float = 0.001
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    moments: ClassVar[tuple[str, ...]] = ("m", "v")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta_1", self.beta_1, 0, 1, include_low=True)
        check_number("beta_2", self.beta_2, 0, 1, include_low=True)
        check_number("epsilon", self.epsilon, 0)

    def corrected(self, rate: float, t: int) -> float:
        """The rate of step number t, with the corrections of the moments' start at zero."""
        return rate * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)

    def update(self, xp: Any, state: OptimizerState, theta: Array, gradient: Array) -> None:
        number, t = theta.dtype.type, state.t
        m, v = state.moments["m"], state.moments["v"]
        step, root = state.scratch
        m *= number(self.beta_1)
        m += xp.multiply(gradient, number(1 - self.beta_1), out=step)
        v *= number(self.beta_2)
        xp.multiply(gradient, gradient, out=step)
        v += xp.multiply(step, number(1 - self.beta_2), out=step)
        rate = self.corrected(state.learning_rate, t)
        xp.sqrt(v, out=root)
        root += number(self.epsilon)
        xp.multiply(m, number(rate), out=step)
        step /= root
        theta -= step


class OptimizerState:
    """One training's memory of an optimizer.

    Attributes
    ----------
    optimizer : Optimizer
    learning_rate : float
        The rate of the next step; schedules change it.
    t : int
        Steps taken.
    moments : dict of arrays of shape (n_parameters,)
        What the optimizer accumulates, zero at the start.
    scratch : list of arrays of shape (n_parameters,)
        Room for an update; holds nothing between steps.
    """

    def __init__(self, optimizer: Optimizer, xp: Any, theta: Array) -> None:
        self.optimizer = optimizer
        self.learning_rate = optimizer.learning_rate
        self.t = 0
        self.moments = {name: xp.zeros_like(theta) for name in optimizer.moments}
        self.scratch = [xp.empty_like(theta) for _ in range(2)]

    def step(self, xp: Any, theta: Array, gradient: Array) -> None:
        """Take one step: change the flat parameter vector `theta` in place."""
        self.t += 1
        self.optimizer.update(xp, self, theta, gradient)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(),
}


def as_optimizer(optimizer: str | Optimizer, learning_rate: float | None = None) -> Optimizer:
    """The description for a name (a key of OPTIMIZERS) or itself, with its rate replaced if one is given."""
    if not isinstance(optimizer, Optimizer):
        optimizer = OPTIMIZERS[check_choice("optimizer", optimizer, OPTIMIZERS)]
    return optimizer if learning_rate is None else replace(optimizer, learning_rate=learning_rate)
