"""Cross-validation on the command line: each fold has its own preprocessing; all networks are trained at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fusedmlp.backends.selection import get_backend
from fusedmlp.cli.ranks import found_by_first
from fusedmlp.cli.settings import Settings
from fusedmlp.cli.splits import strata
from fusedmlp.data.features import FeatureEncoder
from fusedmlp.data.messages import counted
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.table import Table
from fusedmlp.data.targets import ClassEncoder, TargetEncoder, fit_target
from fusedmlp.distributed.launched import communicator
from fusedmlp.many import fit_many
from fusedmlp.network import Network
from fusedmlp.training.state import TrainingState


@dataclass(frozen=True)
class Fold:
    """A part of the rows to score, and the other rows to train on, all encoded by what the latter say.

    Attributes
    ----------
    X : array of shape (n1, m)
        All rows.
    Y : array of shape (nL, m)
    train, test : arrays of int
        Their columns.
    """

    features: FeatureEncoder
    encoder: TargetEncoder
    X: np.ndarray
    Y: np.ndarray
    train: np.ndarray
    test: np.ndarray


@dataclass
class Trial:
    """A candidate: its settings, and its network on every fold.

    Attributes
    ----------
    scores : list of dict
        `Predictor.scores` of every fold's part that is held out; a fold whose training diverged has none.
    errors : list of str
        Why trainings diverged.
    """

    settings: Settings
    networks: list[Network] = field(default_factory=list)
    states: list[TrainingState] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The time of its trainings, each on one core."""
        return sum(sum(state.history.seconds) for state in self.states)

    def mean(self, name: str) -> float:
        """The mean of a score over the folds; NaN where a training diverged."""
        return float("nan") if self.errors else float(np.mean([scores[name] for scores in self.scores]))

    def spread(self, name: str) -> float:
        """The standard deviation of a score over the folds."""
        return float("nan") if self.errors else float(np.std([scores[name] for scores in self.scores]))


class Folds:
    """The rows of a table in folds.

    Parameters
    ----------
    settings : Settings
        Of loss, preprocessing, type, random state and backend.
    table : Table
    count : int

    Attributes
    ----------
    loss : str
    encoder : ClassEncoder or NumberEncoder
        Of all rows.

    Raises
    ------
    ValueError
        There are fewer rows than folds.
    """

    def __init__(self, settings: Settings, table: Table, count: int) -> None:
        if count > len(table):
            raise ValueError(
                f"--folds: {count} folds of {counted(len(table), 'row')}: expected at most one for each row"
            )
        self._settings, self._target = settings, table.require_target()
        self.encoder, self.loss = fit_target(self._target, settings.loss, table.classification)
        self._folds = [self._fold(table, test) for test in self._parts(len(table), count)]

    def _parts(self, m: int, count: int) -> list[np.ndarray]:
        """The rows of every fold, the same share of every class in each."""
        from sklearn.model_selection import KFold, StratifiedKFold

        classes = self.encoder.indices(self._target) if isinstance(self.encoder, ClassEncoder) else None
        groups = None if classes is None else strata(classes, m // count, smallest=count)
        kind = KFold if groups is None else StratifiedKFold
        splitter = kind(count, shuffle=True, random_state=self._settings.random_state)
        return [test for _, test in splitter.split(np.zeros(m), groups)]

    def _fold(self, table: Table, test: np.ndarray) -> Fold:
        settings = self._settings
        train = np.setdiff1d(np.arange(len(table)), test)
        features = FeatureEncoder.fit(table, train, settings.standardize)
        encoder = self.encoder
        if not isinstance(encoder, ClassEncoder):
            encoder = fit_target(self._target, self.loss, table.classification, train)[0]
        X = features.transform(table, None, settings.dtype).T
        return Fold(features, encoder, X, encoder.encode(self._target, settings.dtype), train, test)

    def trial(self, settings: Settings) -> Trial:
        """A candidate with its networks; nothing is trained."""
        trial, backend = Trial(settings), get_backend(settings.backend)
        for number, fold in enumerate(self._folds):
            network = settings.make_network(len(fold.X), len(fold.Y), self.loss, backend, number)
            trial.networks.append(network)
            trial.states.append(TrainingState(planned_epochs=settings.epochs))
        return trial

    def train(self, trials: Sequence[Trial], share: float = 1.0) -> None:
        """Train candidates up to a share of their epochs, and score them.

        Folds that have the same number of inputs lie side by side in one X. Preprocessing that gives other inputs, as
        where a category occurs in one fold alone, makes another X.
        """
        for n_inputs in sorted({len(fold.X) for fold in self._folds}):
            numbers = [number for number, fold in enumerate(self._folds) if len(fold.X) == n_inputs]
            self._train_together(trials, numbers, share)
        for trial in trials:
            trial.scores, trial.errors = found_by_first(partial(self._scores, trial))

    def _train_together(self, trials: Sequence[Trial], numbers: list[int], share: float) -> None:
        folds = [self._folds[number] for number in numbers]
        X, Y = (np.concatenate([getattr(fold, name) for fold in folds], axis=1) for name in "XY")
        m = folds[0].X.shape[1]
        jobs = [(trial.settings, trial, place, number) for trial in trials for place, number in enumerate(numbers)]
        fittings = [settings.fitting(self.encoder) for settings, *_ in jobs]
        for fitting in fittings:
            fitting["epochs"] = max(1, round(share * fitting["epochs"]))
        of_each: dict[str, Any] = {name: [fitting[name] for fitting in fittings] for name in fittings[0]}
        fit_many(
            [trial.networks[number] for _, trial, _, number in jobs],
            X,
            Y,
            **of_each,
            samples=[self._folds[number].train + place * m for _, _, place, number in jobs],
            state=[trial.states[number] for _, trial, _, number in jobs],
            verbose="long",
            comm=communicator(),
        )

    def _scores(self, trial: Trial) -> tuple[list[dict[str, float]], list[str]]:
        """(the scores of a trial, why trainings of it diverged)."""
        scores, errors = [], []
        for fold, network, state in zip(self._folds, trial.networks, trial.states, strict=True):
            if state.history.error is not None:
                errors.append(state.history.error)
                continue
            predictor = Predictor(network, fold.features, fold.encoder)
            scores.append(predictor.scores(fold.X[:, fold.test], self._target[fold.test]))
        return scores, errors
