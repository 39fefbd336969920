"""``fusedmlp resume``."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import click

from fusedmlp.cli.options import backend_option
from fusedmlp.cli.ranks import found_by_first, quiet_unless_first
from fusedmlp.cli.settings import Settings
from fusedmlp.cli.training_run import run
from fusedmlp.errors import CheckpointError
from fusedmlp.files.checkpoint_files import load_checkpoint

HELP = """Go on with a training that was interrupted.

\b
fusedmlp train houses.csv --target price --checkpoint run.safetensors
fusedmlp resume run.safetensors --out model.safetensors

CHECKPOINT is a file that fusedmlp train --checkpoint wrote. It holds the command, the state of the training and the
preprocessing; the data are read again, and must be the same. The numbers are those of a training that was not
interrupted, bit for bit on the same backend. Checkpoints go on being written to the file.

Under mpiexec the processes go on together, with any number of them: mpiexec -n 8 fusedmlp resume run.safetensors. Only
rank 0 has to see the file.
"""


@click.command(help=HELP)
@click.argument("checkpoint")
@click.option("--data", metavar="DATA", help="Where the data are now, if not where they were.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training rows in all, if more than at first.")
@backend_option
@click.option("--checkpoint-every", metavar="N", help="How often checkpoints are written. [default: as before]")
@click.option("--scratch", metavar="DIR", help="As for train. [default: as before]")
@click.option("--out", metavar="FILE", help="Write the model with its preprocessing (safetensors).")
@click.option("--plot", metavar="FILE", help="Draw the losses and the score over the epochs (.png, .svg, .pdf).")
@click.option("--metrics", metavar="FILE", help="Write a line of JSON per epoch, those before too.")
def resume(checkpoint: str, **options: Any) -> None:
    """Train on, print the results and write the files."""
    first = quiet_unless_first()
    settings = found_by_first(lambda: settings_of(checkpoint))
    changed = {name: value for name, value in options.items() if value is not None}
    settings = dataclasses.replace(settings, checkpoint=checkpoint, **changed)
    if first:
        settings.check()
    else:
        settings = dataclasses.replace(settings, out=None, plot=None, metrics=None)
    run(settings)


def settings_of(path: str | os.PathLike[str]) -> Settings:
    """The arguments of the command that wrote a checkpoint.

    Raises
    ------
    CheckpointError
        The file is damaged, or ``Network.fit`` wrote it, without a command.
    """
    command = load_checkpoint(path).extra.get("command")
    if command is None:
        raise CheckpointError(
            f"{path}: expected a checkpoint of fusedmlp train; this one goes on by the same call of fit that wrote it"
        )
    try:
        return Settings.from_dict(command)
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: the command cannot be read: {error}") from None
