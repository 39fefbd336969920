"""The table of optimizers, and the state that one training keeps of its optimizer.

A description (`SGD`, `Adam`, `AdamW`) says how to step and can be shared. It names a **rule** and gives the numbers of
every step; compiled code and CUDA kernels take both from here. An `OptimizerState` belongs to one training: it holds
the step count, the current learning rate and the moments, in arrays of the parameters' own kind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from fusedmlp.checks import check_choice, check_number
from fusedmlp.model.activations import Array
from fusedmlp.model.parameters import Parameters

RULES = {"sgd": 1, "momentum": 2, "nesterov": 3, "adam": 4, "adamw": 5}
"""Rule -> the code that stands for it in compiled code. 0 stands for no step."""


class StepNumbers(NamedTuple):
    """The numbers of one step.

    Attributes
    ----------
    rate : float
        The learning rate, with Adam's bias corrections in it.
    beta_1 : float
        Decay of the first moment; the momentum of SGD.
    beta_2 : float
        Decay of the second moment.
    epsilon : float
        Added to the root of the second moment.
    decay : float
        Decoupled weight decay: W ← W - decay·W before the step; biases are left out of it.
    """

    rate: float
    beta_1: float = 0.0
    beta_2: float = 0.0
    epsilon: float = 0.0
    decay: float = 0.0


@dataclass(frozen=True)
class Optimizer(ABC):
    """A description of an optimizer.

    A subclass of your own implements `update` and, where it needs memory between steps, names it in `moments`. It
    trains on every backend; its steps run in Python, after gradients that are computed as for any other.

    Parameters
    ----------
    learning_rate : float
        The rate before any schedule.

    Attributes
    ----------
    moments : tuple of str
        The names of the vectors that are kept between steps.
    rule : str or None
        A key of `RULES`, where compiled code has the rule; None for an optimizer that steps by `update` alone.
    """

    learning_rate: float
    moments: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, 0)

    @property
    def rule(self) -> str | None:
        """None: the optimizer steps by `update`."""
        return None

    def numbers(self, rate: float, t: int) -> StepNumbers:
        """The numbers of step number `t` (from 1) at the learning rate `rate`."""
        return StepNumbers(rate)

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
    def rule(self) -> str | None:
        """ "sgd", "momentum" or "nesterov"; None for a subclass, whose `update` may be another."""
        if type(self) is not SGD:
            return None
        return "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"

    def numbers(self, rate: float, t: int) -> StepNumbers:
        """The rate and the momentum."""
        return StepNumbers(rate, beta_1=self.momentum)

    def update(self, xp: Any, state: OptimizerState, theta: Array, gradient: Array) -> None:
        """One step of the formula above."""
        number = theta.dtype.type
        rate_g, v = state.scratch[0], state.moments["velocity"]
        xp.multiply(gradient, number(state.learning_rate), out=rate_g)
        if not self.momentum:
            theta -= rate_g
            return
        v *= number(self.momentum)
        v -= rate_g
        if not self.nesterov:
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

    @property
    def rule(self) -> str | None:
        """ "adam"; None for a subclass of the user's own, whose `update` may be another."""
        return "adam" if type(self) is Adam else None

    def numbers(self, rate: float, t: int) -> StepNumbers:
        """The rate with the corrections of the moments' start at zero, and the constants."""
        root = math.sqrt(1 - self.beta_2**t)
        return StepNumbers(rate * root / (1 - self.beta_1**t), self.beta_1, self.beta_2, self.epsilon)

    def update(self, xp: Any, state: OptimizerState, theta: Array, gradient: Array) -> None:
        """One step of the formula above."""
        number = theta.dtype.type
        numbers = self.numbers(state.learning_rate, state.t)
        m, v = state.moments["m"], state.moments["v"]
        step, root = state.scratch
        if numbers.decay:
            for start, end in state.weight_ranges:
                theta[start:end] *= number(1 - numbers.decay)
        m *= number(self.beta_1)
        m += xp.multiply(gradient, number(1 - self.beta_1), out=step)
        v *= number(self.beta_2)
        xp.multiply(gradient, gradient, out=step)
        v += xp.multiply(step, number(1 - self.beta_2), out=step)
        xp.sqrt(v, out=root)
        root += number(numbers.epsilon)
        xp.multiply(m, number(numbers.rate), out=step)
        step /= root
        theta -= step


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, algorithm 2, line 12).

    W ← W − rate·weight_decay·W, and then m and v as Adam's and θ ← θ − rate/(1−β₁ᵗ) · m / (√(v/(1−β₂ᵗ)) + ε).
    ε is added to the corrected root, as in algorithm 1 of Kingma and Ba. Biases do not decay.

    Parameters
    ----------
    learning_rate, beta_1, beta_2, epsilon : float
        The parameters of `Adam`.
    weight_decay : float, default 0.01
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("weight_decay", self.weight_decay, 0, include_low=True)

    @property
    def rule(self) -> str | None:
        """ "adamw"; None for a subclass of the user's own, whose `update` may be another."""
        return "adamw" if type(self) is AdamW else None

    def numbers(self, rate: float, t: int) -> StepNumbers:
        """As Adam's; ε is multiplied by √(1−β₂ᵗ), so that the same update as Adam's adds it to the corrected root."""
        adam = super().numbers(rate, t)
        return adam._replace(epsilon=self.epsilon * math.sqrt(1 - self.beta_2**t), decay=rate * self.weight_decay)


