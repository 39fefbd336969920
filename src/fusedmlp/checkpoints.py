"""Checkpoints of a training: what they hold, when they are written, and how a training goes on from one."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fusedmlp.backends.libraries import library_versions
from fusedmlp.engines.digests import Whole, samples_described
from fusedmlp.engines.samples import Samples
from fusedmlp.errors import CheckpointError
from fusedmlp.files.atomic import check_writable
from fusedmlp.files.checkpoint_files import CheckpointFile, load_checkpoint, save_checkpoint
from fusedmlp.streams.samples import StreamedSamples
from fusedmlp.training.callbacks import remind
from fusedmlp.training.history import History
from fusedmlp.training.loop import Training
from fusedmlp.training.recording import Every, Interval, Recorder
from fusedmlp.training.setup import FitArguments, Plan, TrainableNetwork
from fusedmlp.training.state import TrainingState, in_host_memory

_log = logging.getLogger("fusedmlp")


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is written down, and when.

    Parameters
    ----------
    path : str or path
        A safetensors file.
    every : int, str or datetime.timedelta
        Epochs; "30s", "10min" or "2h"; "200 batches"; or a time.
    extra : mapping, optional
        Plain data and numpy arrays to keep in the file.
    """

    path: str | os.PathLike[str]
    every: Interval = 1
    extra: Mapping[str, Any] = field(default_factory=dict)


def as_checkpoint(checkpoint: str | os.PathLike[str] | Checkpoint, every: Interval) -> Checkpoint:
    """A `Checkpoint` itself, or one of a path.

    Raises
    ------
    ValueError
        It is neither, or `every` is no interval.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if not isinstance(checkpoint, str | os.PathLike) or not os.fspath(checkpoint):
        raise ValueError(f"checkpoint: expected a path or a Checkpoint; got {checkpoint!r}")
    return Checkpoint(checkpoint, every)


class FileRecorder(Recorder):
    """Writes checkpoints to a file.

    Parameters
    ----------
    checkpoint : Checkpoint
    description : mapping
        What the training is; see `CheckpointFile`.
    backend : str
        The name of the backend.
    """

    def __init__(self, checkpoint: Checkpoint, description: Mapping[str, Any], backend: str) -> None:
        super().__init__(Every.of("checkpoint_every", checkpoint.every))
        self.path, self._description, self._extra = checkpoint.path, dict(description), dict(checkpoint.extra)
        self._versions = versions(backend)

    def write(self, weights: Any, state: dict[str, Any], finished: bool) -> None:
        """Replace the file."""
        content = self._description, self._versions, in_host_memory(weights), state, finished, self._extra
        save_checkpoint(self.path, CheckpointFile(*content))

    def announce(self, epoch: int, batch: int) -> None:
        """Say on standard error that a training that was interrupted can go on."""
        print(f"{os.fspath(self.path)}: a checkpoint of epoch {epoch + 1}, batch {batch}, was written", file=sys.stderr)


class Keeper:
    """Who keeps the checkpoints of a training: this process, which is the only one that trains."""

    def whole(self, samples: Samples) -> Whole:
        """The samples of all processes."""
        return Whole.of(samples)

    def described(self, prefix: str, samples: Samples, network: TrainableNetwork) -> dict[str, Any]:
        """What the samples are, as plain data; see `samples_described`."""
        if isinstance(samples, StreamedSamples):
            return {f"{prefix}samples": samples.description()}
        about = network.backend, network.architecture.dtype
        return samples_described(prefix, samples, self.whole(samples), *about)

    def recorder(self, checkpoint: Checkpoint, description: Mapping[str, Any], backend: str) -> Recorder:
        """What writes the training down."""
        return FileRecorder(checkpoint, description, backend)

    def found(
        self, path: str | os.PathLike[str], description: Mapping[str, Any], backend: str
    ) -> CheckpointFile | None:
        """The checkpoint that is there already, if there is one; a file that cannot be written is an error now.

        Raises
        ------
        OSError, ValueError
            The file cannot be written.
        CheckpointError
            The file holds another training than the description's, or is damaged.
        """
        check_writable(path)
        if not os.path.lexists(path):
            return None
        found = load_checkpoint(path)
        check_same(path, found, description, backend)
        return found


class Checkpoints:
    """The checkpoints of one `fit`: those that it writes, and the one that it goes on from, where there is a file.

    Parameters
    ----------
    checkpoint : Checkpoint
    network : Network
    plan : Plan
        Without a state.
    train, validation : Samples
        As they were given.
    keeper : Keeper

    Raises
    ------
    ValueError
        An argument cannot be written down, or the file cannot be written.
    CheckpointError
        The file holds another training, or is damaged.

    Attributes
    ----------
    recorder : Recorder
    found : CheckpointFile or None
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        network: TrainableNetwork,
        plan: Plan,
        train: Samples,
        validation: Samples | None,
        keeper: Keeper | None = None,
    ) -> None:
        if plan.state is not None:
            raise ValueError("state: expected None where checkpoint is given, which keeps the state")
        TrainingState(optimizer=plan.optimizer).to_dict()  # an optimizer without a plain form is refused now
        self._path, self._network, self._plan, self._over = checkpoint.path, network, plan, ""
        keeper = keeper or Keeper()
        description = described(plan, network)
        description |= same_after_reading(keeper.described("", train, network))
        if validation is not None:
            description |= same_after_reading(keeper.described("validation_", validation, network))
        self.recorder = keeper.recorder(checkpoint, description, network.backend.name)
        self.found = keeper.found(checkpoint.path, description, network.backend.name)

    def going_on(self, arguments: FitArguments) -> FitArguments:
        """The arguments of a training that goes on from the file, whose weights the network gets.

        Parameters
        ----------
        arguments : FitArguments
            Those of the whole training; also the result, where there is no file.
        """
        if self.found is None:
            return arguments
        found, plan, network = self.found, self._plan, self._network
        try:
            memories = found.state.pop("callbacks")
            state = TrainingState.from_dict(found.state)
            remind(arguments.callbacks, memories)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self._path}: the training's state cannot be read: {error}") from None
        parameters = network.parameters.flat
        self._check_vectors(state)
        parameters[...] = network.backend.asarray(found.weights)
        network.history = state.history
        left = arguments.epochs - state.epoch
        stopped_early = found.finished and not state.history.stopped.startswith("all ")
        if stopped_early or (left == 0 and found.finished):
            _log.info("%s: the training is over: %s", self._path, state.history.stopped)
            self._over = state.history.stopped
            left = 1
        elif left < 1:
            raise CheckpointError(
                f"{self._path}: epochs: expected more than the {state.epoch} that are done; got {arguments.epochs}"
            )
        else:
            _log.info("%s: the training goes on with epoch %d, batch %d", self._path, state.epoch + 1, state.batch + 1)
        schedule = plan.settings.schedule
        return replace(arguments, state=state, epochs=left, random_state=None, schedule=schedule)

    def _check_vectors(self, state: TrainingState) -> None:
        """See that everything is of the size of the network."""
        assert self.found is not None
        a = self._network.architecture
        vectors = {"weights": self.found.weights, "best_weights": state.best_weights, **state.moments}
        vectors |= {"first_weights": state.first_weights, "the next weights": state.weights}
        for name, x in vectors.items():
            if x is not None and (x.shape != (a.n_parameters,) or x.dtype != a.dtype):
                raise CheckpointError(
                    f"{self._path}: {name}: expected {a.n_parameters} numbers of {a.dtype}; got {x.shape}, {x.dtype}"
                )
        if state.generator is None or state.optimizer is None or state.first_weights is None:
            raise CheckpointError(f"{self._path}: expected a training that has begun; got one without a generator")

    def run(self, training: Training, train: Samples, validation: Samples | None) -> History:
        """Run a training and write it down; of one that is over, only its callbacks are called."""
        if not self._over:
            training.recorder = self.recorder
            return training.run(train, validation)
        assert self.found is not None
        flat = training.parameters.flat
        training.state.weights = flat.copy() if training.settings.early_stopping else None
        flat[...] = self._network.backend.asarray(self.found.weights)
        training.end_without_an_epoch(self._over)
        return training.history


