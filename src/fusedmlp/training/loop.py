"""The training loop: epochs, mini-batches, validation, stopping, callbacks, history."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from fusedmlp.checks import check_number
from fusedmlp.engines.base import Engine
from fusedmlp.engines.options import EpochOptions, EpochPosition
from fusedmlp.engines.samples import Samples
from fusedmlp.errors import TerminatedError, TrainingDivergedError
from fusedmlp.model.activations import Array
from fusedmlp.model.dropout import Dropout
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Parameters
from fusedmlp.training.callbacks import Callback, as_callback, memories_of
from fusedmlp.training.history import History
from fusedmlp.training.interrupts import Interrupts, terminations_are_errors
from fusedmlp.training.recording import Recorder
from fusedmlp.training.settings import TrainingSettings
from fusedmlp.training.state import TrainingState, generator_data, set_generator

_log = logging.getLogger("fusedmlp")


class DeadlineError(Exception):
    """Ends an epoch at a deadline."""


class RecordingError(Exception):
    """Ends a part of an epoch, because it is time to write the training down."""


class Training:
    """One run of ``Network.fit``. Callbacks are given this object.

    Attributes
    ----------
    parameters : Parameters
        Changed in place as the training goes on.
    state : TrainingState
        Advanced after every epoch.
    optimizer_state : OptimizerState
    history : History
    epoch : int
        The number of the current epoch, from 0.
    epochs : int
        The number of epochs after which the training ends.
    network : Network or None
        The network whose `fit` it is.
    deadline : float or None
        A time of ``time.monotonic()``, in seconds, at which the training ends in the middle of an epoch.
    recorder : Recorder or None
        What writes the training down from time to time, when it is interrupted, and at its end.
    """

    def __init__(
        self,
        engine: Engine,
        parameters: Parameters,
        state: TrainingState,
        settings: TrainingSettings,
        callbacks: Iterable[Callback | Callable[[Training], object]] = (),
    ) -> None:
        if state.optimizer is None or state.generator is None:
            raise ValueError("state: expected an optimizer and a generator; got none")
        self.engine, self.parameters, self.state, self.settings = engine, parameters, state, settings
        backend = engine.backend
        self.optimizer_state = OptimizerState(state.optimizer, backend.xp, parameters)
        for name, moment in state.moments.items():
            self.optimizer_state.moments[name] = backend.asarray(moment)
        self.optimizer_state.t = state.steps
        if state.weights is not None:
            parameters.flat[...] = backend.asarray(state.weights)
            state.weights = None
        if state.first_weights is None:
            state.first_weights = parameters.flat.copy()
        self.history = state.history
        self.history.stopped, self.history.error = "", None
        self.epoch = state.epoch
        self.epochs = state.epoch + settings.epochs
        self.deadline: float | None = None
        self.recorder: Recorder | None = None
        self.network: Any = None
        self._callbacks = [as_callback(callback) for callback in callbacks]
        self._interrupts = Interrupts()
        self._last_planned = math.nan

    def __repr__(self) -> str:
        loss = f", loss {self.history.loss[-1]:.4g}" if self.history.loss else ""
        return f"Training(epoch {self.history.epochs} of {self.epochs}{loss})"

    @property
    def rate_factor(self) -> float:
        """The schedule's rate is multiplied by this number >= 0; callbacks may change it."""
        return self.state.rate_factor

    @rate_factor.setter
    def rate_factor(self, value: float) -> None:
        self.state.rate_factor = check_number("rate_factor", value, 0, include_low=True)

    def stop(self, reason: str = "stopped by a callback") -> None:
        """End the training after this epoch; before the first one, without an epoch."""
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"reason: expected a text that says why the training ends; got {reason!r}")
        self.history.stopped = reason

    @property
    def monitored_loss(self) -> float:
        """The newest validation loss, or training loss where there are no validation samples."""
        return (self.history.validation_loss or self.history.loss)[-1]

    def run(self, train: Samples, validation: Samples | None = None) -> History:
        """Train to the end of the settings' epochs, or until something stops it.

        Parameters
        ----------
        train, validation : Samples
            As `Samples.prepared` gives them for the engine.

        Raises
        ------
        TrainingDivergedError
            The loss became NaN or infinite; the best weights so far were put back.
        KeyboardInterrupt, TerminatedError
            Ctrl-C; SIGTERM, with a recorder. The history, the weights of the last whole batch (with early stopping, the
            best weights) and the state are kept: the state goes on with the next batch.
        """
        self._check_position(train)
        self.history.samples = train.m
        finished = True
        for callback in self._callbacks:
            callback.on_fit_begin(self)
        try:
            caught = self._interrupts.terminations_caught(self._poll_signals)
            catches = self.recorder is not None or terminations_are_errors()
            with caught if catches else nullcontext():
                self._run_epochs(train, validation)
        except DeadlineError:
            self.stop(f"the deadline passed in epoch {self.epoch + 1}")
            finished = False
        except (KeyboardInterrupt, TerminatedError) as error:
            phase = self.settings.gradient_phase
            if phase is None or phase.ends_all(error):
                self.stop(f"interrupted in epoch {self.epoch + 1}")
                self._record()
                if self.recorder is not None:
                    self.recorder.announce(self.state.epoch, self.state.batch)
            raise
        except TrainingDivergedError as error:
            self.history.error = str(error)
            raise
        finally:
            self.leave(train, validation)
        self._record(finished)
        for callback in self._callbacks:
            callback.on_fit_end(self)
        return self.history

    def end_without_an_epoch(self, reason: str) -> None:
        """Tell the callbacks of a training that was over before."""
        for callback in self._callbacks:
            callback.on_fit_begin(self)
        self.history.stopped = reason
        for callback in self._callbacks:
            callback.on_fit_end(self)

    def leave(self, train: Samples, validation: Samples | None) -> None:
        """The end of a training, however it came: the state has all of it, the network the weights to keep."""
        self._update_state()
        if self.history.error is not None:
            self.stop(f"diverged in epoch {self.epoch + 1}")  # the best weights were put back
        elif self.settings.early_stopping and self.history.stopped:
            self.state.weights = self.parameters.flat.copy()
            self._put_back_best(train, validation)

    def _run_epochs(self, train: Samples, validation: Samples | None) -> None:
        self.stop_without_patience()
        while not self.history.stopped:
            with np.errstate(over="ignore", invalid="ignore"):  # a training that diverges is reported once, as that
                self._train_epoch(train, validation)
            self._follow_best(train, validation)
            for callback in self._callbacks:
                callback.on_epoch_end(self)
            if self._callbacks:
                self._check_weights(train, validation)
            self.state.epoch += 1
            if self.state.epoch == self.epochs and not self.history.stopped:
                self.history.stopped = f"all {self.epochs} epochs done"
            if not self.history.stopped:
                self.epoch = self.state.epoch
                if self.recorder is not None:
                    self._poll_signals()
                    if self.recorder.is_due():
                        self._record()

    def _train_epoch(self, train: Samples, validation: Samples | None) -> None:
        start, state = time.perf_counter(), self.state
        assert state.generator is not None
        rate = self.rate_of(self.epoch)
        self.optimizer_state.learning_rate = rate
        before = generator_data(state.generator)
        order = train.draw_order(state.generator) if self.shuffles(train) else None
        position = EpochPosition(state.batch, state.batch_loss, before=state.batch_loss_before)
        try:
            self._train_batches(train, order, position, before)
            self.engine.backend.synchronize()
        except BaseException:
            set_generator(state.generator, before)
            self._keep(position)
            state.batch_seconds += time.perf_counter() - start
            raise
        history = self.history
        history.seconds.append(state.batch_seconds + time.perf_counter() - start)
        self._keep(EpochPosition())
        state.batch_seconds = 0.0
        history.loss.append(position.loss)
        history.learning_rate.append(rate)
        history.samples = train.m
        if validation is not None:
            history.validation_loss.append(self._loss(validation))

    def _train_batches(
        self, train: Samples, order: Array | None, position: EpochPosition, before: dict[str, Any]
    ) -> None:
        """The batches of an epoch from `position` on, which follows; `before`: the generator, before the order."""
        options, batch_size = self.options(train, position), self.settings.batch_size
        columns, parts = train.batches(order, batch_size)
        options = options if parts is None else replace(options, parts=parts)
        while True:
            if self.recorder is not None:
                position.end = self.recorder.next_end(position.batches)
            try:
                with self._interrupts.caught(last_poll=self._poll):
                    train.train(self.engine, self.parameters, self.optimizer_state, columns, batch_size, options)
            except RecordingError:
                pass
            if train.is_over(position, batch_size):
                return
            self._keep(position)
            self._record(generator=before)

    def _keep(self, position: EpochPosition) -> None:
        """Let the state say how far the epoch has come."""
        state = self.state
        state.batch, state.batch_loss, state.batch_size = position.batches, position.loss, self.settings.batch_size
        state.batch_loss_before = position.before

    def _check_position(self, train: Samples) -> None:
        """See that an epoch that has begun can go on with these samples."""
        if self.state.batch and train.m and self.history.samples != train.m:
            raise ValueError(
                f"state: expected {self.history.samples} samples, as it is in the middle of an epoch; got {train.m}"
            )

    def _update_state(self) -> None:
        self.state.moments, self.state.steps = self.optimizer_state.moments, self.optimizer_state.t

    def _record(self, finished: bool = False, generator: dict[str, Any] | None = None) -> None:
        """Write the training down, if something does that; `generator`: where it is to go on, if not where it is."""
        if self.recorder is None:
            return
        self._update_state()
        data = self.state.to_dict() | {"callbacks": memories_of(self._callbacks)}
        if generator is not None:
            data["generator"] = generator
        self.recorder.record(self.parameters.flat, data, finished)

    def rate_of(self, epoch: int) -> float:
        """The learning rate of an epoch, by the schedule and the callbacks' factor."""
        planned = self.settings.schedule(epoch, self.optimizer_state.optimizer.learning_rate)
        if planned != self._last_planned:  # a number that is checked already need not be checked again
            self._last_planned = check_number("schedule", planned, 0, include_low=True)
        return self._last_planned * self.rate_factor

    def shuffles(self, train: Samples) -> bool:
        """Whether every epoch draws an order of these samples."""
        return self.settings.shuffle and not 0 < train.m <= self.settings.batch_size

    def options(self, train: Samples, position: EpochPosition | None = None) -> EpochOptions:
        """What the batches of every epoch have in common; `position` of this one, where that is wanted."""
        settings, dropout = self.settings, None
        if settings.dropout is not None:
            assert self.state.dropout_seed is not None
            dropout = Dropout(settings.dropout, self.state.dropout_seed)
        mean_weight = train.mean_weight
        return EpochOptions(
            *(settings.alpha, mean_weight, dropout, settings.clip_norm, settings.gradient_phase, self._poll),
            position=position,
        )

    def _loss(self, samples: Samples) -> float:
        return samples.loss(self.engine, self.parameters)

    # Ending an epoch early -------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        """Called by the engine between batches and within long ones, and after the last one."""
        self._ask(self._check_time)

    def _poll_signals(self) -> None:
        self._ask(self._interrupts.poll)

    def _ask(self, check: Callable[[], None]) -> None:
        """Whether the training is to end: `check` raises an exception, unless the gradient phase has a say in that."""
        phase = self.settings.gradient_phase
        if phase is None:
            check()
        else:
            phase.poll(check)

    def _check_time(self) -> None:
        self._interrupts.poll()
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise DeadlineError
        if self.recorder is not None and self.recorder.is_late:
            raise RecordingError

    # The best weights ------------------------------------------------------------------------------------------------

    def _follow_best(self, train: Samples, validation: Samples | None) -> None:
        """Remember the best weights; stop on a plateau if that was asked for, and at NaN or infinity in any case."""
        loss, state = self.monitored_loss, self.state
        if not (math.isfinite(loss) and math.isfinite(self.history.loss[-1])):
            self.diverged(f"the loss became {loss}", train, validation)
        self._check_weights(train, validation)
        improved = loss < state.best_loss - (self.settings.tolerance if self.settings.early_stopping else 0)
        state.epochs_since_best = 0 if improved else state.epochs_since_best + 1
        if loss < state.best_loss:
            state.best_loss = loss
            if state.best_weights is None:
                state.best_weights = self.parameters.flat.copy()
            else:
                state.best_weights[...] = self.parameters.flat
            self.history.best_epoch = self.epoch
        self.stop_without_patience()

    def stop_without_patience(self) -> None:
        """End the training where it has not improved for long enough."""
        settings = self.settings
        if settings.early_stopping and self.state.epochs_since_best >= settings.patience:
            self.stop(f"no improvement of more than {settings.tolerance:g} for {settings.patience} epochs")
            _log.info("epoch %d: %s", self.epoch + 1, self.history.stopped)

    def _check_weights(self, train: Samples, validation: Samples | None) -> None:
        # The last step comes after the last loss, and callbacks after that: only the weights tell what they did.
        if not self.engine.backend.all_finite(self.parameters.flat):
            self.diverged("the weights became NaN or infinite", train, validation)

    def diverged(self, what: str, train: Samples, validation: Samples | None) -> NoReturn:
        """Put the best weights back, and raise TrainingDivergedError."""
        best, loss = self._put_back_best(train, validation)
        raise TrainingDivergedError(
            f"{what} in epoch {self.epoch + 1} at learning rate {self.history.learning_rate[-1]:g}; "
            f"the best weights so far ({best}, whose loss is {loss:g}) were put back"
        )

    def _put_back_best(self, train: Samples, validation: Samples | None) -> tuple[str, float]:
        """Put the best weights into the network: (which these are, their loss).

        The loss of an epoch is that of the weights before each of its steps, so that weights after the best epoch may
        be worse than the first ones. Both are measured, on the validation samples or else on those of the training.
        """
        samples = validation or train
        state, flat = self.state, self.parameters.flat
        choices: list[tuple[str, Array]] = [("the first", state.first_weights)]
        if state.best_weights is not None:
            assert self.history.best_epoch is not None
            choices.append((f"those after epoch {self.history.best_epoch + 1}", state.best_weights))
        losses = []
        with np.errstate(over="ignore", invalid="ignore"):
            for _, weights in choices:
                flat[...] = self.engine.backend.asarray(weights)
                losses.append(self._loss(samples))
        best = min(range(len(choices)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)
        flat[...] = self.engine.backend.asarray(choices[best][1])
        return choices[best][0], losses[best]
