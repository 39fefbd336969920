"""``fusedmlp predict``."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from fusedmlp.cli.large_tables import reads_in_pieces
from fusedmlp.cli.options import DATA_HELP, backend_option, stream_option
from fusedmlp.cli.output import allow_every_character
from fusedmlp.cli.output_paths import check_outputs
from fusedmlp.data.large.reading import tables_of_model
from fusedmlp.data.messages import counted
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.reading import read_table
from fusedmlp.data.targets import NumberEncoder
from fusedmlp.files.atomic import write_parts_atomically

_DIGITS, _MOST_DIGITS = 9, 17

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
@stream_option
@backend_option
def predict(model: str, data: str, out: str | None, proba: bool, stream: bool | None, backend: str | None) -> None:
    """Predict and write the CSV."""
    check_outputs({"--out": out}, {"MODEL": model, "DATA": data})
    if out is None and sys.stdout is None:
        raise ValueError("--out: stdout is closed; expected a file to write the predictions to")
    predictor = Predictor.load(model, backend)
    if proba:
        predictor.class_encoder()
    notes: list[str] = []
    schema, rows = predictor.features.schema, 0
    if reads_in_pieces(data, stream):
        tables = tables_of_model(Path(data), schema, notes)
    else:
        table = read_table(data, schema=schema, target_required=False)
        notes += table.notes
        tables = iter([table])

    def texts() -> Iterator[str]:
        nonlocal rows
        for A in predictor.outputs(tables):
            yield _as_csv(predictor, A, proba, header=rows == 0)
            rows += A.shape[1]

    if out is None:
        allow_every_character("backslashreplace")
        for text in texts():
            click.echo(text, nl=False)
    else:
        write_parts_atomically(out, (text.encode() for text in texts()))
        click.echo(f"{counted(rows, 'prediction')}: {out}")
    for note in notes:  # rows that get no prediction
        click.echo(f"{data}: {note}", err=True)


def _as_csv(predictor: Predictor, A: np.ndarray, proba: bool, header: bool) -> str:
    columns: dict[str, list[object]] = {}
    predictions = predictor.target.decode(A)
    if predictions.ndim == 2:
        scales = _scales(predictor)
        columns |= {f"prediction_{i}": _printed(column, scales[i]) for i, column in enumerate(predictions.T)}
    elif predictor.is_classifier:
        columns["prediction"] = predictions.tolist()
    else:
        columns["prediction"] = _printed(predictions, _scales(predictor)[0])
    if proba:
        encoder = predictor.class_encoder()
        for label, column in zip(encoder.classes, encoder.probabilities(A).T, strict=True):
            columns[f"probability_{label}"] = _printed(column)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def _scales(predictor: Predictor) -> list[float]:
    """What an output of the network is multiplied by."""
    assert isinstance(predictor.target, NumberEncoder)
    return predictor.target.scale.tolist()


def _printed(column: np.ndarray, scale: float = np.inf) -> list[object]:
    """Format numbers with 9 digits, which distinguish any two float32 numbers; with more, where an offset has more."""
    with np.errstate(divide="ignore"):
        more = np.clip(np.ceil(np.log10(np.abs(column, dtype=np.float64) / scale)), 0, _MOST_DIGITS - _DIGITS)
    return [f"{value:.{_DIGITS + int(n)}g}" for value, n in zip(column.tolist(), more.tolist(), strict=True)]
