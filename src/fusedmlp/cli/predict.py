"""``fusedmlp predict``."""

from __future__ import annotations

import csv
import io
import sys

import click
import numpy as np

from fusedmlp.cli.options import DATA_HELP, backend_option
from fusedmlp.cli.output_paths import check_outputs
from fusedmlp.data.messages import counted
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.reading import read_table
from fusedmlp.data.table import Table
from fusedmlp.data.targets import ClassEncoder
from fusedmlp.files.atomic import write_atomically

HELP = f"""Predict the target of every row of DATA with a MODEL that fusedmlp train wrote.

\b
fusedmlp predict model.safetensors new_rows.csv
fusedmlp predict model.safetensors new_rows.parquet --proba --out answers.csv

The output is CSV with one line per row, on stdout or in the file --out. The column "prediction" has class names as in
the training data, or numbers in their original units ("prediction_0", ... if there are several). With --proba there is
also a column "probability_CLASS" for every class.
{DATA_HELP}
DATA needs the columns of the training data. Columns with names may be in any order; other columns, the target
included, are ignored. A category that did not occur in training counts as none of the known ones. A missing value is
replaced as in training.
"""


@click.command(help=HELP)
@click.argument("model")
@click.argument("data")
@click.option("--out", metavar="FILE", help="Write the CSV here instead of to stdout.")
@click.option("--proba", is_flag=True, help="Add the probability of every class.")
@backend_option
def predict(model: str, data: str, out: str | None, proba: bool, backend: str | None) -> None:
    """Predict and write the CSV."""
    check_outputs({"--out": out}, {"MODEL": model, "DATA": data})
    if out is None and sys.stdout is None:
        raise ValueError("--out: stdout is closed; expected a file to write the predictions to")
    predictor = Predictor.load(model, backend)
    table = read_table(data, schema=predictor.features.schema, target_required=False)
    text = _as_csv(predictor, table, proba)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text.encode())
        click.echo(f"{counted(len(table), 'prediction')}: {out}")


def _as_csv(predictor: Predictor, table: Table, proba: bool) -> str:
    columns: dict[str, list[object]] = {}
    if proba:
        labels, probabilities = predictor.predict_with_proba(table)
        assert isinstance(predictor.target, ClassEncoder)  # else predict_with_proba raised
        columns["prediction"] = labels.tolist()
        for label, column in zip(predictor.target.classes, probabilities.T, strict=True):
            columns[f"probability_{label}"] = _printed(column)
    else:
        predictions = predictor.predict(table)
        if predictions.ndim == 2:
            columns |= {f"prediction_{i}": _printed(column) for i, column in enumerate(predictions.T)}
        else:
            columns["prediction"] = predictions.tolist() if predictor.is_classifier else _printed(predictions)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def _printed(column: np.ndarray) -> list[object]:
    """Format numbers with 9 digits, which distinguish any two float32 numbers."""
    return [f"{value:.9g}" for value in column.tolist()]
