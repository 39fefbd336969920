"""Network: the mathematics of the notes, for any depth. It never asks which backend it runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fusedmlp.backends.base import Backend
from fusedmlp.checkpoints import Checkpoint, Checkpoints, as_checkpoint
from fusedmlp.checks import check_flag, check_number
from fusedmlp.engines.checked import loss_and_gradients_of, outputs_of
from fusedmlp.engines.options import GradientPhase
from fusedmlp.files.model_files import ModelFile, load_model, save_model
from fusedmlp.model import reference
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.names import ActivationName, ArrayInput, DtypeName, OptimizerName, PrecisionName, ScheduleName
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.model.parameters import Gradients, glorot_uniform
from fusedmlp.placement import PlacedNetwork, RandomState, as_generator
from fusedmlp.streams.base import Stream
from fusedmlp.training.alone import train_alone
from fusedmlp.training.callbacks import Callback
from fusedmlp.training.history import History
from fusedmlp.training.loop import Training
from fusedmlp.training.progress import ProgressOfFit
from fusedmlp.training.recording import Interval
from fusedmlp.training.schedules import Schedule
from fusedmlp.training.setup import FitArguments, Plan, as_validation, warn_of_rows
from fusedmlp.training.state import TrainingState


class Network(PlacedNetwork):
    """A multi-layer perceptron: an input layer, hidden layers, an output layer.

    In everything this class takes and gives, **a column is a sample**: X is (n1, m), Y is (nL, m). A table with a row
    per sample is passed as ``table.T``, a view.

    Parameters
    ----------
    layer_sizes : sequence of int
        [n1, n2, ..., nL]: inputs, hidden units of each hidden layer, outputs. [n1, 1] is logistic regression.
    hidden_activation : str
        "sigmoid", "tanh", "relu", "identity", "leaky_relu", "elu", "selu", "softplus", "gelu", "silu", "mish" or
        "softsign".
    loss : str
        Brings its output activation: "binary_cross_entropy" (sigmoid), "categorical_cross_entropy" (softmax),
        "squared_error" (identity), "poisson" (exp), "sum_squared_error" (sigmoid); with identity also
        "absolute_error", "huber" and "quantile". "huber:1.35" and "quantile:0.9" give the last two their number,
        which is 1 and 0.5 without.
    bias : bool
        False leaves every b out.
    dtype : {"float32", "float64"}
    backend : str or Backend, optional
        As in `fusedmlp.get_backend`. None: the choice of `use_backend`, else of FUSEDMLP_BACKEND, else "numba-cpu".
    random_state : int, numpy.random.Generator, numpy.random.RandomState, optional
        The source of the initial weights, and of shuffling.
    precision : {"strict", "high", "medium"}, optional
        What a float32 product may be off by, relative to float64. "strict": float32 arithmetic. "high": at most 2e-6.
        "medium", also "tf32": at most 5e-4, and activations beside such products to six digits. A permission: a GPU
        takes what is fastest within it, on its tensor cores where that is faster. Other backends, and float64 networks,
        ignore it. None: the environment variable FUSEDMLP_PRECISION, else "strict".

    Attributes
    ----------
    architecture : Architecture
    backend : Backend
    history : History or None
        The record of the last training.
    precision : str
        The precision that is allowed; ``backend.precision`` is the one that float32 products have.
    parameters : Parameters
        ``parameters.flat`` is the vector that `weights` and `biases` are views of; an array of the backend.

    Raises
    ------
    ValueError, BackendUnavailableError

    Examples
    --------
    >>> import numpy as np
    >>> from fusedmlp import Network
    >>> X = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])  # 2 inputs, 4 samples
    >>> Y = np.array([[0, 1, 1, 0]])
    >>> net = Network([2, 8, 1], hidden_activation="tanh", backend="numpy", random_state=0)
    >>> history = net.fit(X, Y, epochs=500, learning_rate=0.05)
    >>> net.forward(X).round().astype(int).tolist()
    [[0, 1, 1, 0]]
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        hidden_activation: ActivationName = "sigmoid",
        loss: str = "binary_cross_entropy",
        bias: bool = True,
        dtype: DtypeName = "float32",
        backend: str | Backend | None = None,
        random_state: RandomState = None,
        precision: PrecisionName | None = None,
    ) -> None:
        architecture = Architecture(layer_sizes, hidden_activation, loss, bias, dtype)
        generator = as_generator(random_state)
        self.history: History | None = None
        self._set_up(architecture, backend, precision, generator, glorot_uniform(architecture, generator))

    # The mathematics -------------------------------------------------------------------------------------------------

    @overload
    def forward(self, X: NDArray[Any]) -> NDArray[np.floating[Any]]: ...

    @overload
    def forward(self, X: ArrayInput) -> Any: ...

    def forward(self, X: Any) -> Any:
        """A_{L-1}, the output of the network.

        Parameters
        ----------
        X : array or SciPy's sparse matrix of shape (n1, m)

        Returns
        -------
        array of shape (nL, m), of the network's dtype, of the kind that X is
        """
        outputs = outputs_of(X, self.engine, self.parameters)
        if self.backend.owns(outputs):
            self._check_result(outputs)
        return self._like(X, outputs)

    def loss(self, X: ArrayInput, Y: ArrayInput, sample_weight: ArrayInput | None = None, alpha: float = 0.0) -> float:
        """J, as `loss_and_gradients` gives it, from a forward pass alone."""
        samples = self._samples(X, Y, sample_weight)
        alpha = check_number("alpha", alpha, 0, include_low=True)
        J = self.engine.loss(self.parameters, samples.X, samples.Y, samples.sample_weight, alpha)
        self._check_result(J)
        return J

    def loss_and_gradients(
        self, X: ArrayInput, Y: ArrayInput, sample_weight: ArrayInput | None = None, alpha: float = 0.0
    ) -> tuple[float, Gradients]:
        """J and its gradient with respect to every weight and bias.

        J = Σ wᵢ jᵢ / Σ wᵢ + ½·alpha·Σ‖W‖² / m (`sum_squared_error`: J = Σ wᵢ jᵢ + ...), with wᵢ = 1 where no weights
        are given.

        Parameters
        ----------
        X : array or SciPy's sparse matrix of shape (n1, m)
        Y : array of shape (nL, m), or (m,) for one output
        sample_weight : array of shape (m,), optional
            Numbers >= 0, not all 0.
        alpha : float, default 0
            L2 strength; biases are left out of it.

        Returns
        -------
        J : float
        gradients : Gradients
            `weights` [dW1, dW2, ...], `biases` [db1, ...], `flat`: arrays of the kind that X is.
        """
        alpha = check_number("alpha", alpha, 0, include_low=True)
        flat = self.parameters.flat
        gradients = Gradients(self.architecture, self.backend.xp.empty(flat.shape, flat.dtype))
        J = loss_and_gradients_of(X, Y, sample_weight, alpha, self.engine, self.parameters, gradients)
        self._check_result(J)
        if self.backend.owns(X):
            return J, gradients
        return J, Gradients(self.architecture, self.backend.to_numpy(gradients.flat))

    def trace(
        self, X: ArrayInput, Y: ArrayInput, sample_weight: ArrayInput | None = None, rows: bool = False
    ) -> dict[str, Any]:
        """Every quantity of the notes by name.

        Parameters
        ----------
        X : array of shape (n1, m); with ``rows=True`` (m, n1)
        Y : array of shape (nL, m); with ``rows=True`` (m, nL)
        sample_weight : array of shape (m,), optional
        rows : bool, default False
            The notation of the second note: rows as samples, z2 a2 z3 yhat J delta3 dJdW2 delta2 dJdW1.

        Returns
        -------
        dict
            In the order of computation Z1, A1, Z2, A2, ..., J, then dZ_{L-1}, dW_{L-1}, db_{L-1}, ..., dZ1, dW1, db1.
            Z_l, A_l and dZ_l are (n_{l+1}, m), dW_l (n_l, n_{l+1}), db_l (n_{l+1}, 1), J a float. dZ_l is that of each
            sample, not divided by m. Arrays are of the kind that X is.
        """
        if rows:
            X, Y = _transposed(X), _transposed(Y)
        samples = self._samples(X, Y, sample_weight).on_device(self.backend)
        quantities = reference.trace(self.backend, self.parameters, samples.X, samples.Y, samples.sample_weight)
        quantities = {name: value if name == "J" else self._like(X, value) for name, value in quantities.items()}
        return reference.in_rows(quantities) if rows else quantities

    # Training --------------------------------------------------------------------------------------------------------

    def fit(
        self,
        X: ArrayInput | Stream | Iterable[Any] | Callable[[], Iterable[Any]],
        Y: ArrayInput = None,  # type: ignore[assignment] # left out where X brings it, and never None
        optimizer: OptimizerName | Optimizer = "adam",
        epochs: int = 100,
        batch_size: int = 32,
        *,
        learning_rate: float | None = None,
        schedule: ScheduleName | Schedule = "constant",
        sample_weight: ArrayInput | None = None,
        alpha: float = 0.0,
        shuffle: bool = True,
        validation_data: tuple[ArrayInput, ...] | Stream | None = None,
        validation_fraction: float = 0.0,
        early_stopping: bool = False,
        patience: int = 10,
        tolerance: float = 1e-4,
        callbacks: Iterable[Callback | Callable[[Training], object]] = (),
        random_state: RandomState = None,
        clip_norm: float | None = None,
        dropout: float | Sequence[float] = 0.0,
        gradient_phase: GradientPhase | None = None,
        state: TrainingState | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        checkpoint_every: Interval = 1,
        verbose: bool = False,
        comm: Any = None,
        shards: bool = False,
    ) -> History:
        """Train in place.

        Parameters
        ----------
        X : array or SciPy's sparse matrix of shape (n1, m), Stream, or iterable of batches
            A stream, batches (X, Y) as `BatchStream` takes them, and a memory-mapped array of more than 256 MiB are
            read as they are needed (docs, "Larger than memory").
        Y : array of shape (nL, m), or (m,) for one output; None where X brings it
        optimizer : {"sgd", "momentum", "nesterov", "adam", "adamw"} or Optimizer
        epochs : int
        batch_size : int
            Samples of a step; at least m is full-batch training.
        learning_rate : float, optional
            In place of the optimizer's own.
        schedule : {"constant", "step", "exponential", "inverse-scaling", "cosine"} or callable
            ``schedule(epoch, learning_rate)`` is that epoch's rate.
        sample_weight : array of shape (m,), optional
        alpha : float
            L2: every batch adds ½·alpha·Σ‖W‖² / (samples of the batch).
        shuffle : bool
            A new order of the samples every epoch.
        validation_data : tuple (X, Y) or (X, Y, sample_weight), or Stream, optional
            For a validation loss after every epoch.
        validation_fraction : float in [0, 1)
            In its place: this share of the samples, drawn at random, is held back for it.
        early_stopping : bool
            Stop when the validation loss (the training loss, where there are no validation samples) has not improved by
            more than `tolerance` for `patience` epochs; the weights with the lowest one are put back.
        callbacks : iterable of Callback, or of functions called with the `Training` after every epoch
        random_state : int or numpy random generator, optional
            For splitting, shuffling and dropout; None goes on with the network's own.
        clip_norm : float, optional
            A batch's gradient, L2 term included, whose norm over all parameters is larger is scaled down to it.
        dropout : float in [0, 1), or a sequence of them
            The probability that an activation is dropped in training: of every hidden layer, or, as a sequence, of the
            inputs and then of each hidden layer. What is kept is divided by 1 - rate. Predictions and validation drop
            nothing. The same seed drops the same numbers on any backend and any number of threads.
        gradient_phase : GradientPhase, optional
            Runs between the sums of each batch and its update.
        state : TrainingState, optional
            Goes on where the last call with this state stopped, and advances it.
        checkpoint : path or Checkpoint, optional
            A file that the training is written to from time to time, at its end, and at Ctrl-C or SIGTERM. Where it
            exists, the training goes on from it, with the bits of one that was not interrupted. With `comm`, the file
            is rank 0's, and any number of processes may go on from it.
        checkpoint_every : int, str or datetime.timedelta
            How often: epochs; "30s", "10min" or "2h"; or "200 batches".
        verbose : bool
            Show the progress on standard error: a bar on a terminal or in a notebook, else lines.
        comm : mpi4py.MPI.Intracomm, optional
            Its processes train this network together; all call `fit`. `batch_size` is that of all of them. They start
            with the weights and the random numbers of rank 0, and all have the same weights at any time (docs, "Several
            processes").
        shards : bool
            With `comm`: X, Y, weights and `validation_data` are other samples in each process, perhaps none. False: all
            processes pass the same samples, and each takes a slice of them.

        Returns
        -------
        History
            Also kept as ``network.history``, after an interruption too.

        Raises
        ------
        ValueError
            An argument is wrong, or not the same in all processes; the network is as it was. A CheckpointError: the
            file of `checkpoint` is damaged, or it is that of another training; the message names what differs.
        RuntimeError
            The network is being trained already, by another thread or a callback; MPI cannot be called from here.
        MissingExtraError
            mpi4py is needed and not installed.
        TrainingDivergedError
            The loss became NaN or infinite; the best weights so far were put back: of the first weights and those after
            the best epoch, the ones whose loss is lower.
        KeyboardInterrupt
            Ctrl-C ends the epoch within a fraction of a second. The network has the weights of the last whole batch;
            with early stopping, the best weights. So does SIGTERM with a checkpoint, by SystemExit with status 143.

        Notes
        -----
        With sample weights, the sums of a batch are divided by the mean weight of all training samples times the
        samples of the batch. So the expectation of a batch's gradient is the gradient of J, whatever the batch size.
        """
        if checkpoint is not None and isinstance(callbacks, Iterable):
            callbacks = tuple(callbacks)
        given: tuple[Any, ...] = (
            *(optimizer, epochs, batch_size, learning_rate, schedule, alpha, shuffle, validation_fraction),
            *(early_stopping, patience, tolerance, callbacks, random_state, clip_norm, dropout, gradient_phase, state),
        )
        arguments = FitArguments(*given)
        check_flag("verbose", verbose)
        if check_flag("shards", shards) and comm is None:
            raise ValueError("shards: expected False without comm")
        with self._fitting_alone():
            if comm is not None:
                from fusedmlp.distributed.fitting import fit_together

                rest = validation_data, arguments, verbose, checkpoint, checkpoint_every
                return fit_together(self, self._plan, comm, shards, (X, Y, sample_weight), *rest)
            plan = self._plan(arguments)
            train = plan.samples(X, Y, sample_weight)
            warn_of_rows(X, train, stacklevel=2)
            plan.check_samples(train)
            validation = None
            if validation_data is not None:
                if validation_fraction:
                    raise ValueError("validation_fraction: expected 0 where validation_data is given")
                validation = plan.samples(*as_validation(validation_data), "validation_")
            kept = None
            if checkpoint is not None:
                kept = Checkpoints(as_checkpoint(checkpoint, checkpoint_every), self, plan, train, validation)
                plan = self._plan(kept.going_on(arguments))
            progress = ProgressOfFit() if verbose else None
            watching = () if progress is None else (progress,)
            train, validation = train.prepared(self.engine), validation and validation.prepared(self.engine)
            try:
                crowd, run = self.backend.crowd_of_one(), None if kept is None else kept.run
                return train_alone(plan, self.engine, train, validation, crowd, watching, run)
            finally:
                if progress is not None:
                    progress.close()

    def _plan(self, arguments: FitArguments) -> Plan:
        """A training of this network by arguments that are checked, as its weights are."""
        random_state = arguments.random_state
        generator = self._generator if random_state is None else as_generator(random_state)
        plan = Plan(self, arguments, generator)
        self._check_weights()
        return plan

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to a safetensors file, atomically: an interrupted call leaves an older file unchanged.

        A killed process can leave a temporary file in the folder; the next save of the same name removes it.

        Raises
        ------
        ValueError
            A weight is NaN or infinite, or `path` is a folder, a device or a fifo.
        OSError
            The system refuses; an older file is unchanged.
        """
        save_model(path, ModelFile(self._numpy_parameters()))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], backend: str | Backend | None = None, precision: str | None = None
    ) -> Network:
        """Read a network from a file that `save` or the command line wrote; backend and precision are not in it.

        Raises
        ------
        ModelFileError
            The file is missing, damaged, or not a model file. It is a ValueError.

        Warns
        -----
        UserWarning
            The file was written by version 0.1.0 and has no checksum.
        """
        return cls.from_parameters(load_model(path).parameters, backend=backend, precision=precision)


def _transposed(table: Any) -> Any:
    return table.T if hasattr(table, "T") else np.asarray(table).T
