"""How a network is trained on a table unless the user says otherwise, on the command line and in `Predictor.train`.

The numbers were chosen by the scores on thirteen packaged tables (``python -m bench.tables``; docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fusedmlp.data.targets import ClassEncoder, TargetEncoder
from fusedmlp.model.names import ActivationName
from fusedmlp.model.optimizers import OPTIMIZERS, Optimizer, as_optimizer


class Defaults(NamedTuple):
    """What depends on what is predicted.

    Attributes
    ----------
    learning_rate : float
        Of Adam and AdamW; the others have their own.
    alpha : float
        L2 strength.
    """

    learning_rate: float
    alpha: float


CLASSES, NUMBERS = Defaults(0.0015, 0.1), Defaults(0.005, 0.01)
ADAMS = ("adam", "adamw")
ACTIVATION: ActivationName = "relu"
SCHEDULE = "cosine"
EPOCHS, BATCH_SIZE = 100, 32
EARLY_STOPPING_FRACTION = 0.1
"""Share of the rows that early stopping is judged by."""


def defaults_of(target: TargetEncoder) -> Defaults:
    """The defaults for classes, or for numbers."""
    return CLASSES if isinstance(target, ClassEncoder) else NUMBERS


def optimizer_of(name: str, learning_rate: float | None, defaults: Defaults) -> Optimizer:
    """The optimizer of a name, with a rate or its default."""
    rate = defaults.learning_rate if learning_rate is None and name in ADAMS else learning_rate
    return as_optimizer(OPTIMIZERS[name], rate)


def fitting(given: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """The arguments of `Network.fit`, with these defaults."""
    arguments: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "schedule": SCHEDULE}
    arguments |= {"alpha": defaults.alpha} | dict(given)
    optimizer = arguments.get("optimizer", "adam")
    if optimizer in ADAMS:
        arguments["optimizer"] = optimizer_of(optimizer, arguments.pop("learning_rate", None), defaults)
    if arguments.get("early_stopping") and not {"validation_data", "validation_fraction"} & set(arguments):
        arguments["validation_fraction"] = EARLY_STOPPING_FRACTION
    return arguments
