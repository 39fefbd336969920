"""TrainingState: all that a training remembers from epoch to epoch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fusedmlp.checks import shown
from fusedmlp.model.activations import Array
from fusedmlp.model.optimizers import OPTIMIZERS, SGD, Adam, AdamW, Optimizer
from fusedmlp.training.history import History

Generator = np.random.Generator | np.random.RandomState
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_OPTIMIZERS = {kind.__name__: kind for kind in (SGD, Adam, AdamW)}
assert {type(optimizer).__name__ for optimizer in OPTIMIZERS.values()} == _OPTIMIZERS.keys()


@dataclass
class TrainingState:
    """Everything that a training remembers: ``fit(..., state=state)`` goes on where the last call with it stopped.

    Two calls for five epochs each give the bits of one call for ten: moments, step count, random numbers, schedule,
    validation split, history, best weights and patience live on.

    Parameters
    ----------
    planned_epochs : int, optional
        The length that schedules given by name ("step", "cosine") are laid out for. None: the epochs of each call, so
        that a training in several calls needs it for these two.

    Attributes
    ----------
    optimizer : Optimizer or None
        None until the first call.
    moments : dict of arrays of shape (n_parameters,)
    steps, epoch : int
        Optimizer steps and whole epochs done.
    batch, batch_size : int
        Batches of the next epoch that are done already, as an interruption came in its middle; and their size.
    batch_loss, batch_seconds : float
        What these batches add to the loss of that epoch, and the time that they took.
    generator : numpy.random.Generator or numpy.random.RandomState or None
        Where shuffling, the validation split and dropout's seed come from; the order of the next epoch is not drawn.
    dropout_seed : int or None
    rate_factor : float
        The product of all factors that callbacks have given the schedule's rate.
    history : History
    best_loss : float
    best_weights : array of shape (n_parameters,), optional
        The weights with that loss.
    epochs_since_best : int
    first_weights : array of shape (n_parameters,), optional
        The weights before the first epoch.
    weights : array of shape (n_parameters,), optional
        The weights that the next epoch starts from, where early stopping has put others into the network.
    training_samples, validation_samples : numpy.ndarray of int, optional
        The samples to train on, and those that were held back for validation, where a part was.
    """

    planned_epochs: int | None = None
    optimizer: Optimizer | None = None
    moments: dict[str, Array] = field(default_factory=dict)
    steps: int = 0
    epoch: int = 0
    batch: int = 0
    batch_size: int = 0
    batch_loss: float = 0.0
    batch_loss_before: float = 0.0
    batch_seconds: float = 0.0
    generator: Generator | None = None
    dropout_seed: int | None = None
    rate_factor: float = 1.0
    history: History = field(default_factory=History)
    best_loss: float = math.inf
    best_weights: Array | None = None
    epochs_since_best: int = 0
    first_weights: Array | None = None
    weights: Array | None = None
    training_samples: np.ndarray | None = None
    validation_samples: np.ndarray | None = None

    @property
    def used(self) -> bool:
        """Whether a training has begun with it."""
        return self.optimizer is not None

    def to_dict(self) -> dict[str, Any]:
        """The state as plain data: numbers, text, lists, dicts and numpy arrays.

        Raises
        ------
        ValueError
            The optimizer is not one of this package: it has no plain description.
        """
        if self.optimizer is not None and type(self.optimizer).__name__ not in _OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(_OPTIMIZERS)} to write; got {self.optimizer!r}")
        return {
            "planned_epochs": self.planned_epochs,
            "optimizer": None
            if self.optimizer is None
            else {"name": type(self.optimizer).__name__, **asdict(self.optimizer)},
            "moments": {name: in_host_memory(moment) for name, moment in self.moments.items()},
            "steps": self.steps,
            "epoch": self.epoch,
            "batch": self.batch,
            "batch_size": self.batch_size,
            "batch_loss": self.batch_loss,
            "batch_loss_before": self.batch_loss_before,
            "batch_seconds": self.batch_seconds,
            "generator": None if self.generator is None else generator_data(self.generator),
            "dropout_seed": self.dropout_seed,
            "rate_factor": self.rate_factor,
            "history": asdict(self.history),
            "best_loss": self.best_loss,
            "best_weights": _copied(self.best_weights),
            "epochs_since_best": self.epochs_since_best,
            "first_weights": _copied(self.first_weights),
            "weights": _copied(self.weights),
            "training_samples": self.training_samples,
            "validation_samples": self.validation_samples,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainingState:
        """The state that `to_dict` described.

        Raises
        ------
        ValueError, KeyError, TypeError
            The data are no such description.
        """
        _check_data(data)
        optimizer = data["optimizer"]
        if optimizer is not None:
            numbers = {name: value for name, value in optimizer.items() if name != "name"}
            optimizer = _OPTIMIZERS[optimizer["name"]](**numbers)
        generator = None if data["generator"] is None else _generator_from(data["generator"])
        return cls(**{**data, "optimizer": optimizer, "generator": generator, "history": History(**data["history"])})


_COUNTS = ("steps", "epoch", "batch", "batch_size", "epochs_since_best")
_NUMBERS = ("batch_loss", "batch_loss_before", "batch_seconds", "rate_factor", "best_loss")
_VECTORS = ("best_weights", "first_weights", "weights")
_INDICES = ("training_samples", "validation_samples")
_EPOCHS = ("loss", "validation_loss", "learning_rate", "seconds")


def _check_data(data: dict[str, Any]) -> None:
    """See that everything is of its type, as somebody may have made the file that it comes from."""
    for name in _COUNTS:
        _expect(name, data[name], isinstance(data[name], int) and data[name] >= 0, "a whole number >= 0")
    for name in _NUMBERS:
        _expect(name, data[name], isinstance(data[name], int | float), "a number")
    for name in ("planned_epochs", "dropout_seed"):
        _expect(name, data[name], isinstance(data[name], int | None), "a whole number or nothing")
    vectors = [(name, data[name]) for name in _VECTORS] + [*data["moments"].items()]
    for name, x in vectors:
        _expect(name, x, x is None or (isinstance(x, np.ndarray) and x.ndim == 1 and x.dtype.kind == "f"), "a vector")
    for name in _INDICES:
        x = data[name]
        _expect(name, x, x is None or (isinstance(x, np.ndarray) and x.ndim == 1 and x.dtype.kind in "iu"), "indices")
    for name in _EPOCHS:
        values = data["history"][name]
        plain = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
        _expect(f"history.{name}", values, plain, "a list of numbers")
    if len(data["history"]["loss"]) != data["epoch"]:
        raise ValueError(f"history: expected {data['epoch']} epochs; got {len(data['history']['loss'])}")


def _expect(name: str, value: Any, right: bool, expected: str) -> None:
    if not right:
        raise ValueError(f"{name}: expected {expected}; got {shown(value)}")


def in_host_memory(x: Array) -> np.ndarray:
    """A copy in host memory."""
    return x.get() if hasattr(x, "get") else np.array(x)


def _copied(x: Array | None) -> np.ndarray | None:
    return None if x is None else in_host_memory(x)


def generator_data(generator: Generator) -> dict[str, Any]:
    """The state of a generator as plain data."""
    if isinstance(generator, np.random.RandomState):
        return {"kind": "RandomState", "state": generator.get_state(legacy=False)}
    return {"kind": "Generator", "state": generator.bit_generator.state}


def set_generator(generator: Generator, data: dict[str, Any]) -> None:
    """Bring a generator to the state that `generator_data` described."""
    if isinstance(generator, np.random.RandomState):
        generator.set_state(data["state"])
    else:
        generator.bit_generator.state = data["state"]


def _generator_from(data: dict[str, Any]) -> Generator:
    state = data["state"]
    if data["kind"] == "RandomState":
        legacy = np.random.RandomState()
        legacy.set_state(state)
        return legacy
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise ValueError(f"generator: expected one of {', '.join(_BIT_GENERATORS)}; got {state['bit_generator']!r}")
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)
