"""The tables of the model as the CUDA sources have them: the codes, and which rows have a CUDA function.

The sources contain no code number of their own. They include ``tables.cuh``, which is not a file: `kernel_sources` puts
the text of `header` in its place. So the codes in CUDA and in Python are the same by construction.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusedmlp.engines.crowd import End
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

LAYER = (
    *("n_in", "n_out", "rows", "columns", "narrow", "W", "pitch", "b", "flat_W", "flat_pitch", "flat_b"),
    *("a_pitch", "Z", "z_pitch"),
)
"""A layer of a `PLAN`, ints: sizes, filled up ones too; offsets in shared memory and in the flat vector, -1: none."""

PLAN = (
    "layers",
    "n_in",
    "n_out",
    "samples",  # of a tile
    "begin",  # bytes: where the numbers begin, which offsets count from
    "first",  # offset of the first moment from the parameters; -1 for none
    "second",
    "gradient",
    "X",
    "x_size",  # from one of the two tiles of X to the other; 0: there is one
    "x_pitch",
    "Y",
    "weights",
    "rows",  # the samples' numbers
    "dz",
    "parts",  # of the logits, from the blocks of a cluster
    "rooms",  # for other parts, and barriers
    "scratch",
)
"""Where a resident network lies in shared memory (``kernels/resident.cu``), ints; a `LAYER` for each layer follows."""

SOURCE = {
    "X": "const T*",
    "x_line": "Index",  # from sample to sample
    "x_step": "Index",  # from input to input
    "Y": "const T*",
    "y_line": "Index",  # from output to output
    "y_step": "Index",  # from sample to sample
    "weights": "const T*",  # of the samples, or null
    "weight_step": "Index",
    "order": "const Index*",  # the columns of X that are meant, or null
    "order_step": "Index",  # from epoch to epoch
    "samples": "Index",  # of an epoch
    "batch_size": "Index",
    "batches": "Index",  # of an epoch
}
"""Samples of a `JOB`: every field has 8 bytes."""

RECORD = {
    "loss": "double",  # of the epoch that is begun, so far
    "validation_loss": "double",  # Σ w j of its validation samples, so far
    "validation_weight": "double",  # Σ w of them
    "nanoseconds": "double",  # that it took in earlier launches
    "best_loss": "double",  # the next three as in `engines.crowd.Best`
    "epochs_since": "Index",
    "best_epoch": "Index",
    "epochs": "Index",  # that are done
    "end": "Index",  # as in `engines.crowd.End`: other than `DONE` where no epoch may follow
}
"""What a network has reached: the state of a `JOB` that outlives a launch. Every field has 8 bytes."""

JOB = {
    "theta": "T*",
    "first": "T*",
    "second": "T*",
    "train": "Source<T>",
    "validation": "Source<T>",  # without batches where there is none
    "rates": "const double*",  # the learning rate of every epoch
    "losses": "double*",  # of every epoch that is done; so are the next two
    "validation_losses": "double*",
    "nanoseconds": "double*",
    "record": "Record*",
    "best": "T*",  # the best parameters; null: neither they nor the end of the training are looked for
    "first_batch": "Index",  # counted from the first epoch on; in each, those of validation come last
    "batches": "Index",
    "steps": "Index",  # of the optimizer, before the first epoch
    "rule": "Index",
    "is_mean": "Index",  # whether J is a mean over samples
    "penalty_by_weight": "Index",
    "patience": "Index",  # as in `engines.crowd.Best`
    "tolerance": "double",
    "divisor": "double",  # divides the sums, of a mean times the batch's samples; 0: its Σ w divides them
    "loss_factor": "double",
    "alpha": "double",
    "clip_norm": "double",  # 0 for none
    "clip_epsilon": "double",
    "beta_1": "double",
    "beta_2": "double",
    "epsilon": "double",
    "decoupled": "double",
}
"""A network that ``kernels/resident.cu`` trains: every field has 8 bytes, but for the two sources."""


def covers(architecture: Architecture, optimizer: Optimizer | None = None) -> bool:
    """Whether there are CUDA functions for the hidden activation, the loss and the optimizer's rule."""
    return (
        architecture.hidden_activation in CUDA_ACTIVATIONS
        and architecture.loss in CUDA_LOSSES
        and (optimizer is None or optimizer.rule in CUDA_RULES)
    )


def header() -> str:
    """The text of ``tables.cuh``: an enumeration for each table, and the structures that the host writes."""
    activations = ((name, HIDDEN_ACTIVATIONS[name].code) for name in CUDA_ACTIVATIONS)
    losses = ((name, LOSSES[name].code) for name in CUDA_LOSSES)
    rules = ((name, RULES[name]) for name in CUDA_RULES)
    progress = ((name, number) for number, name in enumerate(PROGRESS))
    ends = ((f"end_{end.name}", end.value) for end in End)
    tables = {"Activation": activations, "Loss": losses, "Rule": rules, "Progress": progress, "End": ends}
    structures = tuple(
        _structure(*each) for each in (("Layer", dict.fromkeys(LAYER, "int")), ("Plan", dict.fromkeys(PLAN, "int")))
    )
    structures += (_structure("Record", RECORD),)
    structures += tuple("template <typename T>\n" + _structure(*each) for each in (("Source", SOURCE), ("Job", JOB)))
    enumerations = (_enumeration(name, codes) for name, codes in tables.items())
    return "\n".join(["typedef long long Index;", *enumerations, *structures]) + "\n"


def _structure(name: str, fields: dict[str, str]) -> str:
    return f"struct {name} {{ {' '.join(f'{kind} {field};' for field, kind in fields.items())} }};"


def _enumeration(name: str, codes: Iterable[tuple[str, int]]) -> str:
    values = ", ".join(f"{entry.upper()} = {code}" for entry, code in codes)
    return f"enum {name} {{ {values} }};"
