"""Many independent networks whose trainings begin together: their arguments and samples, checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from fusedmlp.checks import shown
from fusedmlp.engines.base import Engine
from fusedmlp.engines.samples import Samples
from fusedmlp.model.architecture import Architecture
from fusedmlp.training import progress as progress_module
from fusedmlp.training.history import History
from fusedmlp.training.many_arguments import as_indices, index_lists, naming, spread
from fusedmlp.training.many_run import ManyRun, Member
from fusedmlp.training.setup import FitArguments, Plan, as_validation, warn_of_rows
from fusedmlp.training.shared_samples import SharedSamples

OF_FIT = frozenset(FitArguments.__dataclass_fields__) | {"Y", "sample_weight", "validation_data"}
"""Arguments of `fit_many` that are those of ``Network.fit``."""


class Settled(NamedTuple):
    """Networks that can be trained: their arguments are checked, and nothing is drawn or changed.

    Attributes
    ----------
    members : list of Member
        All of them, or a share.
    crowd : Crowd or None
    """

    members: list[Member]
    crowd: Any

    def histories(self, raises: bool, verbose: bool | Literal["long"]) -> list[History]:
        """Train the members; see `fit_many`.

        Parameters
        ----------
        raises : bool
            Whether a training that diverges ends all others.
        verbose : bool or "long"
        """
        progress = None
        if verbose and self.members:
            epochs = sum(member.plan.settings.epochs for member in self.members)
            quiet = progress_module.QUIET_SECONDS if verbose == "long" else 0.0
            progress = progress_module.ProgressOfMany(len(self.members), epochs, quiet)
        try:
            return ManyRun(self.members, self.crowd, raises, progress).histories()
        finally:
            if progress is not None:
                progress.close()


def settled(networks: list[Any], X: Any, given: dict[str, Any], parts: tuple[Any, Any]) -> Settled:
    """See that networks can be trained.

    Parameters
    ----------
    networks : list of Network
        As `checked_networks` gives them.
    X
    given : dict
        The arguments named in `OF_FIT`.
    parts : tuple
        The arguments `samples` and `validation_samples`.

    Raises
    ------
    ValueError
        An argument is wrong.
    """
    return Settled(_members(networks, X, given, *parts), networks[0].backend.crowd())


def checked_networks(networks: Any) -> list[Any]:
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
    warn_of_rows(X, members[0].train, stacklevel=4)
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
