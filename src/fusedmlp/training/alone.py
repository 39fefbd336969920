"""One training by itself: epoch by epoch, or in the stretches of a crowd that has no other network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusedmlp.engines.base import Engine
from fusedmlp.engines.crowd import Crowd, epochs_of_a_stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.training.callbacks import Callback
from fusedmlp.training.history import History
from fusedmlp.training.interrupts import Interrupts
from fusedmlp.training.loop import Training
from fusedmlp.training.setup import Plan
from fusedmlp.training.stretches import TrainingBeside, goes_beside

_ORDER_BYTES = 16 * 2**20


def train_alone(
    plan: Plan,
    engine: Engine,
    train: Samples,
    validation: Samples | None,
    crowd: Crowd | None,
    watching: Sequence[Callback] = (),
    run: Callable[[Training, Samples, Samples | None], History] | None = None,
) -> History:
    """Train a network.

    Parameters
    ----------
    plan : Plan
    engine : Engine
    train, validation : Samples
        As the engine's epochs read them.
    crowd : Crowd or None
        As `Backend.crowd_of_one` gives it.
    watching : sequence of Callback
        Called after every epoch; they change nothing.
    run : callable, optional
        Called in place of `Training.run`, epoch by epoch; no crowd then.

    Raises
    ------
    TrainingDivergedError, KeyboardInterrupt
        As `Training.run`.
    """
    if run is None and crowd is not None and goes_beside(crowd, plan, engine, train, validation):
        return _Stretches(crowd, *plan.begin(engine, train, validation, largest_copy=None), watching).run()
    largest_copy = int(engine.backend.workspace_bytes)
    begun = plan.begin(engine, train, validation, largest_copy=largest_copy, watching=watching)
    training, train, validation = begun
    return training.run(train, validation) if run is None else run(training, train, validation)


class _Stretches:
    """A training in the stretches of a crowd."""

    def __init__(
        self,
        crowd: Crowd,
        training: Training,
        train: Samples,
        validation: Samples | None,
        watching: Sequence[Callback],
    ) -> None:
        self._crowd, self._training, self._watching = crowd, training, watching
        self._train, self._validation = train, validation
        self._interrupts = Interrupts()
        self._seconds = crowd.epoch_seconds(training.engine, train, validation)

    def run(self) -> History:
        """As `Training.run`."""
        training = self._training
        for each in self._watching:
            each.on_fit_begin(training)
        beside = TrainingBeside(training, self._train, self._validation)
        try:
            while not beside.ended:
                self._some_epochs(beside)
        except KeyboardInterrupt:
            beside.end(f"interrupted in epoch {training.epoch + 1}")
            raise
        finally:
            if not beside.ended:  # by an error
                training.leave(self._train, self._validation)
        for each in self._watching:
            each.on_fit_end(training)
        return training.history

    def _some_epochs(self, beside: TrainingBeside) -> None:
        """A stretch; of one epoch, where somebody is watching."""
        stretch = beside.stretch(1 if self._watching else self._epochs(beside))
        error = None
        try:
            with self._interrupts.caught():
                self._crowd.run([stretch], self._interrupts.poll)
        finally:
            error = beside.absorb(stretch)
        if error is not None:
            raise error
        for each in self._watching:
            each.on_epoch_end(self._training)

    def _epochs(self, beside: TrainingBeside) -> int:
        seconds = self._training.history.seconds
        most = epochs_of_a_stretch(seconds[-1] if seconds else self._seconds)
        return max(1, min(most, _ORDER_BYTES // max(1, beside.order_bytes)))
