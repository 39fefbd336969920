"""``fusedmlp train``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from fusedmlp.backends.base import OTHER_NAMES, PRECISIONS
from fusedmlp.cli.cross_validation import cross_validate
from fusedmlp.cli.members import train_members
from fusedmlp.cli.options import (
    DATA_HELP,
    HiddenSizes,
    Rates,
    backend_option,
    reading_options,
    scratch_option,
    stream_option,
)
from fusedmlp.cli.ranks import quiet_unless_first
from fusedmlp.cli.settings import Settings
from fusedmlp.cli.training_run import describe, run
from fusedmlp.data.large.reading import LARGE_BYTES
from fusedmlp.data.recipe import (
    ACTIVATION,
    ADAMS,
    BATCH_SIZE,
    CLASSES,
    EARLY_STOPPING_FRACTION,
    EPOCHS,
    NUMBERS,
    SCHEDULE,
)
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import DTYPES
from fusedmlp.model.losses import LOSSES, loss_named
from fusedmlp.model.optimizers import OPTIMIZERS, AdamW
from fusedmlp.training.schedules import SCHEDULES

SEED_LIMIT = 2**32 - 1
POSITIVE = click.FloatRange(min=0, min_open=True)

_LOSS_LINES = "\n".join(f"{loss.name:<25} {loss.formula}" for loss in LOSSES.values())

HELP = f"""Train a network on a table of data, and write it to a file.

\b
fusedmlp train breast-cancer --out model.safetensors --plot loss.png
fusedmlp train houses.csv --target price --hidden 128,64 --early-stopping
fusedmlp train digits --hidden 128 --all-backends
fusedmlp train train-images-idx3-ubyte --test-data t10k-images-idx3-ubyte
{DATA_HELP}
What a column of a CSV file holds is decided by all of its values; what is not obvious is printed, and can be settled by
options. Dates become numbers: year, day of the year, weekday, days since 1970, and the hour. Digits with leading zeros
are codes, which stay text.

Columns of numbers are standardised. Each category becomes a column of 0 and 1. A missing number becomes the mean of its
column; missing categories are one more category. All of this is computed from the training rows and kept in the model
file. The network trains on a copy of the data in --dtype. Only a .npy file of that type is used without a copy, with
--no-standardize and either --test-data or --test-fraction 0.

The target decides what is predicted. Text, booleans and up to 20 different whole numbers that repeat are classes
(binary_cross_entropy for two, else categorical_cross_entropy). Other numbers are predicted as numbers (squared_error of
the standardised target; predictions and RMSE are in the original units). --loss overrides this: poisson is for counts
and rates >= 0; sum_squared_error is for classes, or for numbers, which are then scaled to [0, 1]; huber:1.35 and
quantile:0.9 have a number, of the standardised target.

\b
Loss of one sample; J is the mean over the samples, unless they are summed:
{_LOSS_LINES}

A share of the rows, the same of every class, is held out and never trained on. The command prints one line per backend:
the loss of the training rows and of the held-out rows with the final weights, the scores on the held-out rows, samples
per second (without the first epoch, which may include compilation), and seconds of training. The engine is "fused"
where samples pass through the network in compiled code, and "composed" where array operations do layer by layer. If
another precision than strict is asked for, the line says so.

On one machine the same command gives the same numbers, bit for bit.

