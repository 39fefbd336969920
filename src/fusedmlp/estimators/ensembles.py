"""Deep ensembles (Lakshminarayanan et al., 2017): several networks of one description, trained and asked together."""

from __future__ import annotations

import functools
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from fusedmlp.estimators.base import BaseMLP
from fusedmlp.estimators.classifier import MLPClassifier
from fusedmlp.estimators.ensemble_files import load_members, save_members
from fusedmlp.estimators.regressor import MLPRegressor
from fusedmlp.estimators.rows import outputs
from fusedmlp.estimators.shares import Shares, shares_of, work_of
from fusedmlp.estimators.side_by_side import Fit, fit_side_by_side

_CHUNK_BYTES = 2**20
"""Rows of X that all members predict before the next ones are read."""


def _constructor(ensemble: str, member: type[BaseMLP]) -> Any:
    """An ensemble's ``__init__``, with the parameters of its members in its signature."""
    defaults = _defaults(member)

    def construct(self: Any, n_members: int = 8, *, bootstrap: bool = False, **parameters: Any) -> None:
        unknown = parameters.keys() - defaults.keys()
        if unknown:
            raise TypeError(f"{ensemble} has no parameter {min(unknown)!r}; those of {member.__name__} are allowed")
        self.n_members, self.bootstrap = n_members, bootstrap
        for name, value in {**defaults, **parameters}.items():
            setattr(self, name, value)

    signature = inspect.signature(construct)
    *own, _ = signature.parameters.values()
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in defaults.items()]
    construct.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    construct.__name__ = "__init__"
    return construct


@functools.cache
def _defaults(member: type[BaseMLP]) -> dict[str, Any]:
    """The parameters of a member and their defaults."""
    signature = inspect.signature(member.__init__)
    return {name: each.default for name, each in signature.parameters.items() if name != "self"}


