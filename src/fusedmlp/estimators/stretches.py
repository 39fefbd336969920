"""Stretches of epochs: how a fit asks for them, and how they are done where it runs alone."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from fusedmlp.engines.crowd import Stretch
from fusedmlp.estimators.rows import Rows
from fusedmlp.network import Network

Stretches = Generator[Stretch, None, None]
"""What a fit has computed, one after the other: when the next one is asked for, the last one has been done."""


class Pace:
    """How many epochs a stretch may have: one, unless the crowd that does them says otherwise."""

    def epochs(self, network: Network, rows: Rows) -> int:
        """The most epochs of a stretch of this network."""
        return 1


def alone(stretches: Stretches) -> None:
    """Do all stretches of a fit, each on all of the hardware; an exception on the way is raised in the fit."""
    try:
        stretch = next(stretches)
        while True:
            try:
                _do(stretch)
            except BaseException as error:
                stretch = stretches.throw(error)
            else:
                stretch = next(stretches)
    except StopIteration:
        pass


def _do(stretch: Stretch) -> None:
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
