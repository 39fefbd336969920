"""``Network.fit`` with a communicator: the order of events where several processes train one network."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fusedmlp.checkpoints import Checkpoint, Checkpoints, as_checkpoint
from fusedmlp.distributed.agreement import agree, agree_on_samples, arguments_of
from fusedmlp.distributed.checkpointing import KeeperOfAll
from fusedmlp.distributed.peers import Peers, peers_of
from fusedmlp.distributed.sharded_samples import ShardedSamples, sharded_samples
from fusedmlp.engines.samples import Samples
from fusedmlp.errors import TrainingDivergedError
from fusedmlp.streams.opening import is_streamed
from fusedmlp.training.callbacks import Callback, RunningTraining
from fusedmlp.training.history import History
from fusedmlp.training.progress import ProgressOfFit
from fusedmlp.training.recording import Interval
from fusedmlp.training.setup import FitArguments, Plan, TrainableNetwork, as_validation

_log = logging.getLogger("fusedmlp")


def fit_together(
    network: TrainableNetwork,
    plan_of: Callable[[FitArguments], Plan],
    comm: Any,
    shards: bool,
    data: tuple[Any, Any, Any],
    validation_data: Any,
    arguments: FitArguments,
    verbose: bool,
    checkpoint: Any = None,
    checkpoint_every: Interval = 1,
) -> History:
    """Train a network by all processes of a communicator, which all call this.

    Parameters
    ----------
    network : Network
    plan_of : callable
        Checks the arguments of the training.
    comm : mpi4py.MPI.Intracomm
    shards : bool
    data : tuple (X, Y, sample_weight or None)
    validation_data : tuple, or None
    arguments : FitArguments
    verbose : bool
    checkpoint : path, Checkpoint, or None
        That of rank 0 counts; all have one, or none has.
    checkpoint_every : int, str or datetime.timedelta

    Returns
    -------
    History
        The same in all processes, but for the seconds.
    """
    if is_streamed(*data[:2]):
        raise ValueError("comm: expected None with a stream; the processes of a training take arrays")
    peers = peers_of(comm)
    with peers.training():
        kept = agreed_checkpoint(peers, checkpoint, checkpoint_every)
        _agree_on_arguments(peers, network, arguments, shards, validation_data is not None)
        arguments = replace(arguments, gradient_phase=peers.phase(network.architecture.dtype))
        start_from_first(peers, network.parameters.flat)
        plan = peers.together(lambda: plan_of(arguments))
        _draw_the_same(peers, plan)
        train = _samples_of(peers, network, data, "", shards)
        with peers.sharing_errors():
            plan.check_samples(train)
        validation = None
        if validation_data is not None:
            given = peers.together(lambda: as_validation(validation_data))
            validation = _samples_of(peers, network, given, "validation_", shards)
        run = None
        if kept is not None:
            plan, run = _going_on(peers, network, plan_of, arguments, kept, train, validation)
        engine = network.engine
        train = train.prepared(engine)
        progress = ProgressOfFit() if verbose and peers.rank == 0 else None
        watching = [*([] if progress is None else [progress]), SameCourse(peers)]
        with peers.sharing_errors():
            held_out = validation and validation.prepared(engine)
            room = int(engine.backend.workspace_bytes)
            begun = plan.begin(engine, train, held_out, largest_copy=room, watching=watching)
        try:
            return _run(peers, *begun, run)
        finally:
            if progress is not None:
                progress.close()


def agreed_checkpoint(peers: Peers, checkpoint: Any, every: Interval) -> Checkpoint | None:
    """The argument `checkpoint`, once all processes have one with the same interval, or none has."""
    agree(peers, {"checkpoint": None if checkpoint is None else "a file"})
    if checkpoint is None:
        return None
    kept = peers.together(lambda: as_checkpoint(checkpoint, every))
    agree(peers, {"checkpoint_every": kept.every})
    return kept


def _going_on(
    peers: Peers,
    network: TrainableNetwork,
    plan_of: Callable[[FitArguments], Plan],
    arguments: FitArguments,
    checkpoint: Checkpoint,
    train: Samples,
    validation: Samples | None,
) -> tuple[Plan, Callable[..., History]]:
    """(a training from where the file of rank 0 is, what runs it and writes it down)."""
    alike = peers.together(lambda: plan_of(replace(arguments, gradient_phase=None)))  # as one process describes it
    keeper = KeeperOfAll(peers, peers.phase_of(network.architecture.dtype))
    with peers.sharing_errors():
        checkpoints = Checkpoints(checkpoint, network, alike, train, validation, keeper)
    rest = peers.together(lambda: checkpoints.going_on(arguments))
    plan = peers.together(lambda: plan_of(rest))
    _draw_the_same(peers, plan)
    return plan, checkpoints.run


def _run(peers: Peers, training: Any, train: Any, validation: Any, run: Callable[..., History] | None) -> History:
    try:
        history: History = training.run(train, validation) if run is None else run(training, train, validation)
    except TrainingDivergedError as error:  # it is decided by the losses of all
        peers.shared(error)
        raise
    peers.phase_of(training.parameters.architecture.dtype).end()
    return history


def _agree_on_arguments(
    peers: Peers, network: TrainableNetwork, arguments: FitArguments, shards: bool, validates: bool
) -> None:
    if arguments.gradient_phase is not None:
        raise peers.shared(ValueError("gradient_phase: expected None beside comm, which has one of its own"))
    values = arguments_of(network, arguments, shards)
    agree(peers, values | {"validation_data": "samples" if validates else None})
    if arguments.validation_fraction and validates:
        raise peers.shared(ValueError("validation_fraction: expected 0 where validation_data is given"))


def start_from_first(peers: Peers, flat: Any) -> None:
    """Overwrite a vector of the backend with that of rank 0."""
    host = flat if isinstance(flat, np.ndarray) else flat.get()
    peers.send(host)
    if host is not flat:
        flat.set(host)


def _draw_the_same(peers: Peers, plan: Plan) -> None:
    """Let all processes draw the random numbers of rank 0."""
    state = plan.state
    if state is not None and state.generator is not None:
        state.generator = peers.from_first(state.generator)
        return
    generator = plan.generator
    if isinstance(generator, np.random.RandomState):
        generator.set_state(peers.from_first(generator.get_state(legacy=False)))
        return
    theirs = peers.from_first(generator.bit_generator.state)
    if type(generator.bit_generator).__name__ != theirs["bit_generator"]:
        plan.generator = generator = np.random.Generator(getattr(np.random, theirs["bit_generator"])())
    generator.bit_generator.state = theirs


def _samples_of(peers: Peers, network: TrainableNetwork, data: Any, prefix: str, shards: bool) -> ShardedSamples:
    agree_on_samples(peers, data, prefix, shards)
    return sharded_samples(peers, data, network.architecture, network.backend, prefix, shards=shards)


class SameCourse(Callback):
    """The last callback of a training: what the others have decided in one process holds in all.

    A training that one process stops, all stop. The factor of the learning rate is that of rank 0. Weights that are
    not the same, because a callback changed them or the processors differ, become those of rank 0.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Callbacks may stop a training before its first epoch."""
        self.on_epoch_end(training)

    def on_epoch_end(self, training: RunningTraining) -> None:
        """One message, and more of them only where something differs."""
        peers, flat = self._peers, training.parameters.flat
        factor = int(np.float64(training.rate_factor).view(np.int64))
        bits = _bits(flat)
        stopped = peers.rank if training.history.stopped else peers.size
        first, *ends = peers.smallest([stopped, factor, -factor, bits, -bits])
        if first < peers.size:
            training.stop(peers.from_first(training.history.stopped, first))
        if ends[0] != -ends[1]:
            training.rate_factor = peers.from_first(training.rate_factor)
        if ends[2] != -ends[3]:
            _log.warning("the weights differ between the ranks after epoch %d: those of rank 0 hold", training.epoch)
            start_from_first(peers, flat)
            for moment in training.optimizer_state.moments.values():
                start_from_first(peers, moment)


def _bits(flat: Any) -> int:
    """The sum of the numbers' bits, below 2**62."""
    host = flat if isinstance(flat, np.ndarray) else flat.get()
    return int(host.view(f"u{host.itemsize}").sum(dtype=np.uint64)) & ((1 << 62) - 1)