class OptimizerState:
    """One training's memory of its optimizer.

    Parameters
    ----------
    optimizer : Optimizer
    xp : module
        The array module of the parameters.
    parameters : Parameters

    Attributes
    ----------
    optimizer : Optimizer
    learning_rate : float
        The rate of the next step; schedules change it.
    t : int
        Steps taken.
    moments : dict of arrays of shape (n_parameters,)
        The vectors that the optimizer names, zero at the start.
    weight_ranges : tuple of (int, int)
        Where the weights lie in the flat vector; biases lie between them.
    scratch : list of arrays of shape (n_parameters,)
        Memory for an update; it holds nothing between steps.
    """

    def __init__(self, optimizer: Optimizer, xp: Any, parameters: Parameters) -> None:
        self.optimizer = optimizer
        self.learning_rate = optimizer.learning_rate
        self.t = 0
        self.moments = {name: xp.zeros_like(parameters.flat) for name in optimizer.moments}
        self.weight_ranges = parameters.architecture.weight_ranges
        self._xp, self._theta = xp, parameters.flat
        self._scratch: list[Array] | None = None

    @property
    def scratch(self) -> list[Array]:
        """Made at the first use: compiled steps need none."""
        if self._scratch is None:
            self._scratch = [self._xp.empty_like(self._theta) for _ in range(2)]
        return self._scratch

    @property
    def numbers(self) -> StepNumbers:
        """The numbers of step number `t`, at the current rate."""
        return self.optimizer.numbers(self.learning_rate, self.t)

    def step(self, xp: Any, theta: Array, gradient: Array) -> None:
        """Take one step: change the flat parameter vector `theta` in place.

        Raises
        ------
        ValueError
            The `update` of a user's optimizer made a new vector, or left the old one as it was in its first step.
        """
        self.t += 1
        checked = self.t == 1 and self.optimizer.rule is None and self.learning_rate > 0
        before = theta.copy() if checked else None
        result: object = self.optimizer.update(xp, self, theta, gradient)
        if before is None and result is None:
            return
        if result is not None or (bool((gradient != 0).any()) and bool((theta == before).all())):
            raise ValueError(
                f"{type(self.optimizer).__name__}.update: expected a change of theta in place, such as theta -= ...; "
                f"{'got a returned value' if result is not None else 'theta is as it was before the first step'}"
            )


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(),
    "adamw": AdamW(),
}


def as_optimizer(optimizer: str | Optimizer, learning_rate: float | None = None) -> Optimizer:
    """The description for a name (a key of OPTIMIZERS) or itself, with its rate replaced if one is given."""
    if not isinstance(optimizer, Optimizer):
        optimizer = OPTIMIZERS[check_choice("optimizer", optimizer, OPTIMIZERS)]
    return optimizer if learning_rate is None else replace(optimizer, learning_rate=learning_rate)
