"""A training that a crowd runs beside others, some epochs at a time; it goes as `Training.run` does, to the bit."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from fusedmlp.engines.base import Engine
from fusedmlp.engines.crowd import Best, Crowd, End, Stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.errors import TrainingDivergedError
from fusedmlp.streams.samples import StreamedSamples
from fusedmlp.training.loop import Training
from fusedmlp.training.setup import Plan
from fusedmlp.training.state import generator_data, set_generator

_log = logging.getLogger("fusedmlp")


def goes_beside(crowd: Crowd, plan: Plan, engine: Engine, train: Samples, validation: Samples | None) -> bool:
    """Whether a training goes by a crowd's stretches; callbacks and gradient phases run in Python, between epochs."""
    settings = plan.settings
    if isinstance(train, StreamedSamples) or isinstance(validation, StreamedSamples):
        return False
    if plan.callbacks or settings.gradient_phase is not None:
        return False
    if plan.state is not None and plan.state.batch:  # a stretch begins with an epoch's first batch
        return False
    drops = settings.dropout is not None
    return crowd.takes(engine, plan.optimizer, train, validation, settings.batch_size, drops)


class TrainingBeside:
    """A training without callbacks, in stretches.

    Parameters
    ----------
    training : Training
    train, validation : Samples
        As for `Training.run`.
    """

    def __init__(self, training: Training, train: Samples, validation: Samples | None) -> None:
        self.training, self._train, self._validation = training, train, validation
        training.history.samples = train.m
        self._before: Any = None
        training.stop_without_patience()
        if training.history.stopped:
            training.leave(train, validation)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.training.history.stopped)

    @property
    def remaining(self) -> int:
        """The number of epochs that are left."""
        return self.training.epochs - self.training.state.epoch

    @property
    def order_bytes(self) -> int:
        """The size of the order of an epoch."""
        return 8 * self._train.m if self.training.shuffles(self._train) else 0

    def stretch(self, most: int) -> Stretch:
        """The next epochs, at most so many. Their orders are drawn.

        Raises
        ------
        ValueError
            The schedule gives no rate for the first of them.
        """
        training, train, state = self.training, self._train, self.training.state
        rates = [training.rate_of(state.epoch)]
        try:
            rates.extend(map(training.rate_of, range(state.epoch + 1, state.epoch + min(most, self.remaining))))
        except Exception:  # it is raised when that epoch comes
            _log.debug("a schedule failed for an epoch to come", exc_info=True)
        assert state.generator is not None
        orders = None
        if training.shuffles(train):
            self._before = generator_data(state.generator)
            orders = self._drawn(state.generator, len(rates))
            if train.order is not None:
                orders = train.order[orders]
        flat, settings = training.parameters.flat, training.settings
        if state.best_weights is None:
            state.best_weights = flat.copy()
        best = Best(state.best_weights, state.best_loss, state.epochs_since_best)
        if settings.early_stopping:
            best.tolerance, best.patience = settings.tolerance, settings.patience
        return Stretch(
            training.engine,
            training.parameters,
            training.optimizer_state,
            train,
            self._validation,
            settings.batch_size,
            rates,
            orders,
            training.options(train),
            best,
        )

    def absorb(self, stretch: Stretch) -> TrainingDivergedError | None:
        """Take over what came of a stretch, and end the training if it is over; the error that ended it, if one did."""
        training, state, history = self.training, self.training.state, self.training.history
        first, done = state.epoch, len(stretch.losses)
        history.loss += stretch.losses
        history.validation_loss += stretch.validation_losses
        history.learning_rate += stretch.rates[:done]
        history.seconds += stretch.seconds
        state.best_loss, state.epochs_since_best = stretch.best.loss, stretch.best.epochs_since
        if stretch.best.epoch >= 0:
            history.best_epoch = first + stretch.best.epoch
        if history.best_epoch is None:
            state.best_weights = None
        self._rewind(stretch)
        error = self._end(stretch, first + done)
        if self.ended:
            training.leave(self._train, self._validation)
        return error

    def _end(self, stretch: Stretch, epoch: int) -> TrainingDivergedError | None:
        """Whether the training is over, before this epoch."""
        training, state, history = self.training, self.training.state, self.training.history
        if stretch.end in (End.LOSS, End.WEIGHTS):
            state.epoch = training.epoch = epoch - 1
            what = "the weights became NaN or infinite"
            if stretch.end is End.LOSS:
                what = f"the loss became {training.monitored_loss}"
            try:
                training.diverged(what, self._train, self._validation)
            except TrainingDivergedError as error:
                history.error, history.stopped = str(error), "diverged"
                return error
        state.epoch = epoch
        if stretch.end is End.PATIENCE:
            training.epoch = epoch - 1
            training.stop_without_patience()
        elif epoch == training.epochs:
            training.epoch = epoch - 1
            history.stopped = f"all {training.epochs} epochs done"
        else:
            training.epoch = epoch
        return None

    def _rewind(self, stretch: Stretch) -> None:
        """Bring the generator to where it is after the orders of the epochs that were begun."""
        generator = self.training.state.generator
        if stretch.orders is None or stretch.begun == stretch.epochs or generator is None:
            return
        set_generator(generator, self._before)
        self._drawn(generator, stretch.begun)

    def _drawn(self, generator: np.random.Generator | np.random.RandomState, epochs: int) -> np.ndarray:
        """The orders of so many epochs."""
        return self.training.engine.backend.permutations(generator, self._train.m, epochs)

    def run_alone(self) -> None:
        """The rest of the training, on all of the hardware.

        Raises
        ------
        TrainingDivergedError, KeyboardInterrupt
            As `Training.run`.
        """
        self.training.run(self._train, self._validation)

    def end(self, reason: str) -> None:
        """End the training before its next epoch."""
        if not self.ended:
            self.training.stop(reason)
            self.training.leave(self._train, self._validation)
