"""``fusedmlp evaluate``."""

from __future__ import annotations

import click

from fusedmlp.cli.options import DATA_HELP, backend_option
from fusedmlp.cli.report import SCORES, print_table
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.reading import read_table

HELP = f"""Compare the predictions of a MODEL that fusedmlp train wrote with the true targets of DATA.

\b
fusedmlp evaluate model.safetensors test.csv
fusedmlp evaluate model.safetensors X_test.npy --target y_test.npy

The command prints the loss. For classes it also prints the accuracy (the share of rows whose class is predicted
correctly), for numbers R² (1 is perfect, 0 is as good as the mean) and RMSE in the original units, and for poisson the
mean Poisson deviance.
{DATA_HELP}
"""


@click.command(help=HELP)
@click.argument("model")
@click.argument("data")
@click.option(
    "--target",
    metavar="COL",
    help="Place of the true targets, as for train. [default: as in the training data]",
)
@backend_option
def evaluate(model: str, data: str, target: str | None, backend: str | None) -> None:
    """Evaluate the model and print the scores."""
    predictor = Predictor.load(model, backend)
    table = read_table(data, target, schema=predictor.features.schema)
    scores = predictor.evaluate(table)
    shown = [name for name in SCORES if name in scores]
    print_table(
        ["data", "backend", "rows", "loss", *(SCORES[name].title for name in shown)],
        [
            [
                table.source,
                predictor.network.backend.name,
                str(len(table)),
                f"{scores['loss']:.4g}",
                *(SCORES[name].form(scores[name]) for name in shown),
            ]
        ],
        left=(0, 1),
    )