class BaseEnsemble(BaseEstimator, ABC):
    """What the two ensembles have in common. Parameters that are not here are those of the members."""

    _member: ClassVar[type[BaseMLP]]
    _parameter_constraints: ClassVar[dict[str, list[Any]]]
    estimators_: list[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {"n_members": [Interval(Integral, 1, None, closed="left")], "bootstrap": ["boolean"]}
        cls._parameter_constraints = {**cls._member._parameter_constraints, **own}
        cls.__init__ = _constructor(cls.__name__, cls._member)  # type: ignore[method-assign]

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        comm: Any = None,
    ) -> Any:
        """Train all members, at once where the backend can.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            In memory once, whatever the members are trained on.
        y, sample_weight, X_val, y_val, sample_weight_val
            As in the members' ``fit``.
        comm : mpi4py.MPI.Intracomm, optional
            Its processes share the members, and all call `fit` with the same rows. Each trains some members by itself,
            and all have all of them at the end, with the bits of one process.

        Returns
        -------
        self
        """
        X, _ = validate_data(
            self, X, y, accept_sparse=["csr", "csc"], multi_output=True, dtype=(np.float64, np.float32)
        )
        given = {
            "sample_weight": sample_weight, "X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val,
        }  # fmt: skip
        shares = shares_of(comm)
        with shares.fitting(self, X, y):
            members = self._trained(shares, X, y, {name: x for name, x in given.items() if x is not None})
        self.estimators_ = members
        self.n_outputs_, self.n_layers_ = members[0].n_outputs_, members[0].n_layers_
        self.out_activation_ = members[0].out_activation_
        self.n_iter_ = max(member.n_iter_ for member in members)
        return self

    def _trained(self, shares: Shares, X: Any, y: Any, given: dict[str, Any]) -> list[Any]:
        """All members, of which this process has trained its share."""
        members = self._new_members(shares)
        own = shares.own([work_of(member, *X.shape) for member in members])
        fits = {number: Fit(members[number], X, y, given) for number in sorted(own)}
        with shares.apart():
            fit_side_by_side(list(fits.values()))
        done = shares.exchanged({n: (fit.estimator, shares.sendable(fit.error)) for n, fit in fits.items()})
        for number in range(len(members)):
            members[number], error = done[number]
            if error is not None:
                error.add_note(f"member {number} of {len(members)}")
                raise error
        return members

    def _new_members(self, shares: Shares) -> list[Any]:
        """Members with seeds of their own; with `warm_start`, those that there are."""
        generator = check_random_state(self.random_state)
        seeds = shares.from_first(generator.randint(np.iinfo(np.int32).max, size=self.n_members))
        kept = getattr(self, "estimators_", []) if self.warm_start else []
        described = {name: getattr(self, name) for name in _defaults(self._member)}
        members = []
        for number, seed in enumerate(seeds):
            member = kept[number] if number < len(kept) else self._member()
            member.set_params(**described | {"random_state": int(seed)})
            member._bootstraps = self.bootstrap
            members.append(member)
        return members

    def _chunks(self, X: Any) -> Iterator[np.ndarray]:
        """The outputs of all members, chunk by chunk of the rows of X: shape (n_members, rows, n_outputs)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        networks = [member._network() for member in self.estimators_]
        n_bytes = networks[0].architecture.itemsize * max(X.shape[1], 1)
        rows = max(256, _CHUNK_BYTES // n_bytes)
        for start in range(0, X.shape[0], rows):
            part = X[start : start + rows]
            yield np.stack([outputs(network, part) for network in networks])

    def _mean(self, X: Any) -> np.ndarray:
        return np.concatenate([each.mean(axis=0) for each in self._chunks(X)])

    def predict_std(self, X: Any) -> np.ndarray:
        """The standard deviation among the members of what the ensemble averages, in the shape of that average."""
        return self._like_prediction(np.concatenate([each.std(axis=0) for each in self._chunks(X)]))

    @abstractmethod
    def _like_prediction(self, values: np.ndarray) -> np.ndarray:
        """Numbers of all outputs in the shape of a prediction, or of probabilities."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all members to one safetensors file, atomically.

        Raises
        ------
        ValueError
            A parameter is a function, which a file cannot hold, or `path` is a folder.
        OSError
            The system refuses.
        """
        check_is_fitted(self)
        parameters = {name: getattr(self, name) for name in self._get_param_names()}
        save_members(path, type(self).__name__, parameters, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Any:
        """The ensemble of a file that `save` wrote: it predicts as that one did.

        Raises
        ------
        ModelFileError
            The file is missing, damaged, or of another kind.
        """
        return load_members(path, cls, cls._member)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class MLPEnsembleClassifier(ClassifierMixin, BaseEnsemble):
    """Several `MLPClassifier`s with seeds of their own, whose probabilities are averaged.

    Parameters
    ----------
    n_members : int, default=8
    bootstrap : bool, default=False
        Train each member on as many samples as there are, drawn with replacement.
    **parameters
        Those of `MLPClassifier`. `random_state` seeds the members' seeds.

    Attributes
    ----------
    estimators_ : list of MLPClassifier
    classes_ : ndarray of shape (n_classes,)
    n_features_in_, n_iter_, n_layers_, n_outputs_ : int
        `n_iter_` is the largest of the members'.
    out_activation_ : {'logistic', 'softmax'}

    References
    ----------
    Lakshminarayanan, Pritzel and Blundell (2017), "Simple and scalable predictive uncertainty estimation using deep
    ensembles".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fusedmlp import MLPEnsembleClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> ensemble = MLPEnsembleClassifier(3, hidden_layer_sizes=(16,), solver="lbfgs", random_state=0).fit(X, y)
    >>> ensemble.predict_proba(X[:1]).shape
    (1, 3)
    """

    _member = MLPClassifier

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **validation: Any) -> Any:
        """As `MLPClassifier.fit`, for all members."""
        super().fit(X, y, sample_weight, **validation)
        self.classes_ = self.estimators_[0].classes_
        return self

    def _like_prediction(self, values: np.ndarray) -> np.ndarray:
        return np.hstack([values, values]) if self.n_outputs_ == 1 else values

    def predict_proba(self, X: Any) -> np.ndarray:
        """The mean of the members' probabilities, shape (n_samples, n_classes), in the order of `classes_`."""
        A = self._mean(X)
        return np.hstack([1 - A, A]) if self.n_outputs_ == 1 else A

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithm of `predict_proba`."""
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The classes with the largest mean probability: shape (n_samples,), or (n_samples, n_classes) of 0 and 1."""
        A = self._mean(X)
        decoded: np.ndarray = self.estimators_[0]._decode(A)
        return decoded

    def disagreement(self, X: Any) -> np.ndarray:
        """How much the members differ: the mean over them of KL(member's probabilities || ensemble's), in nats.

        Returns
        -------
        array of shape (n_samples,)
            0 where all say the same (Lakshminarayanan et al., 2017, section 3.5). With several labels, their sum.
        """
        parts = []
        for A in self._chunks(X):
            binary = self.out_activation_ == "logistic"
            p = np.stack([A, 1 - A], axis=-1) if binary else A
            mean = np.broadcast_to(p.mean(axis=0), p.shape)
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = np.where(p > 0, p * np.log(p / mean), 0)
            parts.append(np.maximum(terms.mean(axis=0).reshape(A.shape[1], -1).sum(axis=1), 0))
        return np.concatenate(parts)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPEnsembleRegressor(RegressorMixin, BaseEnsemble):
    """Several `MLPRegressor`s with seeds of their own, whose predictions are averaged.

    Parameters
    ----------
    n_members : int, default=8
    bootstrap : bool, default=False
        Train each member on as many samples as there are, drawn with replacement.
    **parameters
        Those of `MLPRegressor`. `random_state` seeds the members' seeds.

    Attributes
    ----------
    estimators_ : list of MLPRegressor
    n_features_in_, n_iter_, n_layers_, n_outputs_ : int
    out_activation_ : str

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from fusedmlp import MLPEnsembleRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> ensemble = MLPEnsembleRegressor(3, hidden_layer_sizes=(16,), solver="lbfgs", random_state=0).fit(X, y)
    >>> ensemble.predict_std(X[:2]).shape
    (2,)
    """

    _member = MLPRegressor

    def _like_prediction(self, values: np.ndarray) -> np.ndarray:
        return values.ravel() if values.shape[1] == 1 else values

    def predict(self, X: Any) -> np.ndarray:
        """The mean of the members' predictions: shape (n_samples,), or (n_samples, n_outputs) for several outputs."""
        return self._like_prediction(self._mean(X))
