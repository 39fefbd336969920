"""``fusedmlp evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from fusedmlp.cli.large_tables import reads_in_pieces
from fusedmlp.cli.options import DATA_HELP, backend_option, stream_option
from fusedmlp.cli.output_paths import check_outputs
from fusedmlp.cli.plots import check_plotting, picture_format, plot_confusion, plot_predictions, save_figure
from fusedmlp.cli.report import SCORES, print_table
from fusedmlp.data.large.reading import tables_of_model
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.reading import read_table
from fusedmlp.data.table import Table
from fusedmlp.data.targets import ClassEncoder

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
@click.option(
    "--plot",
    metavar="FILE",
    help="Draw which classes are taken for which, or predicted against true numbers (.png, .svg, .pdf).",
)
@stream_option
@backend_option
def evaluate(
    model: str, data: str, target: str | None, plot: str | None, stream: bool | None, backend: str | None
) -> None:
    """Evaluate the model, print the scores and draw the picture."""
    if plot is not None:
        picture_format(plot)
        check_plotting()
        check_outputs({"--plot": plot}, {"MODEL": model, "DATA": data, "--target": target})
    predictor = Predictor.load(model, backend)
    schema = predictor.features.schema
    notes: list[str] = []
    if reads_in_pieces(data, stream):
        if plot is not None:
            raise ValueError(f"--plot: expected a table that is read whole (--no-stream); {data} is read in pieces")
        tables = tables_of_model(Path(data), schema, notes, target=target, with_target=True)
        rows, scores = _evaluated(predictor, tables)
    else:
        table = read_table(data, target, schema=schema)
        notes += table.notes
        rows, scores = _evaluated(predictor, iter([table]))
        if plot is not None:
            _draw(predictor, table, plot)
    for note in notes:
        click.echo(f"{data}: {note}", err=True)
    shown = [name for name in SCORES if name in scores]
    print_table(
        ["data", "backend", "rows", "loss", *(SCORES[name].title for name in shown)],
        [
            [
                data,
                predictor.network.backend.name,
                str(rows),
                f"{scores['loss']:.4g}",
                *(SCORES[name].form(scores[name]) for name in shown),
            ]
        ],
        left=(0, 1),
    )


def _evaluated(predictor: Predictor, tables: Iterator[Table]) -> tuple[int, dict[str, float]]:
    """(the number of rows, their scores)."""
    rows = 0

    def counted_tables() -> Iterator[Table]:
        nonlocal rows
        for table in tables:
            rows += len(table)
            yield table

    scores = predictor.evaluate_pieces(counted_tables())
    return rows, scores


def _draw(predictor: Predictor, table: Table, path: str) -> None:
    truth, predicted, encoder = table.require_target(), predictor.predict(table), predictor.target
    title = Path(table.source).name
    if isinstance(encoder, ClassEncoder):
        figure = plot_confusion(encoder.classes, encoder.indices(truth), encoder.indices(predicted), title)
    elif predicted.ndim == 1:
        figure = plot_predictions(encoder.columns(truth)[:, 0], predicted, title)
    else:
        raise ValueError(f"--plot: expected a model of classes or of one number; got {predicted.shape[1]} numbers")
    save_figure(figure, path)
    click.echo(f"predictions: {path}")
