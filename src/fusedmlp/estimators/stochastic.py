"""The loop of scikit-learn's stochastic solvers: its shuffles, its patience, its early stopping, over `Rows`.

The rules are those of scikit-learn 1.9: the order of random numbers, the comparisons of losses and scores, and the
texts of warnings. What is computed comes out as a `Stretch` of epochs, which `Alone` does, or a crowd beside others.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from fusedmlp.engines import crowd
from fusedmlp.engines.crowd import Stretch
from fusedmlp.engines.options import EpochOptions, EpochPosition
from fusedmlp.errors import TerminatedError
from fusedmlp.estimators.checkpointing import FitCheckpoints
from fusedmlp.estimators.drawing import Drawing
from fusedmlp.estimators.progress import Progress
from fusedmlp.estimators.rows import Rows
from fusedmlp.estimators.solver_steps import SolverSteps
from fusedmlp.estimators.stretches import Pace, Stretches
from fusedmlp.estimators.validation import ValidationSet
from fusedmlp.model.dropout import Dropout, as_rates
from fusedmlp.network import Network

if TYPE_CHECKING:
    from fusedmlp.estimators.together import Together

NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be preprocessed."
)
"""The beginning of the message is scikit-learn's, word for word."""


class Best(NamedTuple):
    """Parameters worth putting back, and what they reached."""

    value: float
    flat: np.ndarray


def epoch_options(estimator: Any, network: Network) -> EpochOptions:
    """The options of an estimator's epochs: L2 and losses as scikit-learn has them."""
    layers = len(network.weights)
    dropout = None
    if np.any(estimator.dropout):
        seed = int.from_bytes(estimator._random_state.bytes(8), "little")
        rates = as_rates(estimator.dropout, layers)
        dropout = None if rates is None else Dropout(rates, seed)
    return EpochOptions(
        alpha=float(estimator.alpha),
        dropout=dropout,
        clip_norm=None if estimator.clip_norm is None else float(estimator.clip_norm),
        penalty_by_weight=True,
        loss_factor=estimator._loss_factor(),
    )


