"""Samples that are held back from training, to score the epochs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from fusedmlp.engines.samples import Samples
from fusedmlp.estimators.rows import as_rows
from fusedmlp.network import Network


class ValidationSet:
    """Held-back samples.

    Parameters
    ----------
    X : array or sparse matrix of shape (m, n1)
        Checked.
    Y : array of shape (m, nL)
        Targets as the network has them.
    sample_weight : array of shape (m,), optional
    network : Network
    scoring : str or callable, optional
        None: accuracy or R², as scikit-learn's early stopping. "loss": minus the loss. Else a scorer or its name.
    """

    def __init__(
        self, X: Any, Y: np.ndarray, sample_weight: np.ndarray | None, network: Network, scoring: Any = None
    ) -> None:
        self._X, self._Y, self._sample_weight = X, Y, sample_weight
        self._rows = as_rows(X, Y, sample_weight, network).prepared(network)
        self._scorer = None if scoring in (None, "loss") else _scorer(scoring)
        self._by_loss = scoring == "loss"
        self._loss: float | None = None

    @property
    def samples(self) -> Samples:
        """The held-back samples."""
        return self._rows.samples

    def score(self, estimator: Any, network: Network) -> float:
        """The score of the current weights, larger is better; NaN where an output is."""
        self._loss = None
        if self._by_loss:
            return -self.loss(estimator, network)
        if self._scorer is not None:
            return float(self._scorer(_without_names(estimator), self._X, estimator._labels_of(self._Y)))
        A = self._rows.outputs(network)
        if not np.isfinite(A).all():
            return math.nan
        return float(estimator._score_of(A, self._Y, self._sample_weight))

    def loss(self, estimator: Any, network: Network) -> float:
        """The loss of the current weights, as `loss_curve_` has it but without the L2 term."""
        if self._loss is None:
            self._loss = self._rows.loss(network) * estimator._loss_factor()
        return self._loss


def split(estimator: Any, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows to validate on), drawn as scikit-learn draws them: stratified for two classes."""
    stratified = estimator._stratifies()
    train, held_back = train_test_split(
        np.arange(len(Y)),
        random_state=estimator._random_state,
        test_size=estimator.validation_fraction,
        stratify=Y if stratified else None,
    )
    if len(held_back) < 2:
        raise ValueError("The validation set is too small. Increase 'validation_fraction' or the size of your dataset.")
    return train, held_back


def _scorer(scoring: Any) -> Callable[..., float]:
    from sklearn.metrics import check_scoring

    return check_scoring(None, scoring=scoring) if isinstance(scoring, str) else scoring


def _without_names(estimator: Any) -> Any:
    """A copy that predicts on plain arrays without a warning about the names of features."""
    plain = copy.copy(estimator)
    plain.__dict__.pop("feature_names_in_", None)
    return plain
