"""Optimizers and learning rates as scikit-learn's solvers have them, over this package's optimizers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fusedmlp.model.optimizers import SGD, Adam, AdamW, Optimizer, OptimizerState
from fusedmlp.network import Network
from fusedmlp.training.schedules import Schedule, as_schedule
from fusedmlp.training.state import in_host_memory

SMALLEST_RATE = 1e-6
"""The schedule "adaptive" stops at this rate."""
SLOW_DOWN = 5.0
"""What it divides the rate by."""


class _AnyMomentum(SGD):
    """Gradient descent with a momentum of 1, which scikit-learn allows. It has no compiled step."""

    def __post_init__(self) -> None:
        pass


def optimizer_of(estimator: Any) -> Optimizer:
    """The description of an estimator's solver.

    Raises
    ------
    ValueError
        Weight decay is asked of a solver that has none.
    """
    rate = float(estimator.learning_rate_init)
    if estimator.solver == "sgd":
        momentum = float(estimator.momentum)
        kind = SGD if momentum < 1 else _AnyMomentum
        return kind(rate, momentum, bool(estimator.nesterovs_momentum) and momentum > 0)
    betas = rate, float(estimator.beta_1), float(estimator.beta_2), float(estimator.epsilon)
    return AdamW(*betas, float(estimator.weight_decay)) if estimator.weight_decay else Adam(*betas)


class Saved(NamedTuple):
    """Steps taken, and moments in host memory."""

    t: int
    moments: dict[str, np.ndarray]


class SolverSteps:
    """The steps of one training: the optimizer's state and the learning rate.

    A pickle holds numpy arrays, whatever the backend was.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Its parameters are read here and not again.

    Attributes
    ----------
    optimizer : Optimizer
    learning_rate : float
        The rate of the next step; Adam's with the corrections of its last step, as in scikit-learn.
    """

    def __init__(self, estimator: Any) -> None:
        self.optimizer = optimizer_of(estimator)
        self._learning_rate = self.optimizer.learning_rate
        sgd = estimator.solver == "sgd"
        schedule = estimator.schedule
        if schedule is not None:
            schedule = as_schedule(schedule, estimator.max_iter)
        self._schedule: str | Schedule | None = schedule or (estimator.learning_rate if sgd else None)
        self._power = float(estimator.power_t)
        self._saved: Saved = Saved(0, {})
        self._state: OptimizerState | None = None

    @property
    def learning_rate(self) -> float:
        t = (self._state or self._saved).t
        if isinstance(self.optimizer, Adam) and t:
            return self.optimizer.numbers(self._learning_rate, t).rate
        return self._learning_rate

    def state_for(self, network: Network) -> OptimizerState:
        """The optimizer's state with arrays of the network's backend and type, at the current rate."""
        flat = network.parameters.flat
        if self._state is None or (self._state.moments.keys() and not _alike(self._state, flat)):
            t, _, moments = self.saved()
            state = OptimizerState(self.optimizer, network.backend.xp, network.parameters)
            state.t = t
            for name, moment in moments.items():
                state.moments[name][...] = network.backend.asarray(moment, flat.dtype)
            self._state = state
        self._state.learning_rate = self._learning_rate
        return self._state

    def saved(self) -> tuple[int, float, dict[str, np.ndarray]]:
        """Steps taken, the rate without Adam's corrections, and the moments in host memory."""
        if self._state is None:
            return self._saved.t, self._learning_rate, self._saved.moments
        moments = {name: in_host_memory(x) for name, x in self._state.moments.items()}
        return self._state.t, self._learning_rate, moments

    def restore(self, t: int, learning_rate: float, moments: dict[str, np.ndarray]) -> None:
        """Go on from what `saved` returned."""
        self._state, self._learning_rate = None, learning_rate
        self._saved = Saved(t, moments)

    def rates(self, estimator: Any, epochs: int, samples: int) -> list[float]:
        """The rates of the next epochs, of so many samples each, as long as "adaptive" does not change them."""
        now, rates = self._learning_rate, []
        for epoch in range(epochs):
            if callable(self._schedule):
                self._learning_rate = float(self._schedule(estimator.n_iter_ + epoch, self.optimizer.learning_rate))
            rates.append(self._learning_rate)
            self.epoch_ends(estimator.t_ + (epoch + 1) * samples)
        self._learning_rate = now
        return rates

    def epoch_ran_at(self, rate: float) -> None:
        """An epoch has had this rate."""
        self._learning_rate = rate

    def epoch_ends(self, samples_seen: int) -> None:
        """Set the rate by "invscaling": learning_rate_init / (samples_seen + 1) ** power_t."""
        if self._schedule == "invscaling":
            self._learning_rate = self.optimizer.learning_rate / (samples_seen + 1) ** self._power

    def stops(self, message: str, verbose: bool) -> bool:
        """Whether training ends where it no longer improves; "adaptive" goes on with a smaller rate."""
        adaptive = self._schedule == "adaptive"
        stopping = not adaptive or self._learning_rate <= SMALLEST_RATE
        if not stopping:
            self._learning_rate /= SLOW_DOWN
        if verbose and not adaptive:
            print(f"{message} Stopping.")
        elif verbose and stopping:
            print(f"{message} Learning rate too small. Stopping.")
        elif verbose:
            print(f"{message} Setting learning rate to {self._learning_rate:f}")
        return stopping

    def __getstate__(self) -> dict[str, Any]:
        """Attributes; the moments in host memory."""
        t, _, moments = self.saved()
        return {**self.__dict__, "_saved": Saved(t, moments), "_state": None}


def _alike(state: OptimizerState, flat: Any) -> bool:
    """Whether the state's arrays are of the kind and type of the parameters."""
    moment = next(iter(state.moments.values()))
    return type(moment) is type(flat) and moment.dtype == flat.dtype and moment.shape == flat.shape
