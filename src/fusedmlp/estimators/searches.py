"""scikit-learn's searches over parameters, with all candidates on all splits trained side by side.

Candidates, splits, scores and results are those of scikit-learn's own code. Only the trainings are taken out of its
loop and done before it, by `Outcomes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sklearn.base import is_classifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    check_cv,
    cross_validate,
)
from sklearn.utils import indexable

from fusedmlp.estimators.candidates import Outcomes, Split, check_estimator
from fusedmlp.estimators.shares import Shares, shares_of
from fusedmlp.estimators.stand_in import StandIn


class _Splits:
    """Splits that are drawn once: the training and the scores see the same ones."""

    def __init__(self, splits: list[Split]) -> None:
        self._splits = splits

    def split(self, X: Any = None, y: Any = None, groups: Any = None, **given: Any) -> Iterator[Split]:
        """All of them."""
        return iter(self._splits)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None, **given: Any) -> int:
        """Their number."""
        return len(self._splits)


class _SideBySide:
    """What the three searches have in common.

    `fit` puts a `StandIn` in the estimator's place for as long as scikit-learn's own code runs. Before that code asks
    for the scores of some candidates, these are trained.
    """

    estimator: Any
    cv: Any
    n_jobs: Any
    best_estimator_: Any
    refit_time_: float

    def fit(self, X: Any, y: Any = None, *, comm: Any = None, **params: Any) -> Any:
        """As scikit-learn's, with the candidates trained side by side.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        comm : mpi4py.MPI.Intracomm, optional
            Its processes share the trainings of the search, and all call `fit` with the same rows. Afterwards all have
            the same results, those of one process; rank 0 trains the best candidate for all.
        **params
            Of the estimator's ``fit`` and of the splitter, such as `sample_weight` and `groups`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            The estimator is not one of this package, nor a Pipeline that ends in one; a candidate has a parameter that
            it has not; a split lacks samples, or a class in the part to train on; the processes of `comm` have other
            parameters or rows.
        """
        check_estimator(self.estimator)
        shares = shares_of(comm)
        with shares.fitting(self, X, y), self._standing_in(indexable(X, y), shares):
            super().fit(X, y, **params)  # type: ignore[misc]
            if hasattr(self, "best_estimator_"):
                self.best_estimator_ = self.best_estimator_.stands_for
                self.refit_time_ = shares.from_first(self.refit_time_)
        return self

    @contextmanager
    def _standing_in(self, data: list[Any], shares: Shares) -> Iterator[None]:
        before = self.estimator, self.n_jobs
        self._shares, self._outcomes, self._data, self._fit_times = shares, Outcomes(shares), data, list[float]()
        self.estimator, self.n_jobs = StandIn(self.estimator, self._outcomes), None
        try:
            yield
        finally:
            self.estimator, self.n_jobs = before
            for name in ("_shares", "_outcomes", "_data", "_fit_times", "_routed"):
                self.__dict__.pop(name, None)

    def _get_routed_params_for_fit(self, params: dict[str, Any]) -> Any:
        self._routed = super()._get_routed_params_for_fit(params)  # type: ignore[misc]
        return self._routed

    def _run_search(self, evaluate_candidates: Callable[..., Any], callback_ctx: Any = None) -> None:
        def train_and_evaluate(candidates: Any, cv: Any = None, *rest: Any, **more: Any) -> Any:
            candidates = self._shares.from_first(list(candidates))
            stand_in = self.estimator
            X, y = self._data
            cv = cv or check_cv(self.cv, y, classifier=is_classifier(stand_in))
            splits = self._shares.from_first(list(cv.split(X, y, **self._routed.splitter.split)))
            self._outcomes.train(stand_in.stands_for, candidates, splits, X, y, self._routed.estimator.fit)
            self._fit_times += self._outcomes.seconds()
            return evaluate_candidates(candidates, _Splits(splits), *rest, **more)

        context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
        super()._run_search(train_and_evaluate, **context)  # type: ignore[misc]

    def _format_results(self, candidates: Any, n_splits: int, out: list[dict[str, Any]], *more: Any) -> Any:
        for result, seconds in zip(out, self._fit_times, strict=True):
            result["fit_time"] = seconds
        out = self._shares.from_first(out)
        return super()._format_results(candidates, n_splits, out, *more)  # type: ignore[misc]


class MLPGridSearchCV(_SideBySide, GridSearchCV):
    """scikit-learn's GridSearchCV for this package's MLPs, with all candidates on all splits trained at once.

    Parameters, attributes and results are those of ``sklearn.model_selection.GridSearchCV``; the scores have the same
    bits. `n_jobs` has no effect: the networks use all cores. `mean_fit_time` is the time of a candidate's own work.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fusedmlp import MLPClassifier, MLPGridSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((16,), learning_rate_init=0.03, max_iter=20, tol=0, n_iter_no_change=30, random_state=0)
    >>> search = MLPGridSearchCV(model, {"alpha": [1e-4, 1e-2]}, cv=3).fit(X, y)
    >>> len(search.cv_results_["mean_test_score"])
    2
    """


class MLPRandomizedSearchCV(_SideBySide, RandomizedSearchCV):
    """scikit-learn's RandomizedSearchCV for this package's MLPs, with all candidates on all splits trained at once.

    Parameters, attributes and results are those of ``sklearn.model_selection.RandomizedSearchCV``, as for
    `MLPGridSearchCV`.
    """


class MLPSuccessiveHalvingSearchCV(_SideBySide, HalvingGridSearchCV):
    """scikit-learn's HalvingGridSearchCV for this package's MLPs, with all candidates that are left trained at once.

    Parameters, attributes and results are those of ``sklearn.model_selection.HalvingGridSearchCV``, as for
    `MLPGridSearchCV`. With ``resource="max_iter"`` the resource is epochs.
    """


def cross_validate_mlp(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    groups: Any = None,
    scoring: Any = None,
    cv: Any = None,
    n_jobs: Any = None,
    verbose: int = 0,
    params: dict[str, Any] | None = None,
    pre_dispatch: Any = "2*n_jobs",
    return_train_score: bool = False,
    return_estimator: bool = False,
    return_indices: bool = False,
    error_score: Any = float("nan"),
    comm: Any = None,
) -> dict[str, Any]:
    """scikit-learn's cross_validate for this package's MLPs, with all splits trained at once.

    Parameters and results are those of ``sklearn.model_selection.cross_validate``; the scores have the same bits.
    `n_jobs` and `pre_dispatch` have no effect: the networks use all cores. The processes of `comm`, a communicator of
    mpi4py, share the trainings, and all get the same results.

    Raises
    ------
    ValueError
        As `MLPGridSearchCV.fit`.
    """
    check_estimator(estimator)
    shares = shares_of(comm)
    with shares.fitting(estimator, X, y):
        table = indexable(X, y, groups)
        splitter = check_cv(cv, table[1], classifier=is_classifier(estimator))
        given = {} if groups is None else {"groups": table[2]}
        splits = shares.from_first(list(splitter.split(table[0], table[1], **given)))
        outcomes = Outcomes(shares)
        outcomes.train(estimator, [{}], splits, table[0], table[1], params or {})
        seconds = outcomes.seconds()
        results = cross_validate(
            StandIn(estimator, outcomes),
            X,
            y,
            scoring=scoring,
            cv=splits,
            verbose=verbose,
            params=params,
            return_train_score=return_train_score,
            return_estimator=return_estimator,
            return_indices=return_indices,
            error_score=error_score,
        )
        results["fit_time"][:] = seconds
        results |= shares.from_first({name: x for name, x in results.items() if name != "estimator"})
    if return_estimator:
        results["estimator"] = [each.stands_for for each in results["estimator"]]
    return results
