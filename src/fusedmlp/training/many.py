"""fit_many: many independent networks, trained at once where the backend can do that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from fusedmlp.checks import check_choice, check_flag, shown
from fusedmlp.engines.base import Engine
from fusedmlp.engines.options import GradientPhase
from fusedmlp.engines.samples import Samples
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.names import ArrayInput, OptimizerName, ScheduleName
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.training import progress as progress_module
from fusedmlp.training.history import History
from fusedmlp.training.many_arguments import as_indices, index_lists, naming, spread
from fusedmlp.training.many_run import ManyRun, Member
from fusedmlp.training.schedules import Schedule
from fusedmlp.training.setup import FitArguments, Plan, as_validation, warn_of_rows
from fusedmlp.training.shared_samples import SharedSamples
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

    Returns
    -------
    list of History
        In the order of the networks; also kept as ``network.history``, after an interruption too.

    Raises
    ------
    ValueError
        An argument is wrong: the message names the network and the argument, and the networks are as they were.
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
    given = {name: value for name, value in locals().items() if name in _OF_FIT}
    check_choice("on_error", on_error, ("record", "raise"))
    if verbose != "long":
        check_flag("verbose", verbose)
    networks = _checked_networks(networks)
    with ExitStack() as stack:
        for number, network in enumerate(networks):
            with naming(number):
                stack.enter_context(network._fitting_alone())
        members = _members(networks, X, given, samples, validation_samples)
        progress = None
        if verbose:
            epochs = sum(member.plan.settings.epochs for member in members)
            quiet = progress_module.QUIET_SECONDS if verbose == "long" else 0.0
            progress = progress_module.ProgressOfMany(len(members), epochs, quiet)
            stack.callback(progress.close)
        return ManyRun(members, networks[0].backend.crowd(), on_error == "raise", progress).histories()


_OF_FIT = frozenset(FitArguments.__dataclass_fields__) | {"Y", "sample_weight", "validation_data"}


def _checked_networks(networks: Any) -> list[Any]:
    """The networks, which are different ones of the same kind."""
    if isinstance(networks, str | bytes) or not isinstance(networks, Iterable):
        raise ValueError(f"networks: expected a sequence of Network; got {shown(networks)}")
    networks, places = list(networks), dict[int, int]()
    if not networks:
        raise ValueError("networks: expected at least one; got none")
    for number, network in enumerate(networks):
        if not hasattr(network, "_fitting_alone"):
            raise ValueError(f"networks[{number}]: expected a Network; got {shown(network)}")
        if id(network) in places:
            raise ValueError(f"networks[{number}]: expected another network; got networks[{places[id(network)]}] again")
        places[id(network)] = number
        for name in ("backend", "dtype", "precision"):
            first, this = (_kind(one, name) for one in (networks[0], network))
            if this != first:
                raise ValueError(f"networks[{number}]: {name}: expected that of networks[0], {first!r}; got {this!r}")
    return networks


def _kind(network: Any, name: str) -> str:
    return {
        "backend": network.backend.name,
        "dtype": network.architecture.dtype,
        "precision": network.backend.precision,
    }[name]


def _members(networks: list[Any], X: Any, given: dict[str, Any], samples: Any, validation_samples: Any) -> list[Member]:
    """All that is to be trained, checked; nothing is drawn or changed."""
    n, backend = len(networks), networks[0].backend
    values = {name: spread(name, value, n) for name, value in given.items()}
    parts = index_lists("samples", samples, n), index_lists("validation_samples", validation_samples, n)
    engines: dict[Architecture, Engine] = {}
    table, validation_tables = SharedSamples(X, backend), _ValidationTables(backend)
    members, sources = [], _Sources()
    for number, network in enumerate(networks):
        with naming(number):
            arguments = FitArguments(**{name: values[name][number] for name in FitArguments.__dataclass_fields__})
            plan = network._plan(arguments)
            sources.check(number, plan)
            a = network.architecture
            engine = engines.get(a) or engines.setdefault(a, backend.engine(a))
            whole = table.of(engine, values["Y"][number], values["sample_weight"][number])
            train = _part(whole, "samples", parts[0][number])
            validation = validation_tables.of(engine, values["validation_data"][number])
            if parts[1][number] is not None:
                if validation is not None:
                    raise ValueError("validation_samples: expected None where validation_data is given")
                validation = _part(whole, "validation_samples", parts[1][number])
            if validation is None:
                plan.check_samples(train)
            elif plan.fraction:
                kind = "validation_data" if parts[1][number] is None else "validation_samples"
                raise ValueError(f"validation_fraction: expected 0 where {kind} is given")
            members.append(Member(number, plan, engine, train, validation))
    warn_of_rows(X, members[0].train, stacklevel=3)
    return members


def _part(whole: Samples, name: str, indices: Any) -> Samples:
    if indices is None:
        return whole
    part = whole.part(as_indices(name, indices, whole.X.shape[1]))
    if part.sample_weight is not None and part.weight_sum == 0:
        raise ValueError(f"{name}: the weights of the {part.m} samples are all 0")
    return part


class _ValidationTables:
    """The validation data of all networks, each checked once."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._tables: dict[int, tuple[SharedSamples, Any, Any]] = {}

    def of(self, engine: Engine, data: Any) -> Samples | None:
        if data is None:
            return None
        if id(data) not in self._tables:
            X, Y, sample_weight = as_validation(data)
            self._tables[id(data)] = SharedSamples(X, self._backend, "validation_"), Y, sample_weight
        table, Y, sample_weight = self._tables[id(data)]
        return table.of(engine, Y, sample_weight)


class _Sources:
    """The random generators and the states of all networks: each is one network's."""

    def __init__(self) -> None:
        self._users: dict[int, int] = {}

    def check(self, number: int, plan: Plan) -> None:
        state = plan.state
        if state is not None:
            self._claim(number, state, "state: expected a state of its own")
        generator = plan.generator if state is None or state.generator is None else state.generator
        self._claim(number, generator, "random_state: expected a generator of its own, such as a seed per network")

    def _claim(self, number: int, source: object, expected: str) -> None:
        user = self._users.setdefault(id(source), number)
        if user != number:
            raise ValueError(f"{expected}; networks[{user}] has the same one")
