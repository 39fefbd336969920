"""BaseMLP: what the classifier and the regressor have in common."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from itertools import chain, pairwise
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fusedmlp.backends.selection import get_backend
from fusedmlp.checkpoints import Checkpoint
from fusedmlp.engines.samples import is_ready
from fusedmlp.estimators.activity import recorded
from fusedmlp.estimators.callback_support import Callbacks, CallbackSupportMixin
from fusedmlp.estimators.checkpointing import FitCheckpoints
from fusedmlp.estimators.constraints import CONSTRAINTS, STOCHASTIC, hidden_layers
from fusedmlp.estimators.conversion import adopt, from_sklearn, to_sklearn
from fusedmlp.estimators.lbfgs import Objective, fit_lbfgs
from fusedmlp.estimators.linking import ACTIVATIONS, Link, link, network_from, packed
from fusedmlp.estimators.rows import Rows, as_rows, outputs, outputs_if_finite
from fusedmlp.estimators.solver_steps import SolverSteps
from fusedmlp.estimators.stochastic import NOT_FINITE, StochasticFit
from fusedmlp.estimators.stretches import Alone, Pace, Stretches, has_listeners
from fusedmlp.estimators.validation import ValidationSet, split
from fusedmlp.estimators.versions import check_version
from fusedmlp.model.parameters import Gradients
from fusedmlp.network import Network

check_version()

HeldOut = tuple[Any, Any, Any]
"""X, y and sample weights of a validation set of the user's own."""


