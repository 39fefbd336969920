"""The order of events in `fit_many`: which trainings run when, and what becomes of errors and of Ctrl-C."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import NamedTuple

from fusedmlp.engines.base import Engine
from fusedmlp.engines.crowd import Crowd, Stretch, epochs_of_a_stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.errors import TrainingDivergedError
from fusedmlp.training.callbacks import Callback, RunningTraining
from fusedmlp.training.history import History
from fusedmlp.training.interrupts import Interrupts
from fusedmlp.training.many_arguments import naming
from fusedmlp.training.progress import ProgressOfMany
from fusedmlp.training.setup import Plan
from fusedmlp.training.stretches import TrainingBeside, goes_beside

_ROUND_SECONDS = 0.1
_ORDER_BYTES, _VECTOR_BYTES, _MOST_BEGUN = 16 * 2**20, 256 * 2**20, 1024
"""Orders of a round; the vectors of the trainings that are begun, if these are more than the workers; their number."""
_FIRST_BEGUN = 8
"""Trainings for each worker that are begun before the first round; the others are begun while workers are busy."""
_VECTORS = 5
"""Moments, best and first weights, and those that early stopping keeps."""


class Member(NamedTuple):
    """One of the networks: its checked training, the engine of its architecture, and its samples."""

    number: int
    plan: Plan
    engine: Engine
    train: Samples
    validation: Samples | None


class _Beside(NamedTuple):
    """A training that is begun."""

    member: Member
    training: TrainingBeside
    epoch_seconds: float

    @property
    def seconds(self) -> float:
        """About how long it still takes: by its last epoch, or by an estimate."""
        return self.training.remaining * self.of_an_epoch

    @property
    def of_an_epoch(self) -> float:
        """About how long an epoch takes."""
        seconds = self.training.training.history.seconds
        return max(1e-6, seconds[-1] if seconds else self.epoch_seconds)


class _EpochCounter(Callback):
    """Tells the progress of all of one training's epochs."""

    def __init__(self, progress: ProgressOfMany) -> None:
        self._progress = progress

    def on_epoch_end(self, training: RunningTraining) -> None:
        self._progress.advance(1)