A table of more than {LARGE_BYTES // 2**20} MB is read in pieces: once to find out what its columns hold, once
to write the values to scratch files, from which the rows are encoded and read in training. So it may be larger than
memory.

Under mpiexec (mpiexec -n 8 fusedmlp train ...) the processes train one network together, each on its share of the rows;
--batch-size is that of all of them. With --members and --folds each process trains some of the networks. It needs
pip install 'fusedmlp[mpi]'.
"""


def _loss(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else loss_named(value).name
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("loss: ")) from None


@click.command(help=HELP)
@click.argument("data")
@click.option(
    "--target",
    metavar="COL",
    help="Column to predict. CSV, Parquet: its name [default: target]. .npy: its number (-1 is the last) or a .npy "
    "file. .npz: the name of the array [default: y]. IDX: the file of the labels [default: found by its name].",
)
@reading_options
@click.option("--test-data", metavar="DATA", help="Rows to hold out, in a data set of their own.")
@click.option("--test-target", metavar="COL", help="Target of --test-data, where it is another than --target.")
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.25,
    show_default=True,
    help="Share of the rows to hold out, where there is no --test-data; 0 for none. Keras's .npz files bring theirs.",
)
@click.option(
    "--standardize/--no-standardize",
    default=True,
    show_default=True,
    help="Scale every column of numbers to mean 0 and standard deviation 1.",
)
@click.option(
    "--hidden",
    type=HiddenSizes(),
    default="64",
    show_default=True,
    metavar="N,...",
    help="Units of the hidden layers; none: no hidden layer, which is logistic (or linear) regression.",
)
@click.option(
    "--activation",
    type=click.Choice(list(HIDDEN_ACTIVATIONS)),
    default=ACTIVATION,
    show_default=True,
    metavar="NAME",
    help=f"Activation of the hidden layers: {', '.join(HIDDEN_ACTIVATIONS)}.",
)
@click.option(
    "--loss", callback=_loss, metavar="NAME", help="See above; also such as quantile:0.9. [default: by the target]"
)
@click.option("--bias/--no-bias", default=True, show_default=True, help="With or without biases.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default=DTYPES[0],
    show_default=True,
    help="Type of the network's numbers.",
)
@click.option(
    "--optimizer",
    type=click.Choice(list(OPTIMIZERS)),
    default="adam",
    show_default=True,
    metavar="NAME",
    help=f"Rule of the steps: {', '.join(OPTIMIZERS)} (Adam with a decoupled weight decay of "
    f"{AdamW().weight_decay:g}).",
)
@click.option(
    "--learning-rate",
    type=POSITIVE,
    metavar="RATE",
    help=f"[default: {CLASSES.learning_rate:g} for classes and {NUMBERS.learning_rate:g} for numbers with "
    f"{' and '.join(ADAMS)}, {OPTIMIZERS['sgd'].learning_rate:g} otherwise]",
)
@click.option(
    "--schedule",
    type=click.Choice(list(SCHEDULES)),
    default=SCHEDULE,
    show_default=True,
    metavar="NAME",
    help=f"Course of the learning rate over the epochs: {', '.join(SCHEDULES)}.",
)
@click.option(
    "--epochs", type=click.IntRange(1), default=EPOCHS, show_default=True, help="Passes over the training rows."
)
@click.option("--batch-size", type=click.IntRange(1), default=BATCH_SIZE, show_default=True, help="Rows of one step.")
@click.option(
    "--alpha",
    type=click.FloatRange(0),
    help="L2 penalty: ½·alpha·Σ‖W‖² / (rows of the batch) is added to the loss. "
    f"[default: {CLASSES.alpha:g} for classes, {NUMBERS.alpha:g} for numbers]",
)
@click.option(
    "--clip-norm",
    type=POSITIVE,
    metavar="NORM",
    help="Largest norm of a step's gradient, L2 included: a longer gradient is scaled down to it. [default: no limit]",
)
@click.option(
    "--dropout",
    type=Rates(),
    default="0",
    metavar="RATE,...",
    help="Probability that an activation is dropped in training: one for all hidden layers; or a list, for the inputs "
    "and then each hidden layer. [default: 0]",
)
@click.option(
    "--validation-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="SHARE",
    help="Share of the training rows to compute a validation loss on after every epoch. "
    f"[default: {EARLY_STOPPING_FRACTION:g} with --early-stopping, else 0]",
)
@click.option(
    "--early-stopping",
    is_flag=True,
    help="Stop when the validation loss no longer falls, and put the best weights back.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Epochs without a lower validation loss after which --early-stopping stops.",
)
@click.option(
    "--random-state",
    type=click.IntRange(0, SEED_LIMIT),
    default=0,
    show_default=True,
    help="Seed of the split, the initial weights and the order of the rows.",
)
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, *OTHER_NAMES]),
    help="Of float32 products on a GPU: strict, within 2e-6 (high) or within 5e-4 (medium, tf32). "
    "[default: FUSEDMLP_PRECISION if it is set, else strict]",
)
@backend_option
@click.option(
    "--all-backends", is_flag=True, help="Train on every backend that can run here. --out gets the model of --backend."
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    metavar="N",
    help="Cross-validation: hold out N parts in turn, all trained at once; --out gets a model of all rows.",
)
@click.option(
    "--members",
    type=click.IntRange(2),
    metavar="N",
    help="An ensemble: N networks with other seeds, all trained at once, whose outputs are averaged.",
)
@stream_option
@scratch_option
@click.option("--out", metavar="FILE", help="Write the model with its preprocessing (safetensors).")
@click.option("--plot", metavar="FILE", help="Draw the losses and the score over the epochs (.png, .svg, .pdf).")
@click.option(
    "--metrics",
    metavar="FILE",
    help="Write a line of JSON per epoch: backend, epoch (from 1), loss, validation_loss (of the held-out rows if no "
    "rows are set aside for validation; null without both), learning_rate, seconds.",
)
@click.option(
    "--checkpoint",
    metavar="FILE",
    help="Write the training to this file from time to time, at its end, and at Ctrl-C or SIGTERM. Where the file "
    "exists, the training goes on from it; so does fusedmlp resume FILE.",
)
@click.option(
    "--checkpoint-every",
    default="1",
    show_default=True,
    metavar="N",
    help='How often: epochs; "30s", "10min" or "2h"; or "200 batches".',
)
@click.pass_context
def train(context: click.Context, folds: int | None, members: int | None, **options: Any) -> None:
    """Train, print the results and write the files."""
    settings = Settings(**options, test_fraction_is_default=not _given(context, "test_fraction"))
    if not settings.early_stopping and _given(context, "patience"):
        raise click.UsageError("--patience is for --early-stopping", context)
    if settings.test_data is not None and _given(context, "test_fraction"):
        raise click.UsageError("--test-data and --test-fraction exclude each other", context)
    if settings.test_data is None and settings.test_target is not None:
        raise click.UsageError("--test-target is for --test-data", context)
    if folds is not None:
        _exclude(
            context, "folds", "members", "test_data", "test_fraction", "all_backends", "plot", "metrics", "checkpoint"
        )
    if members is not None:
        _exclude(context, "members", "all_backends", "plot", "metrics", "checkpoint")
    if settings.checkpoint is not None:
        _exclude(context, "checkpoint", "all_backends")
    elif _given(context, "checkpoint_every"):
        raise click.UsageError("--checkpoint-every is for --checkpoint", context)
    if settings.stream and (folds is not None or members is not None):
        option = "members" if folds is None else "folds"
        raise click.UsageError(
            f"--{option} and --stream exclude each other: its networks share the rows in memory", context
        )
    with_model = settings.out is not None
    if quiet_unless_first():
        settings.check()
    else:
        settings = replace(settings, out=None, plot=None, metrics=None)
    if folds is not None:
        cross_validate(settings, folds, with_model)
        return
    if members is not None:
        train_members(settings, members, describe)
        return
    run(settings)


def _exclude(context: click.Context, option: str, *others: str) -> None:
    """Refuse options beside one that has no use for them."""
    for name in others:
        if _given(context, name):
            raise click.UsageError(f"--{option} and --{name.replace('_', '-')} exclude each other", context)


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
