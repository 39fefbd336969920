"""The group of commands and its options. Importing it imports click only; a command is imported when it runs."""

from __future__ import annotations

import sys

import click

from fusedmlp import __version__
from fusedmlp.cli.group import CommandGroup

COMMANDS = {
    "describe": "Show how the columns of a table are read, and what they hold.",
    "train": "Train a network on a table of data, and write it to a file.",
    "resume": "Go on with a training that was interrupted, from its checkpoint.",
    "search": "Find the settings that predict a table best, by cross-validation.",
    "predict": "Predict the target of every row of a data set.",
    "evaluate": "Compare a model's predictions with the true targets.",
    "info": "Show the backends of this machine, or the content of a model file.",
    "bench-comm": "Measure how long a sum over all processes of MPI takes.",
}
"""Name -> short help. Each command is the function of that name in the module of that name, with _ for -."""


@click.group(
    name="fusedmlp",
    cls=CommandGroup,
    commands_by_name=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fusedmlp")
@click.option("-v", "--verbose", is_flag=True, help="Print on stderr which backend was chosen and why.")
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    """Multi-layer perceptrons at the speed of the hardware, on CPU and GPU.

    \b
    fusedmlp train breast-cancer --out model.safetensors --plot loss.png
    fusedmlp predict model.safetensors new_rows.csv --proba
    fusedmlp info

    Scripts that use scikit-learn's MLPClassifier or MLPRegressor run with this package's in their place, unchanged:

    \b
    python -m fusedmlp [-v] [--profile] SCRIPT.py [ARGUMENTS]
    python -m fusedmlp [-v] [--profile] -m MODULE | -c CODE | - [ARGUMENTS]

    The backend is the one that --backend names, else the one in the environment variable FUSEDMLP_BACKEND (numpy,
    numba-cpu, cupy, auto, or several in order of preference, separated by commas), else numba-cpu. If that backend
    cannot run here, the command fails: it never runs on a slower one instead.

    Exit status: 0 for success; 2 for an error, with one line on stderr; 130 after an interrupt.
    """
    if verbose or (sys.stderr is not None and sys.stderr.isatty()):
        import logging

        logging.basicConfig(format="%(message)s")
        logging.getLogger("fusedmlp" if verbose else "fusedmlp.compilation").setLevel(logging.INFO)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
