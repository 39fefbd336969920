"""``fit_many`` with a communicator: each process trains some of the networks, and all have all of them at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from fusedmlp.distributed.agreement import agree, agree_on_numbers
from fusedmlp.distributed.peers import Peers, peers_of
from fusedmlp.distributed.shares import agreed_owners, exchanged
from fusedmlp.errors import TrainingDivergedError
from fusedmlp.training.history import History
from fusedmlp.training.many import Settled, settled
from fusedmlp.training.many_run import Member
from fusedmlp.training.state import TrainingState, generator_data, in_host_memory, set_generator

_ARRAYS = ("Y", "sample_weight", "validation_data")
_APART = ("callbacks", "gradient_phase", "state", *_ARRAYS)
_STEP = 10_000
"""What a step costs beside its samples, in products of a sample and a parameter."""


class Remembered(NamedTuple):
    """What a training starts from, or has led to.

    Attributes
    ----------
    flat : numpy.ndarray of shape (n_parameters,)
    generator : dict
        As `generator_data` gives it.
    state : TrainingState or None
        Where the caller gave one.
    history : History or None
    """

    flat: np.ndarray
    generator: dict[str, Any]
    state: TrainingState | None
    history: History | None

    @classmethod
    def of(cls, member: Member) -> Remembered:
        """That of a network now."""
        plan = member.plan
        flat = in_host_memory(plan.network.parameters.flat)
        return cls(flat, generator_data(plan.generator), plan.state, plan.network.history)

    def give(self, member: Member) -> None:
        """Let a network have it."""
        plan, network = member.plan, member.plan.network
        network.parameters.flat[...] = network.backend.asarray(self.flat)
        set_generator(plan.generator, self.generator)
        network.history = self.history
        if plan.state is None or self.state is None:
            return
        generator = plan.state.generator or (plan.generator if self.state.used else None)
        if generator is not None and self.state.generator is not None:
            set_generator(generator, generator_data(self.state.generator))
        vars(plan.state).update(vars(self.state) | {"generator": generator})


def fit_apart(
    comm: Any,
    networks: list[Any],
    X: Any,
    given: dict[str, Any],
    parts: tuple[Any, Any],
    raises: bool,
    verbose: bool | Literal["long"],
) -> list[History]:
    """Train many networks by all processes of a communicator, which all call this.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    networks, X, given, parts
        As `settled` takes them.
    raises : bool
        Whether a training that diverges ends all others; those of other processes come to their end before.
    verbose : bool or "long"
        Rank 0 shows the progress of its share.
    """
    peers = peers_of(comm)
    with peers.training():
        _agree(peers, networks, X, given, parts, raises)
        ready = peers.together(lambda: settled(networks, X, given, parts))
        states = [member.plan.state for member in ready.members]
        agree(peers, {"state": [None if state is None else (state.epoch, state.steps) for state in states]})
        _start_from_first(peers, ready.members)
        owners = agreed_owners(peers, [_work(member) for member in ready.members])
        share = [member for member in ready.members if owners[member.number] == peers.rank]
        error = None
        try:
            Settled(share, ready.crowd).histories(raises, verbose if peers.rank == 0 else False)
        except TrainingDivergedError as raised:
            error = str(raised)
        trained = exchanged(peers, {member.number: Remembered.of(member) for member in share})
        for member in ready.members:
            if owners[member.number] != peers.rank:
                trained[member.number].give(member)
        errors = [message for message in peers.everyones(error) if message is not None]
        if errors:
            raise peers.shared(TrainingDivergedError(errors[0]))
    return [network.history for network in networks]


def _agree(
    peers: Peers, networks: list[Any], X: Any, given: dict[str, Any], parts: tuple[Any, Any], raises: bool
) -> None:
    """See that all processes have the same networks, arguments and samples."""
    kinds = [network.architecture for network in networks]
    values: dict[str, object] = {"networks": len(networks), "on_error": "raise" if raises else "record"}
    agree(peers, values | {"layers of networks": kinds, "backend": networks[0].backend.name})
    agree(peers, {name: value for name, value in given.items() if name not in _APART})
    for name, value in {"X": X, **{name: given[name] for name in _ARRAYS}}.items():
        agree_on_numbers(peers, name, peers.together(lambda value=value: list(_arrays_in(value))))  # type: ignore[misc]
    for name, indices in zip(("samples", "validation_samples"), parts, strict=True):
        agree_on_numbers(peers, name, peers.together(lambda indices=indices: list(_arrays_in(indices))))  # type: ignore[misc]


def _arrays_in(value: Any) -> Iterator[Any]:
    """The arrays of an argument that is one, or has one per network, or is a tuple of them."""
    nested = isinstance(value, list | tuple) and any(part is None or np.ndim(part) > 0 for part in value)
    if value is None:
        return
    if not nested:
        yield value
        return
    for part in value:
        yield from _arrays_in(part)


def _start_from_first(peers: Peers, members: list[Member]) -> None:
    """Let all networks have the weights and the random numbers that they have on rank 0."""
    own = [Remembered.of(member) for member in members] if peers.rank == 0 else []
    theirs = peers.copied(own)

    def give() -> None:
        if peers.rank:
            for member, remembered in zip(members, theirs, strict=True):
                remembered.give(member)

    peers.together(give)


def _work(member: Member) -> float:
    """About how long a training takes, in products of a sample and a parameter."""
    settings, m = member.plan.settings, member.train.m
    steps = -(-m // settings.batch_size)
    return float(settings.epochs * (m * member.engine.architecture.n_parameters + steps * _STEP))
