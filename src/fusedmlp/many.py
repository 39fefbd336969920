"""fit_many: many independent networks, trained at once where the backend can do that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from fusedmlp.checks import check_choice, check_flag
from fusedmlp.engines.options import GradientPhase
from fusedmlp.model.names import ArrayInput, OptimizerName, ScheduleName
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.training.history import History
from fusedmlp.training.many import OF_FIT, checked_networks, settled
from fusedmlp.training.many_arguments import naming
from fusedmlp.training.schedules import Schedule
from fusedmlp.training.state import TrainingState


def fit_many(
    networks: Sequence[Any],
    X: ArrayInput,
    Y: ArrayInput | list[ArrayInput],
    optimizer: OptimizerName | Optimizer | Sequence[OptimizerName | Optimizer] = "adam",
    epochs: int | Sequence[int] = 100,
    batch_size: int | Sequence[int] = 32,
    *,
    learning_rate: float | Sequence[float | None] | None = None,
    schedule: ScheduleName | Schedule | Sequence[ScheduleName | Schedule] = "constant",
    sample_weight: ArrayInput | list[ArrayInput | None] | None = None,
    alpha: float | Sequence[float] = 0.0,
    shuffle: bool | Sequence[bool] = True,
    validation_data: tuple[ArrayInput, ...] | list[tuple[ArrayInput, ...] | None] | None = None,
    validation_fraction: float | Sequence[float] = 0.0,
    early_stopping: bool | Sequence[bool] = False,
    patience: int | Sequence[int] = 10,
    tolerance: float | Sequence[float] = 1e-4,
    callbacks: Iterable[Any] = (),
    random_state: Any = None,
    clip_norm: float | Sequence[float | None] | None = None,
    dropout: float | Sequence[float] | Sequence[Sequence[float]] = 0.0,
    gradient_phase: GradientPhase | Sequence[GradientPhase | None] | None = None,
    state: TrainingState | Sequence[TrainingState | None] | None = None,
    samples: Sequence[Any] | None = None,
    validation_samples: Sequence[Any] | None = None,
    on_error: str = "record",
    verbose: bool | Literal["long"] = False,
    comm: Any = None,
) -> list[History]:
    """Train many independent networks in place.

    Each has the weights and the history that ``network.fit`` gives it with the same arguments, bit for bit. X is in
    memory once, whatever part of the samples a network is trained on.

    Parameters
    ----------
    networks : sequence of Network
        All different, on one backend, of one dtype and precision; layers, activations and losses may differ.
    X : array or SciPy's sparse matrix of shape (n1, m)
        Of all networks.
    Y : array of shape (nL, m), or (m,) for one output; or a list of such arrays
        A list of arrays has one per network.
    optimizer, epochs, batch_size, learning_rate, schedule, alpha, shuffle, validation_fraction, early_stopping, \
    patience, tolerance, random_state, clip_norm, gradient_phase, state
        As in `Network.fit`. A list, a tuple or a vector has one value per network; anything else is every network's.
        Several networks cannot share a random generator or a state.
    sample_weight : array of shape (m,), optional
        A list or a tuple that holds arrays, lists or None has one per network; of numbers, it is every network's.
    validation_data : tuple (X, Y) or (X, Y, sample_weight), optional
        A tuple is every network's; a list has a tuple or None per network.
    callbacks : iterable of Callback or of functions
        A list of lists or tuples has one per network. A network with callbacks is trained by itself.
    dropout : float in [0, 1), or a sequence of them
        As in `Network.fit`. A list of as many values as there are networks, or a sequence that holds a sequence, has
        one per network; any other sequence, such as a tuple of numbers, is every network's.
    samples : sequence of arrays of int, optional
        Per network the columns of X to train on, or None for all of them. A column may come more than once.
    validation_samples : sequence of arrays of int, optional
        Per network the columns of X to compute a validation loss on after every epoch, or None.
    on_error : {"record", "raise"}
        What happens where a training diverges: its history says so (`History.error`) and the others go on; or a
        TrainingDivergedError ends all of them.
    verbose : bool or "long"
        Show the progress of all on standard error: a bar on a terminal or in a notebook, else a line for every tenth;
        "long": lines only where it takes more than a few seconds.
    comm : mpi4py.MPI.Intracomm, optional
        Its processes share the networks, and all call `fit_many` with the same arguments. Each trains some of them,
        without a message; at the end all have all weights and histories, with the bits of one process. They start with
        the weights and the random numbers of rank 0. Callbacks run in the process that trains their network.

    Returns
    -------
    list of History
        In the order of the networks; also kept as ``network.history``, after an interruption too.

    Raises
    ------
    ValueError
        An argument is wrong, or not the same in all processes: the message names the network and the argument, and the
        networks are as they were.
    RuntimeError
        A network is being trained already.
    TrainingDivergedError
        A loss became NaN or infinite, with ``on_error="raise"``.
    KeyboardInterrupt
        Ctrl-C. Every network has the weights of its last whole batch (with early stopping, the best weights).

    Notes
    -----
    With `samples`, the bits are also those of ``network.fit(X[:, indices], Y[:, indices])`` on numba-cpu, as long as a
    layer has no more than 16 KiB of inputs a sample, X is not sparse (or mostly zeros), and nothing is dropped:
    dropout's masks go by the columns of X.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedmlp import Network, fit_many
    >>> generator = np.random.default_rng(0)
    >>> X = generator.normal(size=(3, 200))
    >>> Y = X[:1] * X[1:2] + X[2:]
    >>> networks = [Network([3, 16, 1], "tanh", "squared_error", random_state=seed) for seed in range(3)]
    >>> histories = fit_many(networks, X, Y, epochs=20, learning_rate=[0.1, 0.01, 0.001])
    >>> [history.epochs for history in histories]
    [20, 20, 20]
    """
    given = {name: value for name, value in locals().items() if name in OF_FIT}
    check_choice("on_error", on_error, ("record", "raise"))
    if verbose != "long":
        check_flag("verbose", verbose)
    networks = checked_networks(networks)
    parts = samples, validation_samples
    with ExitStack() as stack:
        for number, network in enumerate(networks):
            with naming(number):
                stack.enter_context(network._fitting_alone())
        if comm is None:
            return settled(networks, X, given, parts).histories(on_error == "raise", verbose)
        from fusedmlp.distributed.many import fit_apart

        return fit_apart(comm, networks, X, given, parts, on_error == "raise", verbose)
