"""The tables of the model as the CUDA sources have them: the codes, and which rows have a CUDA function.

The sources contain no code number of their own. They include ``tables.cuh``, which is not a file: `kernel_sources` puts
the text of `header` in its place. So the codes in CUDA and in Python are the same by construction.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import RULES, Optimizer

HEADER = "tables.cuh"

CUDA_ACTIVATIONS = ("sigmoid", "tanh", "relu", "identity")
"""Activations with a CUDA function (`activation` and `derivative` in ``kernels/common.cuh``). A network with another
hidden activation runs on the composed engine, which computes it by CuPy's own functions."""

CUDA_LOSSES = (
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "squared_error",
    "poisson",
    "sum_squared_error",
)
"""Losses with a CUDA function (``kernels/losses.cuh``)."""

CUDA_RULES = ("sgd", "momentum", "nesterov", "adam", "adamw")
"""Optimizer rules with a kernel (``kernels/optimizer.cu``)."""

PROGRESS = (
    "BATCH",  # batches of this epoch that are done
    "LOSS",  # their shares in the epoch's loss, summed
    "RATE",  # the learning rate of the epoch
    "STEPS",  # optimizer steps before the epoch
    "STEP_RATE",  # the rate of the current step, with Adam's bias corrections
    "ROOT",  # √(1 - β₂ᵗ) of the current step, which AdamW's ε is multiplied by
    "FACTOR",  # what sums over the samples of the batch are multiplied by
)
"""Numbers of an epoch in device memory, float64. Captured steps read them, so that one graph serves every step."""


def covers(architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
    """Whether there are CUDA functions for the hidden activation, the loss and the optimizer's rule."""
    return (
        architecture.hidden_activation in CUDA_ACTIVATIONS
        and architecture.loss in CUDA_LOSSES
        and (optimizer is None or optimizer.rule in CUDA_RULES)
    )


def header() -> str:
    """The text of ``tables.cuh``: an enumeration for each table."""
    activations = ((name, HIDDEN_ACTIVATIONS[name].code) for name in CUDA_ACTIVATIONS)
    losses = ((name, LOSSES[name].code) for name in CUDA_LOSSES)
    rules = ((name, RULES[name]) for name in CUDA_RULES)
    progress = ((name, number) for number, name in enumerate(PROGRESS))
    tables = {"Activation": activations, "Loss": losses, "Rule": rules, "Progress": progress}
    return "\n".join(_enumeration(name, codes) for name, codes in tables.items()) + "\n"


def _enumeration(name: str, codes: Iterable[tuple[str, int]]) -> str:
    values = ", ".join(f"{entry.upper()} = {code}" for entry, code in codes)
    return f"enum {name} {{ {values} }};"