def check_same(
    path: str | os.PathLike[str], found: CheckpointFile, description: Mapping[str, Any], backend: str
) -> None:
    """See that a file's training is the one described; say where only rounding may differ.

    Raises
    ------
    CheckpointError
        It is another one: what differs, by name.
    """
    names = [*description, *(name for name in found.description if name not in description)]
    differences = [
        f"{name}: {_shown(found.description.get(name))} there, {_shown(description.get(name))} here"
        for name in names
        if found.description.get(name) != description.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path}: the checkpoint is another training's: {'; '.join(differences)}. Remove the file, or choose "
            "another name, to train anew"
        )
    for name, version in versions(backend).items():
        before = found.versions.get(name)
        if before != version:
            _log.warning(
                "%s: written with %s, and now it is %s: the numbers go on to rounding, not to the bit",
                *(path, before, version),
            )


def versions(backend: str) -> dict[str, str]:
    """What the bits of a training depend on."""
    packages = {name: library_versions([name]) for name in ("fusedmlp", "numpy", "numba")}
    return packages | {"backend": f"the {backend} backend"}


def described(plan: Plan, network: TrainableNetwork) -> dict[str, Any]:
    """What a training is, as plain data, but for its samples: its architecture and settings."""
    settings = {field.name: getattr(plan.settings, field.name) for field in fields(plan.settings)}
    del settings["epochs"]
    settings["schedule"] = function_name(settings["schedule"])
    settings["gradient_phase"] = function_name(settings["gradient_phase"])
    dropout = settings["dropout"]
    settings["dropout"] = None if dropout is None else list(dropout)
    callbacks = [function_name(each) for each in plan.callbacks if not getattr(each, "only_watches", False)]
    data: dict[str, Any] = network.architecture.to_dict() | {"optimizer": repr(plan.optimizer)}
    data |= settings | {
        "validation_fraction": plan.fraction,
        "callbacks": callbacks,
        "precision": str(network.backend.precision),
    }
    return same_after_reading(data)


def same_after_reading(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data as they are read from a file: lists in place of tuples."""
    same: dict[str, Any] = json.loads(json.dumps(data))
    return same


def function_name(value: Any) -> str | None:
    """A description of a schedule or callback that is the same in every process."""
    if value is None:
        return None
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return f"{value.__module__}.{name}"
    return repr(value) if hasattr(type(value), "__dataclass_fields__") else type(value).__qualname__


def _shown(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"shape", "sha256"}:
        return f"{tuple(value['shape'])} numbers with the checksum {value['sha256']}"
    return "nothing" if value is None else str(value)
