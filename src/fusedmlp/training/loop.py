"""The training loop: epochs, mini-batches, validation, stopping, callbacks, history."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fusedmlp.checks import check_count, check_flag, check_number
from fusedmlp.engines.base import Engine
from fusedmlp.engines.options import EpochOptions
from fusedmlp.engines.samples import Samples
from fusedmlp.errors import TrainingDivergedError
from fusedmlp.model.optimizers import Optimizer, OptimizerState
from fusedmlp.model.parameters import Parameters
from fusedmlp.training.callbacks import Callback, as_callback
from fusedmlp.training.history import History
from fusedmlp.training.schedules import Schedule

_log = logging.getLogger("fusedmlp")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: the arguments of ``Network.fit`` that are not data.

    Attributes
    ----------
    epochs, batch_size : int
    schedule : callable
    alpha : float
        L2 strength.
    shuffle : bool
    early_stopping : bool
        Stop after `patience` epochs without an improvement of more than `tolerance`, and put the best weights back.
    patience : int
    tolerance : float
    """

    epochs: int
    batch_size: int
    schedule: Schedule
    alpha: float = 0.0
    shuffle: bool = True
    early_stopping: bool = False
    patience: int = 10
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        check_number("alpha", self.alpha, 0, include_low=True)
        check_flag("shuffle", self.shuffle)
        check_flag("early_stopping", self.early_stopping)
        check_count("patience", self.patience)
        check_number("tolerance", self.tolerance, 0, include_low=True)


class Training:
    """One run of ``Network.fit``; what callbacks are given.

    Attributes
    ----------
    parameters : Parameters
        Changed in place as the training goes on.
    optimizer_state : OptimizerState
    history : History
    epoch : int
        The epoch at work, from 0.
    epochs : int
        How many were planned.
    rate_factor : float
        The schedule's rate is multiplied by this; callbacks may change it.
    """

    def __init__(
        self,
        engine: Engine,
        parameters: Parameters,
        optimizer: Optimizer,
        settings: TrainingSettings,
        generator: np.random.Generator | np.random.RandomState,
        callbacks: Iterable[Callback | Callable[[Training], object]] = (),
    ) -> None:
        self.engine = engine
        self.parameters = parameters
        self.settings = settings
        self.optimizer_state = OptimizerState(optimizer, engine.backend.xp, parameters)
        self.history = History()
        self.epoch = 0
        self.epochs = settings.epochs
        self.rate_factor = 1.0
        self._generator = generator
        self._callbacks = [as_callback(callback) for callback in callbacks]
        self._best_loss = math.inf
        self._best_flat = parameters.flat.copy()
        self._epochs_since_best = 0

    def stop(self, reason: str = "stopped by a callback") -> None:
        """End the training after this epoch."""
        self.history.stopped = reason

    @property
    def monitored_loss(self) -> float:
        """The newest validation loss, or training loss where there are no validation samples."""
        return (self.history.validation_loss or self.history.loss)[-1]

    def run(self, train: Samples, validation: Samples | None = None) -> History:
        """Train to the end of the plan, or until something stops it.

        Raises
        ------
        TrainingDivergedError
            The loss became NaN or infinite; the best weights so far were put back.
        """
        self.history.samples = train.m
        for callback in self._callbacks:
            callback.on_fit_begin(self)
        for epoch in range(self.settings.epochs):
            self.epoch = epoch
            with np.errstate(over="ignore", invalid="ignore"):  # a training that diverges is reported once, as that
                self._train_epoch(train, validation)
            self._follow_best()
            for callback in self._callbacks:
                callback.on_epoch_end(self)
            if self.history.stopped:
                break
        else:
            self.history.stopped = f"all {self.settings.epochs} epochs done"
        if self.settings.early_stopping:
            self.parameters.flat[...] = self._best_flat
        for callback in self._callbacks:
            callback.on_fit_end(self)
        return self.history

    def _train_epoch(self, train: Samples, validation: Samples | None) -> None:
        start = time.perf_counter()
        planned = self.settings.schedule(self.epoch, self.optimizer_state.optimizer.learning_rate)
        rate = check_number("schedule", planned, 0, include_low=True) * self.rate_factor
        self.optimizer_state.learning_rate = rate
        order = None
        if self.settings.shuffle and self.settings.batch_size < train.m:
            order = self._generator.permutation(train.m)
        loss = self.engine.train_epoch(
            self.parameters,
            self.optimizer_state,
            train.X,
            train.Y,
            train.sample_weight,
            order,
            self.settings.batch_size,
            EpochOptions(alpha=self.settings.alpha),
        )
        self.engine.backend.synchronize()
        history = self.history
        history.seconds.append(time.perf_counter() - start)
        history.loss.append(loss)
        history.learning_rate.append(rate)
        if validation is not None:
            history.validation_loss.append(
                self.engine.loss(self.parameters, validation.X, validation.Y, validation.sample_weight)
            )

    def _follow_best(self) -> None:
        """Remember the best weights; stop on a plateau if that was asked for, and at NaN or infinity in any case."""
        loss = self.monitored_loss
        finite = math.isfinite(loss) and math.isfinite(self.history.loss[-1])
        # The last step comes after the last loss: only the weights themselves tell that it went wrong.
        if not (finite and self.engine.backend.all_finite(self.parameters.flat)):
            self.parameters.flat[...] = self._best_flat
            what = "the weights became NaN or infinite" if finite else f"the loss became {loss}"
            best = (
                f"those after epoch {self.history.best_epoch}" if self.history.best_epoch is not None else "the first"
            )
            raise TrainingDivergedError(
                f"{what} in epoch {self.epoch} at learning rate {self.history.learning_rate[-1]:g}; "
                f"the best weights so far ({best}) were put back"
            )
        improved = loss < self._best_loss - (self.settings.tolerance if self.settings.early_stopping else 0)
        self._epochs_since_best = 0 if improved else self._epochs_since_best + 1
        if loss < self._best_loss:
            self._best_loss = loss
            self._best_flat[...] = self.parameters.flat
            self.history.best_epoch = self.epoch
        if self.settings.early_stopping and self._epochs_since_best >= self.settings.patience:
            self.stop(f"no improvement of more than {self.settings.tolerance:g} for {self.settings.patience} epochs")
            _log.info("epoch %d: %s", self.epoch, self.history.stopped)
