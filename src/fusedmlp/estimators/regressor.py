"""MLPRegressor."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin, _fit_context
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from fusedmlp.checkpoints import as_checkpoint
from fusedmlp.estimators.base import BaseMLP, held_out_of
from fusedmlp.estimators.callback_support import with_callbacks
from fusedmlp.estimators.classifier import has_epochs
from fusedmlp.estimators.constraints import CONSTRAINTS
from fusedmlp.model.names import ArrayInput

_OUTPUTS = {
    "squared_error": "identity",
    "poisson": "exp",
    "absolute_error": "identity",
    "huber": "identity",
    "quantile": "identity",
}
"""Loss -> the output activation, as scikit-learn names it."""


class MLPRegressor(RegressorMixin, BaseMLP):
    """Multi-layer perceptron regressor with the interface and the numbers of scikit-learn's, on the fused engines.

    The parameters up to `max_fun` are scikit-learn's, with its defaults. The others are this package's own; with their
    defaults nothing differs from scikit-learn.

    Parameters
    ----------
    loss : str, default='squared_error'
        'squared_error': half of it, averaged over the outputs. 'poisson': half the Poisson deviance, with an
        exponential output. This package's own, averaged over the outputs: 'absolute_error'; 'huber', half the squared
        error up to `delta` and linear from there; 'quantile', whose minimum is the quantile `quantile` of y given X.
    hidden_layer_sizes : int or array-like of int, default=(100,)
        Units of each hidden layer; () for a linear model.
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
    scoring : str, callable or None, default=None
        What validation samples are scored by: a scorer of scikit-learn, or 'loss'. None: R².
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

    delta : float, default=1.0
        Of loss='huber', in units of y.
    quantile : float in (0, 1), default=0.5
        Of loss='quantile'.

    Attributes
    ----------
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
    out_activation_ : {'identity', 'exp'}

    Notes
    -----
    The backend is the one that `use_backend` or the environment variable FUSEDMLP_BACKEND selects when `fit` is called.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.preprocessing import scale
    >>> from fusedmlp import MLPRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MLPRegressor(random_state=0, solver="lbfgs", alpha=10, max_iter=50, tol=1e-2).fit(scale(X), scale(y))
    >>> model.score(scale(X), scale(y)) > 0.5
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CONSTRAINTS,
        "loss": [StrOptions(set(_OUTPUTS))],
        "delta": [Interval(Real, 0, None, closed="neither")],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(
        self,
        loss: str = "squared_error",
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
        scoring: Any = None,
        restore_best: bool = False,
        schedule: Any = None,
        clip_norm: float | None = None,
        weight_decay: float = 0.0,
        dropout: Any = 0.0,
        keep_optimizer: bool = False,
        delta: float = 1.0,
        quantile: float = 0.5,
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
    ) -> MLPRegressor:
        """Train.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
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
    def partial_fit(self, X: ArrayInput, y: ArrayInput, sample_weight: ArrayInput | None = None) -> MLPRegressor:
        """Train for one epoch, from the weights and the optimizer's state that there are.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: ArrayInput) -> np.ndarray:
        """The predictions for the rows of X: shape (n_samples,), or (n_samples, n_outputs) for several outputs."""
        A = self._outputs(X, "predict")
        return A.ravel() if A.shape[1] == 1 else A

    # What the base class asks for ------------------------------------------------------------------------------------

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if self.loss == "poisson" and y.size and y.min() < 0:
            raise ValueError(f"y: loss='poisson' expects numbers >= 0; the smallest is {y.min()}")
        dtype = "float64" if self.solver == "lbfgs" else X.dtype
        largest = float(np.abs(y).max())
        if largest > float(np.finfo(dtype).max):
            raise ValueError(f"y: expected numbers that {dtype}, the type of X, can hold; got {largest:g}")
        return X, y.reshape(-1, 1) if y.ndim == 1 else y

    def _encode(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        return self._validate_input(X, y, incremental=False, reset=False)

    def _output_activation(self) -> str:
        return _OUTPUTS[self.loss]

    def _core_loss(self) -> str:
        number = {"huber": self.delta, "quantile": self.quantile}.get(self.loss)
        return self.loss if number is None else f"{self.loss}:{float(number)!r}"

    def _loss_factor(self) -> float:
        return 1.0 if self.loss == "poisson" else 1.0 / self.n_outputs_

    def _score_of(self, A: np.ndarray, Y: np.ndarray, sample_weight: np.ndarray | None) -> float:
        return float(r2_score(Y, A, sample_weight=sample_weight))

    def _labels_of(self, Y: np.ndarray) -> np.ndarray:
        return Y.ravel() if Y.shape[1] == 1 else Y
