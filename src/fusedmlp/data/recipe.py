"""How a network is trained on a table unless the user says otherwise, on the command line and in `Predictor.train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusedmlp.model.optimizers import OPTIMIZERS, Optimizer, as_optimizer

ADAMS = ("adam", "adamw")
ADAM_LEARNING_RATE = 0.005
"""100 epochs suffice for small tables at this rate. Adam's own 0.001, the default of `Network.fit`, takes longer."""
SCHEDULE = "cosine"
EPOCHS, BATCH_SIZE = 100, 32
ALPHA = 0.01
EARLY_STOPPING_FRACTION = 0.1
"""Share of the rows that early stopping is judged by."""


def optimizer_of(name: str, learning_rate: float | None) -> Optimizer:
    """The optimizer of a name, with a rate or its default."""
    rate = ADAM_LEARNING_RATE if learning_rate is None and name in ADAMS else learning_rate
    return as_optimizer(OPTIMIZERS[name], rate)


def fitting(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Network.fit`, with these defaults."""
    arguments: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "schedule": SCHEDULE, "alpha": ALPHA}
    arguments |= given
    optimizer = arguments.get("optimizer", "adam")
    if optimizer in ADAMS:
        arguments["optimizer"] = optimizer_of(optimizer, arguments.pop("learning_rate", None))
    if arguments.get("early_stopping") and not {"validation_data", "validation_fraction"} & set(arguments):
        arguments["validation_fraction"] = EARLY_STOPPING_FRACTION
    return arguments
