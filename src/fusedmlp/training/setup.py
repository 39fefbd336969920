"""What has to be settled before a training's first epoch: arguments, state, and samples held back for validation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fusedmlp.checks import check_number
from fusedmlp.engines.base import Engine
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.options import GradientPhase
from fusedmlp.engines.samples import Samples
from fusedmlp.engines.sparse import SparseMatrix
from fusedmlp.engines.splits import held_back, split, validation_part
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.dropout import as_rates
from fusedmlp.model.optimizers import Optimizer, as_optimizer
from fusedmlp.model.parameters import Parameters
from fusedmlp.streams.base import Stream
from fusedmlp.streams.opening import samples_of
from fusedmlp.training.callbacks import Callback
from fusedmlp.training.history import History
from fusedmlp.training.loop import Training
from fusedmlp.training.schedules import Schedule, as_schedule
from fusedmlp.training.settings import TrainingSettings
from fusedmlp.training.state import Generator, TrainingState


class TrainableNetwork(Protocol):
    """What a training uses of a network; `fusedmlp.Network` has it all."""

    architecture: Architecture
    backend: Any
    parameters: Parameters
    history: History | None

    @property
    def engine(self) -> Engine:
        """The engine of the calling thread."""


@dataclass(frozen=True, slots=True)
class FitArguments:
    """The arguments of ``Network.fit`` that say how to train, as the caller gave them."""

    optimizer: str | Optimizer
    epochs: int
    batch_size: int
    learning_rate: float | None
    schedule: str | Schedule
    alpha: float
    shuffle: bool
    validation_fraction: float
    early_stopping: bool
    patience: int
    tolerance: float
    callbacks: Iterable[Callback | Callable[[Training], object]]
    random_state: Any
    clip_norm: float | None
    dropout: float | Sequence[float]
    gradient_phase: GradientPhase | None
    state: TrainingState | None


class Plan:
    """A training whose arguments are checked. Until it begins, nothing is drawn and nothing is changed.

    Parameters
    ----------
    network : Network
    arguments : FitArguments
    generator : numpy.random.Generator or numpy.random.RandomState
        That of the arguments' `random_state`, else the network's own.

    Raises
    ------
    ValueError
        An argument is wrong.
    """

    __slots__ = ("callbacks", "fraction", "generator", "network", "optimizer", "settings", "state")

    def __init__(self, network: TrainableNetwork, arguments: FitArguments, generator: Generator) -> None:
        given = arguments
        self.network, self.generator, self.state = network, generator, given.state
        self.callbacks, self.fraction = given.callbacks, given.validation_fraction
        if not isinstance(given.callbacks, Iterable):
            raise ValueError(f"callbacks: expected an iterable of them; got {given.callbacks!r}")
        if given.state is not None and given.random_state is not None and getattr(given.state, "used", False):
            raise ValueError("random_state: expected None, as the state has a generator of its own")
        self.optimizer = as_optimizer(given.optimizer, given.learning_rate)
        check_state(given.state, self.optimizer, network.architecture, given.batch_size)
        planned = given.epochs if given.state is None else given.state.planned_epochs or given.epochs
        self.settings = TrainingSettings(
            given.epochs,
            given.batch_size,
            as_schedule(given.schedule, planned),
            given.alpha,
            given.shuffle,
            given.early_stopping,
            given.patience,
            given.tolerance,
            given.clip_norm,
            as_rates(given.dropout, len(network.architecture.weight_shapes)),
            given.gradient_phase,
        )

    def samples(self, X: Any, Y: Any, sample_weight: Any, prefix: str = "") -> Samples:
        """Samples of the network, checked, from the arguments of ``fit``; see `samples_of`."""
        network = self.network
        about = network.architecture, network.backend, self.settings.batch_size, prefix
        samples = samples_of(X, Y, sample_weight, *about)
        if samples.once and prefix:
            raise ValueError("validation_data: expected samples that can be read again; got an iterator")
        if samples.once and self.settings.epochs > 1:
            expected = "expected 1, as an iterator can be read only once, and not a function that returns one"
            raise ValueError(f"epochs: {expected}; got {self.settings.epochs}")
        return samples

    def check_samples(self, train: Samples) -> None:
        """See that a part of the samples can be held back, without drawing it.

        Raises
        ------
        ValueError
            As `hold_back`.
        """
        if not check_number("validation_fraction", self.fraction, 0, 1, include_low=True):
            return
        state = self.state or TrainingState()
        training, validation = state.training_samples, state.validation_samples
        if training is None or validation is None:
            count = held_back(train.units, self.fraction, train.unit)
            weight = train.sample_weight
            if weight is None or isinstance(weight, HostMatrix):
                return
            zeros = train.m - train.with_weight()
            if zeros < min(count, train.m - count):
                return  # neither part can consist of zeros
            parts = validation_part(train.m, self.fraction, copy.deepcopy(state.generator or self.generator))
        else:
            parts = training, validation
            _check_same_samples(parts, train)
        split(train, parts, 0)

    def begin(
        self,
        engine: Engine,
        train: Samples,
        validation: Samples | None,
        *,
        largest_copy: int | None,
        watching: Sequence[Any] = (),
    ) -> tuple[Training, Samples, Samples | None]:
        """(the training, samples to train on, samples to validate on or None): what it draws first is drawn.

        Parameters
        ----------
        engine : Engine
        train, validation : Samples
            As the engine's epochs read them.
        largest_copy : int or None
            As in `Samples.take`, of a part that is held back, and of the rest.
        watching : sequence of Callback
            Called after the arguments' callbacks.
        """
        network, state = self.network, self.state
        if state is None:
            state = TrainingState(optimizer=self.optimizer, generator=self.generator)
        elif not state.used:
            state.optimizer, state.generator = self.optimizer, state.generator or self.generator
        assert state.generator is not None
        if self.fraction:
            # A sparse X is cut into slots by its mean number of nonzeros: a copy, which is made where there is room,
            # would change the bits. Dropout's masks go by the columns of the copy, so that they are every backend's.
            if isinstance(train.X, SparseMatrix) and self.settings.dropout is None:
                largest_copy = 0
            train, validation = hold_back(state, train, self.fraction, largest_copy)
        if self.settings.dropout is not None and state.dropout_seed is None:
            state.dropout_seed = int.from_bytes(state.generator.bytes(8), "little")
        training = Training(engine, network.parameters, state, self.settings, (*self.callbacks, *watching))
        training.network = network
        network.history = training.history
        return training, train, validation


def check_state(state: TrainingState | None, optimizer: Optimizer, architecture: Architecture, batch_size: int) -> None:
    """See that a training can go on with the caller's state, or begin with it.

    Raises
    ------
    ValueError
        It is no TrainingState, of another optimizer, or of another number of parameters; or it is in the middle of an
        epoch with another batch size.
    """
    if state is None:
        return
    if not isinstance(state, TrainingState):
        raise ValueError(f"state: expected a TrainingState; got {state!r}")
    if not state.used:
        return
    if state.batch and state.batch_size != batch_size:
        raise ValueError(
            f"batch_size: expected {state.batch_size}, as the state is in the middle of an epoch; got {batch_size}"
        )
    if state.optimizer != optimizer:
        raise ValueError(f"optimizer: expected that of the state, {state.optimizer}; got {optimizer}")
    sizes = {name: len(moment) for name, moment in state.moments.items()}
    if any(size != architecture.n_parameters for size in sizes.values()):
        raise ValueError(f"state: expected moments of {architecture.n_parameters} parameters; got {sizes}")


def hold_back(
    state: TrainingState, samples: Samples, fraction: float, largest_copy: int | None
) -> tuple[Samples, Samples]:
    """(samples to train on, samples to validate on): a random part, drawn once for a state.

    Parameters
    ----------
    state : TrainingState
    samples : Samples
    fraction : float in (0, 1)
    largest_copy : int or None
        As in `Samples.take`.

    Raises
    ------
    ValueError
        The fraction leaves no sample to train on, or the state has held back a part of other samples.
    """
    if state.training_samples is None or state.validation_samples is None:
        assert state.generator is not None
        state.training_samples, state.validation_samples = validation_part(samples.units, fraction, state.generator)
    parts = state.training_samples, state.validation_samples
    _check_same_samples(parts, samples)
    return split(samples, parts, largest_copy)


def _check_same_samples(parts: tuple[np.ndarray, np.ndarray], samples: Samples) -> None:
    if sum(map(len, parts)) != samples.units:
        raise ValueError(
            f"state: expected the {sum(map(len, parts))} {samples.unit} of the calls before; got {samples.units}"
        )


def as_validation(data: Any) -> tuple[Any, Any, Any]:
    """(X, Y, sample_weight or None) of the argument `validation_data`; of a stream, (the stream, None, None)."""
    if isinstance(data, Stream):
        return data, None, None
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        expected = "(X, Y), (X, Y, sample_weight) or a stream"
        raise ValueError(f"validation_data: expected {expected}; got {type(data).__name__}")
    return (*data, None)[:3]


def warn_of_rows(X: Any, samples: Samples, stacklevel: int) -> None:
    """Warn where X has as many rows as columns, and lies in memory as a table with a row per sample usually does."""
    if samples.X is None:
        return
    contiguous = isinstance(X, list | tuple) or bool(getattr(getattr(X, "flags", None), "c_contiguous", False))
    rows, m = samples.X.shape
    if 1 < rows == m and contiguous:
        warnings.warn(
            f"X: as many rows as columns, {m}: a column is taken for a sample. Pass X.T for a table with a row per "
            "sample",
            stacklevel=stacklevel + 1,
        )