class BaseMLP(CallbackSupportMixin, BaseEstimator, ABC):
    """A multi-layer perceptron with scikit-learn's interface.

    A subclass says what its targets are: how `y` becomes the network's Y, and what a prediction is.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS
    _doc_link_module = "fusedmlp"
    _doc_link_template = "https://fusedmlp.readthedocs.io/en/latest/scikit-learn.html#{estimator_name}"

    _bootstraps = False
    coefs_: list[Any]
    intercepts_: list[Any]
    loss_curve_: list[float]
    validation_loss_curve_: list[float] | None
    validation_scores_: list[float] | None
    best_validation_score_: float | None
    best_loss_: float | None

    def _set_parameters(self, given: dict[str, Any]) -> None:
        """Keep the constructor's arguments, unchanged and unchecked, as scikit-learn wants it."""
        for name in self._get_param_names():
            setattr(self, name, given[name])

    @classmethod
    @functools.cache  # a search asks for them thousands of times, and `inspect` takes a quarter of a millisecond
    def _get_param_names(cls) -> list[str]:
        return list(super()._get_param_names())

    def _doc_link_url_param_generator(self) -> dict[str, str]:
        return {"estimator_name": type(self).__name__.lower()}

    # What a subclass says ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        """X and y checked as scikit-learn does; y as Y, shape (m, n_outputs)."""

    @abstractmethod
    def _encode(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """X and y of a validation set, checked, with the classes that are known."""

    @abstractmethod
    def _output_activation(self) -> str:
        """The name of the output activation, as scikit-learn has it."""

    @abstractmethod
    def _core_loss(self) -> str:
        """The loss, as the core names it."""

    @abstractmethod
    def _score_of(self, A: np.ndarray, Y: np.ndarray, sample_weight: np.ndarray | None) -> float:
        """Accuracy or R² of the outputs A."""

    @abstractmethod
    def _labels_of(self, Y: np.ndarray) -> np.ndarray:
        """Y as the user gave it."""

    def _loss_factor(self) -> float:
        """What the core's loss is multiplied by in `loss_`."""
        return 1.0

    def _stratifies(self) -> bool:
        """Whether a validation split keeps the shares of the classes."""
        return False

    def _weigh(self, y: Any, Y: np.ndarray, sample_weight: Any, incremental: bool) -> Any:
        """Sample weights with those of the classes."""
        return sample_weight

    # Training --------------------------------------------------------------------------------------------------------

    def _fit(
        self,
        X: Any,
        y: Any,
        weight: Any,
        incremental: bool,
        held_out: HeldOut | None = None,
        checkpoint: Checkpoint | None = None,
        comm: Any = None,
    ) -> Any:
        if comm is None:
            closely = incremental or self.solver == "lbfgs" or checkpoint is not None or has_listeners(self)
            pace = Alone(None if closely else get_backend().crowd())
            pace.run(self._training(X, y, weight, incremental, held_out, pace, checkpoint))
        else:
            from fusedmlp.estimators.together import Together

            together, pace = Together(comm), Alone(None)
            given = X, y, weight, incremental, held_out, pace, checkpoint, together
            together.fit(self, (X, y, weight), checkpoint, lambda: pace.run(self._training(*given)))
        return self

    def _fit_in_stretches(
        self,
        X: Any,
        y: Any,
        pace: Pace,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Stretches:
        """``fit``, for `Alone` or for a crowd: what it has computed."""
        self._validate_params()
        return self._training(X, y, sample_weight, False, held_out_of(X_val, y_val, sample_weight_val), pace)

    def _training(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        incremental: bool,
        held_out: HeldOut | None,
        pace: Pace,
        checkpoint: Checkpoint | None = None,
        together: Any = None,
    ) -> Stretches:
        """A fit: all of it but the epochs, which it asks for."""
        with recorded(self, "partial_fit" if incremental else "fit") as record:
            sizes = hidden_layers(self.hidden_layer_sizes)
            self._check_extras(incremental, held_out)
            first_pass = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
            raw_y = y
            X, Y = self._validate_input(X, y, incremental, reset=first_pass)
            if sample_weight is not None:
                sample_weight = _check_sample_weight(sample_weight, X)
            sample_weight = self._weigh(raw_y, Y, sample_weight, incremental)
            self.n_outputs_ = Y.shape[1]
            self._random_state = check_random_state(self.random_state)
            if together is not None:
                self._random_state = together.random_state(self._random_state)
            if first_pass:
                dtype = "float64" if self.solver == "lbfgs" else X.dtype.name
                self._initialize([X.shape[1], *sizes, self.n_outputs_], dtype)
            elif self.solver == "lbfgs":  # which works in float64, as scikit-learn's
                self.coefs_ = [np.asarray(W, np.float64) for W in self.coefs_]
                self.intercepts_ = [np.asarray(b, np.float64) for b in self.intercepts_]
            if self.early_stopping and incremental:
                raise ValueError("partial_fit does not support early_stopping=True")
            network = self._network(get_backend())
            record.ran_on(network, X)
            if self.solver == "sgd" and self.momentum == 1:
                record.say("momentum=1 has no compiled step: each batch is a call, and its step runs in Python")
            epochs = 0 if self.solver == "lbfgs" else 1 if incremental else self.max_iter
            callbacks = Callbacks(self, epochs, X, raw_y, {"sample_weight": sample_weight})
            try:
                given: tuple[Any, ...] = (incremental, held_out, callbacks, pace, checkpoint, together)
                yield from self._run_solver(network, X, Y, sample_weight, *given)
            finally:
                self._show(link(network))
            callbacks.fit_ends()
            if not network.backend.all_finite(network.parameters.flat):
                raise ValueError(NOT_FINITE)

    def _run_solver(
        self,
        network: Network,
        X: Any,
        Y: np.ndarray,
        sample_weight: np.ndarray | None,
        incremental: bool,
        held_out: HeldOut | None,
        callbacks: Callbacks,
        pace: Pace,
        checkpoint: Checkpoint | None,
        together: Any,
    ) -> Stretches:
        if self.solver == "lbfgs":
            if checkpoint is not None:
                raise ValueError("checkpoint: expected a solver that works in epochs, 'sgd' or 'adam'; got 'lbfgs'")
            fit_lbfgs(self, network, as_rows(X, Y, sample_weight, network).prepared(network))
            return
        rows_of = as_rows if together is None else together.rows
        validation: ValidationSet | None
        if self.early_stopping and held_out is None:
            train, held_back = split(self, Y)
            weight = None if sample_weight is None else sample_weight[held_back]
            validation = ValidationSet(X[held_back], Y[held_back], weight, network, self.scoring)
            rows: Rows = rows_of(X, Y, sample_weight, network).take(self._drawn(train))
        else:
            rows = rows_of(X, Y, sample_weight, network)
            if self._bootstraps:
                rows = rows.take(self._drawn(np.arange(rows.m)))
            validation = None if held_out is None else self._held_out(held_out, network)
        if validation is not None and not self.early_stopping and self.validation_scores_ is None:
            self.validation_scores_, self.best_validation_score_ = [], -np.inf
        if validation is not None and self.validation_loss_curve_ is None:
            self.validation_loss_curve_ = []
        kept = None if checkpoint is None else FitCheckpoints(checkpoint, self, network, rows, validation, together)
        fit = StochasticFit(self, network, rows, validation, incremental, pace, kept, together)
        yield from fit.stretches(callbacks)

    def _drawn(self, rows: np.ndarray) -> np.ndarray:
        """The rows to train on: all, or as many drawn with replacement, for a member of an ensemble."""
        return rows[self._random_state.randint(len(rows), size=len(rows))] if self._bootstraps else rows

    def _held_out(self, held_out: HeldOut, network: Network) -> ValidationSet:
        X, y, sample_weight = held_out
        X, Y = self._encode(X, y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        return ValidationSet(X, Y, sample_weight, network, self.scoring)

    def _check_extras(self, incremental: bool, held_out: HeldOut | None) -> None:
        """Refuse what the parameters of this package cannot do together."""
        if held_out is not None and (held_out[0] is None) != (held_out[1] is None):
            raise ValueError("X_val and y_val: expected both or neither; got one of them")
        extras = ("schedule", "clip_norm", "weight_decay", "restore_best", "scoring", "keep_optimizer")
        used = [name for name in extras if getattr(self, name)] + ["dropout"] * bool(np.any(self.dropout))
        if self.solver == "lbfgs" and (used or held_out is not None):
            names = ", ".join(used or ["X_val"])
            raise ValueError(f"{names}: expected a solver that works in epochs, 'sgd' or 'adam'; got solver='lbfgs'")
        if self.weight_decay and self.solver != "adam":
            raise ValueError(f"weight_decay: expected solver='adam'; got solver={self.solver!r}")
        if self.restore_best and not self.early_stopping and held_out is None and not incremental:
            raise ValueError("restore_best: needs samples to validate on: X_val and y_val, or early_stopping=True")

    def _initialize(self, layer_units: list[int], dtype: str) -> None:
        """Draw weights and biases, in scikit-learn's order, and reset what earlier fits left."""
        self.n_iter_, self.t_ = 0, 0
        self.n_layers_ = len(layer_units)
        self.out_activation_ = self._output_activation()
        self.coefs_, self.intercepts_ = [], []
        factor = 2.0 if self.activation == "logistic" else 6.0
        for n_in, n_out in pairwise(layer_units):
            bound = np.sqrt(factor / (n_in + n_out))  # Glorot and Bengio (2010)
            self.coefs_.append(self._random_state.uniform(-bound, bound, (n_in, n_out)).astype(dtype, copy=False))
            self.intercepts_.append(self._random_state.uniform(-bound, bound, n_out).astype(dtype, copy=False))
        self.__dict__.pop("_linked", None)
        if self.solver in STOCHASTIC:
            self.loss_curve_ = []
            self.validation_loss_curve_ = None
            self._no_improvement_count = 0
            scores = self.early_stopping
            self.validation_scores_ = [] if scores else None
            self.best_validation_score_ = -np.inf if scores else None
            self.best_loss_ = None if scores else np.inf
        self._best_parameters = packed(self.coefs_, self.intercepts_)

    # The network behind the attributes --------------------------------------------------------------------------------

    def _network(self, backend: Any = None) -> Network:
        """The network with the weights that `coefs_` and `intercepts_` have now; on a backend, if one is given."""
        activation, loss = ACTIVATIONS[self.activation], self._core_loss()
        linked: Link | None = self.__dict__.get("_linked")
        serves = linked is not None and linked.serves([*self.coefs_, *self.intercepts_], activation, loss)
        if linked is None or not serves or (backend is not None and backend.name != linked.network.backend.name):
            dtype = "float32" if np.asarray(self.coefs_[0]).dtype == np.float32 else "float64"
            linked = link(network_from(self.coefs_, self.intercepts_, activation, loss, dtype, backend))
            self._show(linked)
        elif not linked.shared:  # the arrays may have been written to
            flat = linked.network.parameters.flat
            flat[...] = linked.network.backend.asarray(packed(self.coefs_, self.intercepts_), flat.dtype)
        return linked.network

    def _show(self, linked: Link) -> None:
        layers = len(linked.network.weights)
        self.coefs_, self.intercepts_ = list(linked.arrays[:layers]), list(linked.arrays[layers:])
        self._linked = linked

    def _fitted_now(self) -> dict[str, Any]:
        """The attributes with which a copy of this estimator predicts as this one would now."""
        arrays = link(self._linked.network).arrays
        layers = len(self.coefs_)
        copies = [np.array(x) for x in arrays]
        return {"coefs_": copies[:layers], "intercepts_": copies[layers:]}

    def _outputs(self, X: Any, method: str) -> np.ndarray:
        """A_{L-1} of the rows of X, shape (m, n_outputs), once X is checked."""
        if not hasattr(self, "coefs_"):
            check_is_fitted(self)
        with recorded(self, method) as record:
            network = self._network()
            # scikit-learn's checks take longer than the prediction of a row.
            A = outputs_if_finite(network, X) if self._is_ready(X, network) else None
            if A is None:
                X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
                A = outputs(network, X)
            record.ran_on(network, X)
            return A

    def _is_ready(self, X: Any, network: Network) -> bool:
        """Whether the network takes X as it is, and scikit-learn has nothing to say about it if it is finite."""
        return (
            type(X) is np.ndarray
            and is_ready(X.T, self.n_features_in_, network.architecture, network.backend)
            and len(X) > 0
            and not hasattr(self, "feature_names_in_")
        )

    def __getstate__(self) -> dict[str, Any]:
        """Numpy arrays alone: a pickle loads on a machine without a GPU."""
        state = super().__getstate__()
        state = {name: value for name, value in state.items() if name != "_linked"}
        if "coefs_" in state:
            state["coefs_"] = [np.array(W) for W in self.coefs_]
            state["intercepts_"] = [np.array(b) for b in self.intercepts_]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also the state of scikit-learn's class, as a pickle has it that is loaded while scikit-learn is patched."""
        super().__setstate__(state)
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if name != "self" and not hasattr(self, name):
                setattr(self, name, parameter.default)
        if not isinstance(state.get("_optimizer"), SolverSteps | None) or "_best_coefs" in state:
            adopt(self, state)

    def to_sklearn(self) -> Any:
        """An estimator of scikit-learn's own class that predicts, and goes on training, as this one.

        Raises
        ------
        ValueError
            scikit-learn has not got the activation or the loss.
        """
        return to_sklearn(self, type(self).__name__)

    @classmethod
    def from_sklearn(cls, model: Any) -> Any:
        """An estimator of this class that predicts, and goes on training, as scikit-learn's `model`.

        Raises
        ------
        ValueError
            `model` is of another class.
        """
        return from_sklearn(cls, model)

    def _loss_grad_lbfgs(
        self, packed: np.ndarray, X: Any, y: Any, sample_weight: Any, *unused: Any
    ) -> tuple[float, np.ndarray]:
        """Loss and gradient at packed weights and biases: a private name of scikit-learn's, for code that calls it."""
        sizes = [np.size(x) for x in chain(self.coefs_, self.intercepts_)]
        parts = np.split(packed, np.cumsum(sizes)[:-1])
        layers = len(self.coefs_)
        weights = [part.reshape(W.shape) for part, W in zip(parts[:layers], self.coefs_, strict=True)]
        network = network_from(
            weights, parts[layers:], ACTIVATIONS[self.activation], self._core_loss(), "float64", get_backend()
        )
        Y = np.asarray(y).reshape(X.shape[0], -1)
        objective = Objective(network, as_rows(X, Y, sample_weight, network), float(self.alpha), self._loss_factor())
        J, gradient = objective(network.backend.to_numpy(network.parameters.flat).copy())
        gradients = Gradients(network.architecture, gradient)
        return J, np.concatenate([np.ravel(x) for x in chain(gradients.weights, gradients.biases)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def held_out_of(X_val: Any, y_val: Any, sample_weight_val: Any) -> HeldOut | None:
    """The validation set that ``fit`` was given; None where it was given none."""
    return None if X_val is None and y_val is None else (X_val, y_val, sample_weight_val)