class StochasticFit:
    """One call of ``fit`` or ``partial_fit`` with the solver "sgd" or "adam".

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Its fitted attributes are written epoch by epoch.
    network : Network
    rows : Rows
        The training samples.
    validation : ValidationSet, optional
    incremental : bool
        Whether it is a ``partial_fit``: one epoch, with the optimizer of the last call.
    pace : Pace
    checkpoints : FitCheckpoints, optional
    together : Together, optional
        The processes that train together.
    """

    def __init__(
        self,
        estimator: Any,
        network: Network,
        rows: Rows,
        validation: ValidationSet | None,
        incremental: bool,
        pace: Pace,
        checkpoints: FitCheckpoints | None = None,
        together: Together | None = None,
    ) -> None:
        self._estimator, self._network, self._rows, self._pace = estimator, network, rows.prepared(network), pace
        self._validation, self._incremental = validation, incremental
        self._together_with = together
        self._verbose = estimator.verbose if together is None or together.first else False
        self._prints = bool(self._verbose) and self._verbose != "bar"
        self._order = np.arange(rows.m)
        self._batch_size = self._size_of_batches()
        self._options = epoch_options(estimator, network)
        self._checkpoints = checkpoints
        self._position: EpochPosition | None = None
        if checkpoints is not None:
            self._options = replace(self._options, poll=checkpoints.poll)
        if together is not None:
            self._options = together.options(self._options, network)
        kept = getattr(estimator, "_optimizer", None)
        keeps = incremental or (estimator.warm_start and estimator.keep_optimizer)
        if not keeps or kept is None:
            estimator._optimizer = SolverSteps(estimator)
        self._steps: SolverSteps = estimator._optimizer
        self._start = Best(math.inf, self._flat())
        self._lowest = Best(math.inf, self._start.flat.copy())

    def stretches(self, callbacks: Any) -> Stretches:
        """Train.

        Parameters
        ----------
        callbacks : Callbacks
            Called around each epoch.

        Raises
        ------
        ValueError
            A parameter became NaN or infinite, and early stopping has no better weights to put back.
        """
        self._estimator.n_iter_ = 0
        if self._checkpoints is None:
            yield from self._until_it_ends(callbacks)
            return
        self._position, over = self._checkpoints.restore(self)
        if not over:
            with self._checkpoints.caught():
                yield from self._until_it_ends(callbacks)

    def _until_it_ends(self, callbacks: Any) -> Stretches:
        """The epochs that are left, and the weights to keep."""
        e, checkpoints, converged = self._estimator, self._checkpoints, True
        epochs = 1 if self._incremental else e.max_iter
        try:
            with Progress(self._verbose, type(e).__name__, epochs) as progress:
                while e.n_iter_ < epochs:
                    callbacks.epoch_begins()
                    diverged = yield from self._some_epochs(epochs - e.n_iter_)
                    progress.advance(e)
                    stop = callbacks.epoch_ends()
                    if self._together_with is not None:
                        stop = self._together_with.any(stop)
                    if diverged:
                        self._put_back_after_divergence()
                        break
                    if self._ends() or stop:
                        break
                    converged = e.n_iter_ < epochs
                    if checkpoints is not None:
                        checkpoints.write_if_due(self)
                    if not self._incremental and e.n_iter_ == e.max_iter:
                        warnings.warn(
                            f"Stochastic Optimizer: Maximum iterations ({e.max_iter}) "
                            "reached and the optimization hasn't converged yet.",
                            ConvergenceWarning,
                            stacklevel=2,
                        )
        except (KeyboardInterrupt, TerminatedError) as error:
            if checkpoints is not None:
                checkpoints.interrupted(self, self._position, error)
            if checkpoints is not None or self._together_with is not None:  # others may be in the middle of an epoch
                raise
            warnings.warn("Training interrupted by user.", stacklevel=2)
        current = self.current() if checkpoints is not None else None
        if self._restores():
            self._network.parameters.flat[...] = self._network.backend.asarray(e._best_parameters)

        if checkpoints is not None:
            checkpoints.finish(self, current, converged)

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def current(self) -> np.ndarray:
        """The weights of now, in host memory."""
        return self._flat()

    def memory(self) -> dict[str, Any]:
        """What the loop remembers from epoch to epoch, as plain data and arrays."""
        t, rate, moments = self._steps.saved()
        dropout = self._options.dropout
        return {
            "order": self._order,
            "steps": {"t": t, "learning_rate": rate, "moments": moments},
            "start": self._start.flat,
            "lowest": {"value": self._lowest.value, "flat": self._lowest.flat},
            "dropout_seed": None if dropout is None else dropout.seed,
        }

    def restore(self, memory: dict[str, Any]) -> None:
        """Go on from what `memory` returned."""
        self._order = memory["order"]
        self._steps.restore(**memory["steps"])
        self._start, self._lowest = Best(math.inf, memory["start"]), Best(**memory["lowest"])
        dropout = self._options.dropout
        if dropout is not None:
            self._options = replace(self._options, dropout=replace(dropout, seed=memory["dropout_seed"]))

    # Epochs ----------------------------------------------------------------------------------------------------------

    def _some_epochs(self, left: int) -> Generator[Stretch, None, bool]:
        """Train for some epochs, and write the attributes that follow; whether the training has diverged."""
        rates = self._steps.rates(self._estimator, self._together(left), self._rows.m)
        drawn, backend = self._position is not None, self._network.backend
        drawing = Drawing(self._estimator, backend, self._order, len(rates), drawn)
        stretch = self._stretch(rates, drawing)
        try:
            yield stretch
        except (KeyboardInterrupt, TerminatedError):
            self._position = stretch.position
            self._absorb(stretch, drawing)
            raise
        self._position = None
        return self._absorb(stretch, drawing)

    def _absorb(self, stretch: Stretch, drawing: Drawing) -> bool:
        """Take over what came of a stretch; whether the training has diverged."""
        self._order = drawing.keep(stretch.begun)
        if stretch.best.epoch >= 0:
            self._lowest = Best(stretch.best.loss, stretch.best.weights)
        diverged = False
        for epoch, loss in enumerate(stretch.losses):
            self._steps.epoch_ran_at(stretch.rates[epoch])
            diverged = self._write_down(loss, last=epoch == len(stretch.losses) - 1)
        return diverged

    def _together(self, left: int) -> int:
        """How many epochs are trained before something has to be decided between two of them."""
        e = self._estimator
        if self._validation is not None or callable(e.schedule):
            return 1
        samples, optimizer, drops = self._rows.samples, self._steps.optimizer, self._options.dropout is not None
        pace = self._pace.epochs(self._network, samples, optimizer, self._batch_size, drops)
        most = min(left, pace)
        return int(max(1, min(most, e.n_iter_no_change - e._no_improvement_count + 1)))

    def _stretch(self, rates: list[float], drawing: Drawing) -> Stretch:
        network, samples, options = self._network, self._rows.samples, self._options
        orders = drawing.orders(samples)
        if self._together_with is not None:  # a stretch of one epoch
            columns, parts = samples.batches(drawing.last(), self._batch_size)
            orders, options = None if columns is None else columns[None], replace(options, parts=parts)
        return Stretch(
            network.engine,
            network.parameters,
            self._steps.state_for(network),
            samples,
            None,
            self._batch_size,
            rates,
            orders,
            options,
            crowd.Best(self._lowest.flat, self._lowest.value),
            None if self._checkpoints is None else self._position or EpochPosition(),
        )

    def _write_down(self, loss: float, last: bool) -> bool:
        """The attributes that follow from an epoch; whether the training has diverged, as far as is known by then."""
        e, network = self._estimator, self._network
        e.loss_ = loss
        e.n_iter_ += 1
        e.t_ += self._rows.m
        e.loss_curve_.append(loss)
        if self._prints:
            print(f"Iteration {e.n_iter_}, loss = {e.loss_:.8f}")
        diverged = math.isnan(loss) or (last and not network.backend.all_finite(network.parameters.flat))
        if last and not diverged and loss < self._lowest.value:
            self._lowest = Best(loss, self._flat())
        if self._validation is not None:
            self._validate(self._validation, diverged)
        if not e.early_stopping:
            self._count_by_loss()
        self._steps.epoch_ends(e.t_)
        return diverged

    def _validate(self, validation: ValidationSet, diverged: bool) -> None:
        """Score the validation samples, and keep the best weights."""
        e = self._estimator
        score = math.nan if diverged else validation.score(e, self._network)
        if self._together_with is not None:
            score = self._together_with.from_first(score)
        e.validation_scores_.append(score)
        e.validation_loss_curve_.append(math.nan if diverged else validation.loss(e, self._network))
        if self._prints:
            print(f"Validation score: {score:f}")
        if e.early_stopping:
            worse = score < e.best_validation_score_ + e.tol
            e._no_improvement_count = e._no_improvement_count + 1 if worse else 0
        if score > e.best_validation_score_:
            e.best_validation_score_ = score
            e._best_parameters = self._flat()

    def _count_by_loss(self) -> None:
        e = self._estimator
        worse = e.loss_curve_[-1] > e.best_loss_ - e.tol
        e._no_improvement_count = e._no_improvement_count + 1 if worse else 0
        e.best_loss_ = min(e.best_loss_, e.loss_curve_[-1])

    def _ends(self) -> bool:
        """Whether the patience is at its end and the solver does not go on at a smaller rate."""
        e = self._estimator
        if e._no_improvement_count <= e.n_iter_no_change:
            return False
        what = "Validation score" if e.early_stopping else "Training loss"
        message = f"{what} did not improve more than tol={e.tol:f} for {e.n_iter_no_change} consecutive epochs."
        if self._steps.stops(message, self._prints):
            return True
        e._no_improvement_count = 0
        return False

    # Weights that are put back ---------------------------------------------------------------------------------------

    def _flat(self) -> np.ndarray:
        return np.array(self._network.backend.to_numpy(self._network.parameters.flat))

    def _restores(self) -> bool:
        e = self._estimator
        return e.early_stopping or (e.restore_best and self._validation is not None)

    def _put_back_after_divergence(self) -> None:
        e = self._estimator
        where = f"The loss is {e.loss_} in epoch {e.n_iter_}; {self._first_not_finite()}."
        if self._restores():
            warnings.warn(
                f"Training stopped because it diverged. {where} The weights with the best validation score "
                f"({e.best_validation_score_:g}) were put back.",
                ConvergenceWarning,
                stacklevel=2,
            )
            return
        self._network.parameters.flat[...] = self._network.backend.asarray(self._better_of_start_and_lowest())
        raise ValueError(f"{NOT_FINITE} {where} The best weights so far were put back.")

    def _better_of_start_and_lowest(self) -> np.ndarray:
        """The weights with the lower loss on all samples; the loss of an epoch is not that of the weights after it."""
        losses = []
        for best in (self._start, self._lowest):
            self._network.parameters.flat[...] = self._network.backend.asarray(best.flat)
            losses.append(self._rows.loss(self._network))
        return self._lowest.flat if losses[1] <= losses[0] else self._start.flat

    def _first_not_finite(self) -> str:
        for layer, W in enumerate(self._network.weights):
            if not self._network.backend.all_finite(W):
                return f"coefs_[{layer}] of layer {layer + 1} is the first that is not finite"
        for layer, b in enumerate(self._network.biases):
            if not self._network.backend.all_finite(b):
                return f"intercepts_[{layer}] of layer {layer + 1} is the first that is not finite"
        return "all weights are finite"

    def _size_of_batches(self) -> int:
        size, m = self._estimator.batch_size, self._rows.m
        if size == "auto":
            return min(200, m)
        if size > m:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=2
            )
        return int(np.clip(size, 1, m))
