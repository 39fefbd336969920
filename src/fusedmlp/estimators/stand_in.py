"""A stand-in for an estimator in scikit-learn's searches: its ``fit`` takes what was trained side by side before."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone

from fusedmlp.estimators.candidates import Outcomes


class StandIn:
    """An estimator that is fitted by taking the next outcome, or as usual where there is none left.

    Parameters
    ----------
    estimator : estimator
        It has the parameters; all that is not here is asked of it.
    outcomes : Outcomes
        The same for all clones.

    Attributes
    ----------
    stands_for : estimator
    """

    def __init__(self, estimator: Any, outcomes: Outcomes) -> None:
        self.stands_for, self._outcomes = estimator, outcomes

    def __sklearn_clone__(self) -> StandIn:
        return StandIn(clone(self.stands_for), self._outcomes)

    def __getattr__(self, name: str) -> Any:
        if name in ("stands_for", "_outcomes"):
            raise AttributeError(name)
        return getattr(self.stands_for, name)

    def set_params(self, **parameters: Any) -> StandIn:
        """Those of the estimator."""
        self.stands_for.set_params(**parameters)
        return self

    def fit(self, X: Any, y: Any = None, **parameters: Any) -> StandIn:
        """Take the next outcome; its error is raised."""
        if not self._outcomes:
            self.stands_for = self._outcomes.fitted(self.stands_for, X, y, parameters)
            return self
        outcome = self._outcomes.next()
        if outcome.error is not None:
            raise outcome.error
        self.stands_for = outcome.estimator
        return self
