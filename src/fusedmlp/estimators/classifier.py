"""MLPClassifier."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from fusedmlp.checkpoints import as_checkpoint
from fusedmlp.estimators.base import BaseMLP, held_out_of
from fusedmlp.estimators.callback_support import with_callbacks
from fusedmlp.estimators.constraints import CONSTRAINTS, STOCHASTIC
from fusedmlp.estimators.rows import dense_targets
from fusedmlp.model.names import ArrayInput

_LOSSES = {"softmax": "categorical_cross_entropy", "logistic": "binary_cross_entropy"}


def has_epochs(estimator: Any) -> bool:
    """Whether the solver works in epochs, so that there is a `partial_fit`."""
    if estimator.solver not in STOCHASTIC:
        raise AttributeError(
            f"partial_fit is only available for stochastic optimizers. {estimator.solver} is not stochastic."
        )
    return True


class MLPClassifier(ClassifierMixin, BaseMLP):
    """Multi-layer perceptron classifier with the interface and the numbers of scikit-learn's, on the fused engines.

    The parameters up to `max_fun` are scikit-learn's, with its defaults. The others are this package's own; with their
    defaults nothing differs from scikit-learn.

    Parameters
    ----------
    hidden_layer_sizes : int or array-like of int, default=(100,)
        Units of each hidden layer; () for logistic regression.
    activation : str, default='relu'
        Of the hidden layers: 'identity', 'logistic', 'tanh', 'relu', or 'leaky_relu', 'elu', 'selu', 'softplus',
        'gelu', 'silu', 'mish', 'softsign'.
    solver : {'lbfgs', 'sgd', 'adam'}, default='adam'
    alpha : float, default=0.0001
        L2: every batch adds ½·alpha·Σ‖W‖² / Σ wᵢ to its loss.
    batch_size : int or 'auto', default='auto'
        'auto' is min(200, samples).
    learning_rate : {'constant', 'invscaling', 'adaptive'}, default='constant'
        Schedule of the solver 'sgd'.
    learning_rate_init : float, default=0.001
    power_t : float, default=0.5
        Of 'invscaling'.
    max_iter : int, default=200
        The most epochs, or iterations of 'lbfgs'.
    shuffle : bool, default=True
    random_state : int, RandomState instance or None, default=None
    tol : float, default=1e-4
    verbose : bool, int or 'bar', default=False
        True prints a line an epoch; 'bar' shows a progress bar on standard error, where that is a terminal.
    warm_start : bool, default=False
    momentum : float in [0, 1], default=0.9
    nesterovs_momentum : bool, default=True
    early_stopping : bool, default=False
        Holds back `validation_fraction` of the samples, or uses `X_val` and `y_val` of `fit`; ends when their score has
        not improved by `tol` for `n_iter_no_change` epochs; puts the best weights back.
    validation_fraction : float in [0, 1), default=0.1
    beta_1, beta_2 : float in [0, 1), default=0.9 and 0.999
    epsilon : float, default=1e-8
    n_iter_no_change : int, default=10
    max_fun : int, default=15000
        The most evaluations of 'lbfgs'.
    class_weight : dict, 'balanced' or None, default=None
        Multiplies the sample weights, as in other estimators of scikit-learn.
    scoring : str, callable or None, default=None
        What validation samples are scored by: a scorer of scikit-learn, or 'loss'. None: accuracy.
    restore_best : bool, default=False
        Puts back the weights with the best validation score also where early stopping is off.
    schedule : str, callable or None, default=None
        A learning-rate schedule of `Network.fit`, for 'sgd' and 'adam', in place of `learning_rate`.
    clip_norm : float or None, default=None
        A batch's gradient with a larger norm is scaled down to it.
    weight_decay : float, default=0.0
        Decoupled weight decay (AdamW), with the solver 'adam'.
    dropout : float or sequence of float, default=0.0
        As in `Network.fit`.
    keep_optimizer : bool, default=False
        Whether `fit` with `warm_start` goes on with the optimizer's moments.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    loss_ : float
        Of the last epoch.
    best_loss_ : float or None
        The lowest of `loss_curve_`; None with early stopping.
    loss_curve_ : list of float
    validation_scores_ : list of float or None
    best_validation_score_ : float or None
    validation_loss_curve_ : list of float or None
        The loss of the validation samples after each epoch, without the L2 term.
    t_ : int
        Samples seen.
    coefs_ : list of ndarray of shape (n_in, n_out)
    intercepts_ : list of ndarray of shape (n_out,)
    n_features_in_, n_iter_, n_layers_, n_outputs_ : int
    feature_names_in_ : ndarray of str
        Where X has names of features.
    out_activation_ : {'logistic', 'softmax'}

    Notes
    -----
    The backend is the one that `use_backend` or the environment variable FUSEDMLP_BACKEND selects when `fit` is called.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fusedmlp import MLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> model = MLPClassifier(random_state=0, early_stopping=True).fit(X[:1500], y[:1500])
    >>> model.score(X[1500:], y[1500:]) > 0.85
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CONSTRAINTS,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int | str = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        class_weight: Any = None,
        scoring: Any = None,
        restore_best: bool = False,
        schedule: Any = None,
        clip_norm: float | None = None,
        weight_decay: float = 0.0,
        dropout: Any = 0.0,
        keep_optimizer: bool = False,
    ) -> None:
        self._set_parameters(locals())

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayInput,
        y: ArrayInput,
        sample_weight: ArrayInput | None = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        checkpoint: Any = None,
        checkpoint_every: Any = 1,
        comm: Any = None,
    ) -> MLPClassifier:
        """Train.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), or (n_samples, n_classes) of 0 and 1 for several labels
        sample_weight : array-like of shape (n_samples,), optional
        X_val, y_val : array-like, optional
            Samples to validate on after each epoch.
        sample_weight_val : array-like, optional
        checkpoint : path or Checkpoint, optional
            A file that the fit is written to from time to time, at its end, and at Ctrl-C or SIGTERM, which then end
            it. Where it exists, the fit goes on from it, with the bits of one that was not interrupted. With `comm`,
            the file is rank 0's.
        checkpoint_every : int, str or datetime.timedelta
            How often: epochs; "30s", "10min" or "2h"; or a time.
        comm : mpi4py.MPI.Intracomm, optional
            Its processes train this estimator together. All call `fit` with the same rows, and each takes a slice of
            them; `batch_size` is that of all of them. With the solvers "sgd" and "adam".

        Returns
        -------
        self
        """
        held_out = held_out_of(X_val, y_val, sample_weight_val)
        kept = None if checkpoint is None else as_checkpoint(checkpoint, checkpoint_every)
        return self._fit(X, y, sample_weight, incremental=False, held_out=held_out, checkpoint=kept, comm=comm)

    @available_if(has_epochs)
    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: ArrayInput, y: ArrayInput, sample_weight: ArrayInput | None = None, classes: ArrayLike | None = None
    ) -> MLPClassifier:
        """Train for one epoch, from the weights and the optimizer's state that there are.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array of shape (n_classes,), optional
            All classes of all calls; needed in the first one.

        Returns
        -------
        self
        """
        if _check_partial_fit_first_call(self, classes):
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y if type_of_target(y).startswith("multilabel") else classes)
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: ArrayInput) -> np.ndarray:
        """The classes of the rows of X: shape (n_samples,), or (n_samples, n_classes) of 0 and 1 for several labels."""
        return self._decode(self._outputs(X, "predict"))

    def _decode(self, A: np.ndarray) -> np.ndarray:
        """The classes of outputs."""
        decoded: np.ndarray
        if self.out_activation_ == "softmax":
            return self.classes_.take(A.argmax(axis=1))
        if self.n_outputs_ == 1 and len(self.classes_) == 2:
            decoded = self.classes_[(A.ravel() > 0.5).view(np.int8)]
            return decoded
        decoded = self._label_binarizer.inverse_transform(A.ravel() if self.n_outputs_ == 1 else A)
        return decoded

    def predict_proba(self, X: ArrayInput) -> np.ndarray:
        """Probabilities, shape (n_samples, n_classes), in the order of `classes_`."""
        A = self._outputs(X, "predict_proba")
        return np.hstack([1 - A, A]) if self.n_outputs_ == 1 else A

    def predict_log_proba(self, X: ArrayInput) -> np.ndarray:
        """The logarithm of `predict_proba`."""
        probabilities = self.predict_proba(X)
        return np.log(probabilities, out=probabilities)

    # What the base class asks for ------------------------------------------------------------------------------------

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = self._checked(X, y, reset)
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._check_classes(y)
        return X, dense_targets(self._label_binarizer.transform(y)).astype(bool)

    def _check_classes(self, y: Any) -> None:
        classes = unique_labels(y)
        if self.warm_start:
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {classes}"
                )
        elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _encode(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        X, y = self._checked(X, y, reset=False)
        unknown = np.setdiff1d(unique_labels(y), self.classes_)
        if len(unknown):
            raise ValueError(f"y_val: expected classes of y, {self.classes_}; got {unknown}")
        return X, dense_targets(self._label_binarizer.transform(y)).astype(bool)

    def _output_activation(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _core_loss(self) -> str:
        return _LOSSES[self.out_activation_]

    def _stratifies(self) -> bool:
        return self.n_outputs_ == 1

    def _score_of(self, A: np.ndarray, Y: np.ndarray, sample_weight: np.ndarray | None) -> float:
        if self.out_activation_ == "softmax":
            right = A.argmax(axis=1) == Y.argmax(axis=1)
        else:
            right = ((A > 0.5) == Y).all(axis=1)
        return float(np.average(right, weights=sample_weight))

    def _labels_of(self, Y: np.ndarray) -> np.ndarray:
        return self._label_binarizer.inverse_transform(Y.astype(np.int64))

    def _weigh(self, y: Any, Y: np.ndarray, sample_weight: Any, incremental: bool) -> Any:
        if self.class_weight is None:
            return sample_weight
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight: 'balanced' is not for partial_fit, which sees a part of the samples; pass a dict"
            )
        of_classes = compute_sample_weight(self.class_weight, dense_targets(y))
        return of_classes if sample_weight is None else of_classes * sample_weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
