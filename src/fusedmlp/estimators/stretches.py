"""Stretches of epochs: how a fit asks for them, and how they are done where it runs alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from fusedmlp.engines.crowd import Crowd, Stretch, epochs_of_a_stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.network import Network
from fusedmlp.training.interrupts import Interrupts

Stretches = Generator[Stretch, None, None]
"""What a fit has computed, one after the other: when the next one is asked for, the last one has been done."""


def has_listeners(estimator: Any) -> bool:
    """Whether something is called or printed between the epochs of a fit."""
    called = getattr(estimator, "_skl_callbacks", None) or hasattr(estimator, "_parent_callback_ctx")
    return bool(estimator.verbose or called)


class Pace(ABC):
    """How many epochs a fit asks for at a time."""

    @abstractmethod
    def epochs(self, network: Network, samples: Samples, optimizer: Optimizer, batch_size: int, drops: bool) -> int:
        """The most epochs of a stretch.

        Parameters
        ----------
        network : Network
        samples : Samples
        optimizer : Optimizer
        batch_size : int
        drops : bool
            Whether there is dropout.
        """


class Alone(Pace):
    """A fit that runs alone: its stretches go to its backend's crowd, as the only ones there, where that takes them.

    A fit that has something to decide after every epoch asks for one at a time; the engine does that with less ado.

    Parameters
    ----------
    crowd : Crowd, optional
        None: every stretch has one epoch.
    """

    def __init__(self, crowd: Crowd | None) -> None:
        self._crowd, self._interrupts, self._at_crowd = crowd, Interrupts(), False

    def epochs(self, network: Network, samples: Samples, optimizer: Optimizer, batch_size: int, drops: bool) -> int:
        crowd, engine = self._crowd, network.engine
        if crowd is None or not crowd.takes(engine, optimizer, samples, None, batch_size, drops):
            return 1
        return epochs_of_a_stretch(crowd.epoch_seconds(engine, samples, None))

    def run(self, stretches: Stretches) -> None:
        """Do all stretches of a fit, each on all of the hardware; an exception on the way is raised in the fit."""
        try:
            stretch = next(stretches)
            while True:
                try:
                    self._do(stretch)
                except BaseException as error:
                    stretch = stretches.throw(error)
                else:
                    stretch = next(stretches)
        except StopIteration:
            pass

    def _do(self, stretch: Stretch) -> None:
        crowd = self._crowd
        several = stretch.epochs > 1 or self._at_crowd  # the last one of several may be short
        self._at_crowd = crowd is not None and several and is_taken(stretch, crowd)
        if crowd is not None and self._at_crowd:
            with self._interrupts.caught():
                crowd.run([stretch], self._interrupts.poll)
        else:
            epochs_in_turn(stretch)


def is_taken(stretch: Stretch, crowd: Crowd) -> bool:
    """Whether a crowd takes the training that a stretch is part of."""
    drops = stretch.options.dropout is not None
    optimizer, validation = stretch.optimizer_state.optimizer, stretch.validation
    return crowd.takes(stretch.engine, optimizer, stretch.train, validation, stretch.batch_size, drops)


def epochs_in_turn(stretch: Stretch) -> None:
    """The epochs of a stretch, by its engine."""
    s, orders = stretch.train, stretch.orders
    for epoch, rate in enumerate(stretch.rates):
        stretch.optimizer_state.learning_rate = rate
        order = s.order if orders is None else orders[epoch]
        position = stretch.position if epoch == 0 else None
        options = stretch.options if position is None else replace(stretch.options, position=position)
        stretch.begun += 1
        stretch.losses.append(
            stretch.engine.train_epoch(
                stretch.parameters, stretch.optimizer_state, s.X, s.Y, s.sample_weight, order, stretch.batch_size,
                options,
            )
        )  # fmt: skip
