"""Candidates of a search, trained side by side on all splits; what a Pipeline does before is done once a split."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
from sklearn import get_config
from sklearn.base import clone, is_classifier
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_method_params

from fusedmlp.estimators.base import BaseMLP
from fusedmlp.estimators.shares import Shares, columns_of, work_of
from fusedmlp.estimators.side_by_side import Fit, fit_side_by_side

Split = tuple[np.ndarray, np.ndarray]
"""The rows to train on, and those to score."""


@dataclass
class Outcome:
    """What came of a candidate on a split.

    Attributes
    ----------
    estimator : estimator
        Fitted, if there was no error.
    error : Exception or None
    seconds : float
        Of its fit, and its part of what was done once for several.
    """

    estimator: Any
    error: Exception | None = None
    seconds: float = 0.0


class Outcomes:
    """The outcomes of all candidates in the order in which a search asks for them: split by split of each.

    Parameters
    ----------
    shares : Shares
        Which of them this process trains.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._left: list[Outcome] = []

    def __bool__(self) -> bool:
        return bool(self._left)

    def train(
        self,
        estimator: Any,
        candidates: Sequence[Mapping[str, Any]],
        splits: Sequence[Split],
        X: Any,
        y: Any,
        parameters: Mapping[str, Any],
    ) -> None:
        """Train an estimator with the parameters of each candidate on each split.

        Parameters
        ----------
        estimator : MLPClassifier, MLPRegressor, or a Pipeline that ends in one
        candidates : sequence of dict
        splits : sequence of pairs of arrays of int
        X, y
        parameters : dict
            Of ``fit``; what has a value per row is split as X is.

        Raises
        ------
        ValueError
            A candidate has a parameter that the estimator has not; a part to train on is empty, or a class is missing
            there.
        """
        clones = [_candidate(estimator, number, candidate) for number, candidate in enumerate(candidates)]
        _check_splits(estimator, splits, y)
        places = [(number, place) for number in range(len(clones)) for place in range(len(splits))]
        columns = columns_of(X)
        own = self._shares.own([work_of(clones[number], len(splits[place][0]), columns) for number, place in places])
        with self._shares.apart():
            done = _done(estimator, clones, own, splits, (X, y, parameters))
        for outcome in done.values():
            outcome.error = self._shares.sendable(outcome.error)
        trained = self._shares.exchanged(done)
        self._left = [trained[number] for number in range(len(places))]

    def seconds(self) -> list[float]:
        """The times of all outcomes that are left."""
        return [outcome.seconds for outcome in self._left]

    def next(self) -> Outcome:
        """The next one; it is asked for once."""
        return self._left.pop(0)

    def fitted(self, estimator: Any, X: Any, y: Any, parameters: Mapping[str, Any]) -> Any:
        """An estimator that is trained on all rows, by one process for all."""
        return self._shares.by_first(lambda: estimator.fit(X, y, **parameters))


def _done(
    estimator: Any, clones: Sequence[Any], own: set[int], splits: Sequence[Split], data: tuple[Any, Any, Any]
) -> dict[int, Outcome]:
    """The outcomes whose numbers, split by split of each candidate, are named."""
    X, y, parameters = data
    done: dict[int, Outcome] = {}
    fits: list[tuple[Outcome, Fit]] = []
    for place, (train, _) in enumerate(splits):
        numbers = [number for number in range(len(clones)) if number * len(splits) + place in own]
        if not numbers:
            continue
        part = _safe_split(estimator, X, y, train)
        prepared = _PreparedParts(part[0], part[1], _check_method_params(X, params=parameters, indices=train))
        for number in numbers:
            outcome = done[number * len(splits) + place] = Outcome(clone(clones[number]))
            fit = prepared.fit_of(outcome)
            if fit is not None:
                fits.append((outcome, fit))
    fit_side_by_side([fit for _, fit in fits])
    for outcome, fit in fits:
        outcome.error, outcome.seconds = fit.error, outcome.seconds + fit.seconds
    return done


def check_estimator(estimator: Any) -> None:
    """Refuse what this module does not train.

    Raises
    ------
    ValueError
        It is neither an MLP of this package nor a Pipeline that ends in one.
    """
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(last, BaseMLP):
        raise ValueError(
            "estimator: expected MLPClassifier or MLPRegressor of fusedmlp, or a Pipeline that ends in one; "
            f"got {type(estimator).__name__}"
            + (f" that ends in {type(last).__name__}" if last is not estimator else "")
        )


def _candidate(estimator: Any, number: int, candidate: Mapping[str, Any]) -> Any:
    try:
        return clone(estimator).set_params(**clone(dict(candidate), safe=False))
    except ValueError as error:
        raise ValueError(f"candidate {number}, {dict(candidate)}: {error}") from error


def _check_splits(estimator: Any, splits: Sequence[Split], y: Any) -> None:
    labels = np.asarray(y) if is_classifier(estimator) and type_of_target(y) in ("binary", "multiclass") else None
    classes = None if labels is None else set(np.unique(labels).tolist())
    for place, (train, test) in enumerate(splits):
        rows, tested = (np.flatnonzero(part) if np.asarray(part).dtype == bool else part for part in (train, test))
        if len(rows) == 0 or len(tested) == 0:
            raise ValueError(f"cv: split {place} has {len(rows)} samples to train on and {len(tested)} to score")
        if labels is None or classes is None:
            continue
        missing = classes - set(np.unique(labels[rows]).tolist())
        if missing:
            raise ValueError(f"cv: split {place} has no sample of class {min(missing, key=str)!r} to train on")


class _PreparedParts:
    """The part of the data that a split trains on, as each candidate's last step gets it.

    Parameters
    ----------
    X, y
        Of the split.
    given : dict
        The parameters of ``fit``, of the split.
    """

    def __init__(self, X: Any, y: Any, given: Mapping[str, Any]) -> None:
        self._X, self._y, self._given = X, y, given
        self._transformed: dict[str, tuple[Any, Any]] = {}

    def fit_of(self, outcome: Outcome) -> Fit | None:
        """What is left to do for a candidate; None where that failed already, or was done here by itself."""
        model = outcome.estimator
        if isinstance(model, BaseMLP):
            return Fit(model, self._X, self._y, self._given)
        start = time.perf_counter()
        try:
            if isinstance(model.steps[-1][1], BaseMLP) and not (
                self._given and get_config()["enable_metadata_routing"]
            ):
                return self._last_step(outcome)
            model.fit(self._X, self._y, **self._given)
        except Exception as error:
            outcome.error = error
        finally:
            outcome.seconds += time.perf_counter() - start
        return None

    def _last_step(self, outcome: Outcome) -> Fit:
        """Fit all steps but the last, unless another candidate has had the same ones."""
        *before, (name, last) = outcome.estimator.steps
        own = {key.removeprefix(f"{name}__"): x for key, x in self._given.items() if key.startswith(f"{name}__")}
        others = {key: x for key, x in self._given.items() if not key.startswith(f"{name}__")}
        if not before:
            return Fit(last, self._X, self._y, own)
        pipeline = Pipeline(before, memory=outcome.estimator.memory)
        key = joblib.hash([(step, type(x).__qualname__, _parameters_of(x)) for step, x in before])
        if key not in self._transformed:
            transformed = pipeline.fit_transform(self._X, self._y, **others)
            self._transformed[key] = pipeline, transformed
        pipeline, transformed = self._transformed[key]
        outcome.estimator.steps = [*pipeline.steps, (name, last)]
        return Fit(last, transformed, self._y, own)


def _parameters_of(step: Any) -> Any:
    return step if isinstance(step, str) or step is None else step.get_params()
