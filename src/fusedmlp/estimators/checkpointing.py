"""Checkpoints of an estimator's fit: its fitted attributes, and what its loop remembers from epoch to epoch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fusedmlp.checkpoints import (
    Checkpoint,
    Keeper,
    function_name,
    same_after_reading,
)
from fusedmlp.engines.options import EpochPosition
from fusedmlp.errors import CheckpointError
from fusedmlp.estimators.rows import Rows
from fusedmlp.estimators.validation import ValidationSet
from fusedmlp.network import Network
from fusedmlp.training.interrupts import Interrupts
from fusedmlp.training.recording import Every
from fusedmlp.training.state import generator_data, set_generator

if TYPE_CHECKING:
    from fusedmlp.estimators.together import Together

_log = logging.getLogger("fusedmlp")

_ATTRIBUTES = (
    *("n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_", "validation_loss_curve_"),
    *("best_validation_score_", "_no_improvement_count", "_best_parameters"),
)
_FREE = ("verbose", "max_iter", "random_state", "warm_start")
"""Parameters that a fit that goes on may have otherwise."""


class Loop(Protocol):
    """What a checkpoint needs of a fit's loop; `StochasticFit` has it."""

    def current(self) -> np.ndarray:
        """The weights of now, in host memory."""

    def memory(self) -> dict[str, Any]:
        """What the loop remembers from epoch to epoch, as plain data and arrays."""

    def restore(self, memory: dict[str, Any]) -> None:
        """Go on from what `memory` returned."""


class FitCheckpoints:
    """The checkpoints of one ``fit``: those that it writes, and the one that it goes on from, where there is a file.

    Parameters
    ----------
    checkpoint : Checkpoint
    estimator : MLPClassifier or MLPRegressor
    network : Network
    rows : Rows
        To train on.
    validation : ValidationSet, optional
    together : Together, optional
        The processes that train together.

    Raises
    ------
    ValueError
        The interval is one of batches, or the file cannot be written.
    CheckpointError
        The file holds another training, or is damaged.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        estimator: Any,
        network: Network,
        rows: Rows,
        validation: ValidationSet | None,
        together: Together | None = None,
    ) -> None:
        if Every.of("checkpoint_every", checkpoint.every).batches is not None:
            raise ValueError(f"checkpoint_every: expected epochs or a time; got {checkpoint.every!r}")
        self.path, self._estimator, self._network = checkpoint.path, estimator, network
        keeper = Keeper() if together is None else together.keeper(network)
        description = _described(estimator, network, rows, validation, keeper)
        self._recorder = keeper.recorder(checkpoint, description, network.backend.name)
        self._found = keeper.found(checkpoint.path, description, network.backend.name)
        interrupts = self._interrupts = Interrupts()
        self._phase = None if together is None else together.phase(network)
        self.poll: Callable[[], None] = interrupts.poll
        if self._phase is not None:
            self.poll = partial(self._phase.poll, interrupts.poll)

    def caught(self) -> AbstractContextManager[None]:
        """Let Ctrl-C and SIGTERM raise their errors in `poll`, or with the next batch of all processes."""
        return self._interrupts.terminations_caught(self.poll)

    def restore(self, fit: Loop) -> tuple[EpochPosition | None, bool]:
        """Bring a fit that begins to where the file is: (how far its epoch is, if in one; whether the fit is over)."""
        found, e = self._found, self._estimator
        if found is None:
            return None, False
        flat = self._network.parameters.flat
        try:
            state = found.state
            for name, value in state["estimator"].items():
                if name not in _ATTRIBUTES:
                    raise ValueError(f"{name} is no attribute of a fit")
                setattr(e, name, value)
            set_generator(e._random_state, state["random_state"])
            flat[...] = self._network.backend.asarray(state["current"])
            fit.restore(state["loop"])
            over = found.finished and (state["converged"] or e.n_iter_ >= e.max_iter)
            position = None if state["position"] is None else EpochPosition(**state["position"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{os.fspath(self.path)}: the fit's state cannot be read: {error}") from None
        if over:
            flat[...] = self._network.backend.asarray(found.weights)
        _log.info("%s: the fit %s after epoch %d", self.path, "is over" if over else "goes on", e.n_iter_)
        return position, over

    def write_if_due(self, fit: Loop) -> None:
        """After an epoch: write, if it is time for that; raise the error of a signal that came meanwhile."""
        self.poll()
        if self._recorder.is_due():
            self.write(fit)

    def write(self, fit: Loop, position: EpochPosition | None = None) -> None:
        """Write the fit, after its last whole epoch or in the middle of one."""
        self._recorder.record(self._network.parameters.flat, self._state(fit, fit.current(), position, False))

    def interrupted(self, fit: Loop, position: EpochPosition | None, error: BaseException) -> None:
        """Write the fit after what has interrupted it, and say so."""
        if self._phase is not None and not self._phase.ends_all(error):
            return
        self.write(fit, position)
        self._recorder.announce(self._estimator.n_iter_, 0 if position is None else position.batches)

    def finish(self, fit: Loop, current: Any, converged: bool) -> None:
        """Write a fit that is over; `current`: the weights before better ones were put back."""
        state = self._state(fit, current, None, converged)
        self._recorder.record(self._network.parameters.flat, state, finished=True)

    def _state(self, fit: Loop, current: Any, position: EpochPosition | None, converged: bool) -> dict[str, Any]:
        e = self._estimator
        return {
            "estimator": {name: getattr(e, name) for name in _ATTRIBUTES if hasattr(e, name)},
            "random_state": generator_data(e._random_state),
            "current": current,
            "loop": fit.memory(),
            "converged": converged,
            "position": None if position is None else {"batches": position.batches, "loss": position.loss},
        }


def _described(
    estimator: Any, network: Network, rows: Rows, validation: ValidationSet | None, keeper: Keeper
) -> dict[str, Any]:
    """What a fit is, as plain data."""
    parameters = estimator.get_params(deep=False)
    data = {"estimator": type(estimator).__name__} | network.architecture.to_dict()
    for name, value in parameters.items():
        plain = value is None or isinstance(value, bool | int | float | str)
        if name not in _FREE:
            data[name] = value if plain else function_name(value) if callable(value) else repr(value)
    if estimator.schedule in ("step", "cosine"):
        data["max_iter"] = estimator.max_iter
    data |= keeper.described("", rows.samples, network)
    if validation is not None:
        data |= keeper.described("validation_", validation.samples, network)
    return same_after_reading(data)