class ManyRun:
    """All trainings of a `fit_many`.

    Parameters
    ----------
    members : list of Member
    crowd : Crowd or None
        What trains many at once, where the backend has that.
    raises : bool
        Whether a training that diverges ends all others.
    progress : ProgressOfMany or None
    """

    def __init__(
        self, members: list[Member], crowd: Crowd | None, raises: bool, progress: ProgressOfMany | None
    ) -> None:
        self._members, self._crowd, self._raises, self._progress = members, crowd, raises, progress
        self._histories: dict[int, History] = {}
        self._begun: list[_Beside] = []
        self._planned: list[tuple[_Beside, Stretch]] = []
        self._interrupts = Interrupts()

    def histories(self) -> list[History]:
        """Train all of them: in the order of the networks, each one's history."""
        beside = [member for member in self._members if self._is_beside(member)]
        chosen = {member.number for member in beside}
        try:
            self._train_beside(beside)
            for member in self._members:
                if member.number not in chosen:
                    self._train_alone(member)
        except BaseException as error:
            self._leave(error)
            raise
        return [self._histories[member.number] for member in self._members]

    def _is_beside(self, member: Member) -> bool:
        """Whether a training is one of many at a time."""
        return self._crowd is not None and goes_beside(
            self._crowd, member.plan, member.engine, member.train, member.validation
        )

    def _leave(self, error: BaseException) -> None:
        """Let every network have its weights and its history so far."""
        interrupted = isinstance(error, KeyboardInterrupt)
        self._absorb(self._planned)  # none of these has begun: only their draws are taken back
        for each in self._begun:
            epoch = each.training.training.epoch + 1
            each.training.end(f"interrupted in epoch {epoch}" if interrupted else "ended by another network's error")
        for member in self._members:
            if interrupted and member.number not in self._histories:
                network, state = member.plan.network, member.plan.state
                network.history = History() if state is None else state.history
                network.history.stopped = "interrupted before its first epoch"

    def _failed(self, member: Member, error: TrainingDivergedError) -> None:
        if self._raises:
            raise TrainingDivergedError(f"networks[{member.number}]: {error}") from error

    # One at a time ---------------------------------------------------------------------------------------------------

    def _train_alone(self, member: Member) -> None:
        """One training from its first epoch to its last."""
        watching = () if self._progress is None else (_EpochCounter(self._progress),)
        with naming(member.number):
            training, train, validation = member.plan.begin(
                member.engine, member.train, member.validation, largest_copy=_largest_copy(member, 0), watching=watching
            )
        self._histories[member.number] = training.history
        try:
            training.run(train, validation)
        except TrainingDivergedError as error:
            self._failed(member, error)
        if self._progress is not None:
            self._progress.advance(training.epochs - training.history.epochs, 1)

    # Many at a time --------------------------------------------------------------------------------------------------

    def _train_beside(self, members: list[Member]) -> None:
        """Trainings in rounds, each of some epochs of some networks."""
        crowd = self._crowd
        if crowd is None or not members:
            return
        waiting = deque(sorted(members, key=self._estimate, reverse=True))
        most = _FIRST_BEGUN * crowd.workers
        while waiting or self._begun:
            self._fill(waiting, most)
            most = _MOST_BEGUN
            if not waiting and len(self._begun) < crowd.workers:
                each = self._begun[0]
                settings = each.member.plan.settings
                if crowd.can_share(each.member.engine, each.member.train, settings.batch_size):
                    self._finish(each)
                    continue
            self._round(crowd, waiting)

    def _estimate(self, member: Member) -> float:
        assert self._crowd is not None
        seconds = self._crowd.epoch_seconds(member.engine, member.train, member.validation)
        return member.plan.settings.epochs * seconds

    def _fill(self, waiting: deque[Member], most: int = _MOST_BEGUN) -> None:
        """Begin trainings, at most so many, while there is memory for them."""
        assert self._crowd is not None
        n_bytes = sum(_bytes_of(each.member) for each in self._begun)
        while waiting and len(self._begun) < most:
            n_bytes += _bytes_of(waiting[0])
            if n_bytes > _VECTOR_BYTES and len(self._begun) >= 2 * self._crowd.workers:
                return
            member = waiting.popleft()
            with naming(member.number):
                largest_copy = _largest_copy(member, None)
                begun = member.plan.begin(member.engine, member.train, member.validation, largest_copy=largest_copy)
            training = TrainingBeside(*begun)
            self._histories[member.number] = training.training.history
            if training.ended:
                self._count(member, training, 0)
                continue
            seconds = self._crowd.epoch_seconds(member.engine, *begun[1:])
            self._begun.append(_Beside(member, training, seconds))

    def _round(self, crowd: Crowd, waiting: deque[Member]) -> None:
        """Some epochs of those trainings that take longest; meanwhile the next round is prepared."""
        if not self._planned:
            self._plan(crowd, self._begun)
        current, self._planned = self._planned, []
        busy = {each.member.number for each, _ in current}
        idle = self._idle(busy)
        # A round of the few that are left would not have work for all workers.
        many = len(idle) + len(waiting) >= 4 * crowd.workers
        meanwhile = partial(self._prepare, crowd, waiting, busy) if many else None
        try:
            with self._interrupts.caught():
                crowd.run([stretch for _, stretch in current], self._interrupts.poll, meanwhile)
        finally:
            errors = self._absorb(current)
        for member, error in errors:
            self._failed(member, error)

    def _prepare(self, crowd: Crowd, waiting: deque[Member], busy: set[int]) -> None:
        """Begin more trainings, and plan a round of those that are not being trained now."""
        self._fill(waiting)
        self._plan(crowd, self._idle(busy))

    def _idle(self, busy: set[int]) -> list[_Beside]:
        return [each for each in self._begun if each.member.number not in busy]

    def _absorb(self, done: list[tuple[_Beside, Stretch]]) -> list[tuple[Member, TrainingDivergedError]]:
        """Take over what came of stretches; the errors of those trainings that diverged."""
        ended, errors = set(), []
        for each, stretch in done:
            error = each.training.absorb(stretch)
            if error is not None:
                errors.append((each.member, error))
            if each.training.ended:
                ended.add(each.member.number)
            self._count(each.member, each.training, len(stretch.losses))
        self._begun = [each for each in self._begun if each.member.number not in ended]
        return errors

    def _plan(self, crowd: Crowd, begun: list[_Beside]) -> None:
        """Prepare a round of some of these trainings. The planned ones are complete whenever an exception comes."""
        for each, epochs in _chosen(begun, crowd.workers):
            with naming(each.member.number):
                self._planned.append((each, each.training.stretch(epochs)))
        crowd.prepare([stretch for _, stretch in self._planned])

    def _finish(self, each: _Beside) -> None:
        """The rest of a training, with all workers on it."""
        before = each.training.training.history.epochs
        try:
            each.training.run_alone()
        except TrainingDivergedError as error:
            self._failed(each.member, error)
        finally:
            self._begun.remove(each)
        self._count(each.member, each.training, each.training.training.history.epochs - before)

    def _count(self, member: Member, training: TrainingBeside, epochs: int) -> None:
        if self._progress is not None:
            rest = training.training.epochs - training.training.history.epochs if training.ended else 0
            self._progress.advance(epochs + rest, int(training.ended))


def _chosen(begun: list[_Beside], workers: int) -> list[tuple[_Beside, int]]:
    """The trainings of a round, those that take longest first, and their numbers of epochs.

    Where few are left, there is one for each worker, or two, or three, ..., so that none waits for the last. Where many
    are left, half of them are for the next round.
    """
    begun = sorted(begun, key=lambda each: each.seconds, reverse=True)
    if len(begun) >= 8 * workers:
        begun = begun[: -(-len(begun) // 2)]
    elif len(begun) > workers:
        begun = begun[: len(begun) // workers * workers]
    chosen: list[tuple[_Beside, int]] = []
    seconds, order_bytes = 0.0, 0
    for each in begun:
        epochs = max(1, min(epochs_of_a_stretch(each.of_an_epoch), each.training.remaining))
        seconds += epochs * each.of_an_epoch
        order_bytes += epochs * each.training.order_bytes
        full = seconds > _ROUND_SECONDS * workers or order_bytes > _ORDER_BYTES
        if full and len(chosen) >= workers and len(chosen) % workers == 0:
            break
        chosen.append((each, epochs))
    return chosen


def _copies(member: Member) -> bool:
    """Whether the part that is held back, and the rest, may be copies: dropout's masks go by their columns in `fit`."""
    return member.plan.settings.dropout is not None


def _largest_copy(member: Member, otherwise: int | None) -> int | None:
    """As in `Plan.begin`."""
    return int(member.plan.network.backend.workspace_bytes) if _copies(member) else otherwise


def _bytes_of(member: Member) -> int:
    a = member.engine.architecture
    n_bytes = _VECTORS * a.n_parameters * a.itemsize
    if _copies(member) and member.plan.fraction:
        n_bytes += min(member.plan.network.backend.workspace_bytes, member.train.m * a.n_inputs * a.itemsize)
    return n_bytes
