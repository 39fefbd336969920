"""A training from the command line: what it prints, and the files that it writes."""

from __future__ import annotations

import click

from fusedmlp.backends.base import PRECISIONS
from fusedmlp.cli.experiment import Prepared, Result, choose_backends, draw, prepare, train_all
from fusedmlp.cli.large_tables import opened_table
from fusedmlp.cli.output import Output
from fusedmlp.cli.report import SCORES, print_table
from fusedmlp.cli.settings import Settings
from fusedmlp.data.describing import suspicions
from fusedmlp.data.messages import counted
from fusedmlp.data.table import Table

_MOST_COLUMNS = 200


def run(settings: Settings) -> None:
    """Train, print the results and write the files."""
    backends, output = choose_backends(settings), Output()
    with opened_table(settings, output) as (table, scratch):
        data = prepare(settings, table, scratch)
        with output.kept():
            describe(settings, data)
        if scratch is not None:
            scratch.release()
        _train(settings, data, backends, output)
    output.close()


def _train(settings: Settings, data: Prepared, choice: tuple[str, list[str], dict[str, str]], output: Output) -> None:
    chosen, backends, reasons = choice
    for name, reason in reasons.items():
        click.echo(f"{name}: not available: {reason}", err=True)
    try:
        results = train_all(settings, data, backends)
    except KeyboardInterrupt:
        kept = f"; {settings.out} was not written" if settings.out else ""
        raise KeyboardInterrupt(f"interrupted in training{kept}") from None
    # The files first: what is printed may have no reader any more.
    if settings.out is not None:
        next(result for result in results if result.backend == chosen).predictor.save(settings.out)
    if settings.plot is not None:
        draw(settings, data, results)
    with output.kept():
        _print_results(results)
        for what, path in ((f"model of {chosen}", settings.out), ("loss curves", settings.plot)):
            if path is not None:
                click.echo(f"{what}: {path}")
        if settings.metrics is not None:
            click.echo(f"metrics: {settings.metrics}")


def describe(settings: Settings, data: Prepared) -> None:
    """Print how the data were understood, and which network will be trained."""
    schema, classes = data.table.schema, getattr(data.encoder, "classes", None)
    columns = counted(len(schema.numeric), "column")
    if schema.text:
        columns += f" of numbers, {len(schema.text)} of categories"
    name = repr(schema.target) if schema.named else "the target"
    outputs = data.encoder.n_outputs
    kind = f"{len(classes)} classes" if classes else "a number" if outputs == 1 else f"{outputs} numbers"
    layers = "-".join(map(str, (data.features.n_outputs, *settings.hidden, outputs)))
    click.echo(f"data:    {data.table.source}: {counted(data.n_train, 'row')} to train on, {data.n_test} held out")
    click.echo(f"         {columns}; {name} is {kind if not classes else f'one of {kind}'}")
    activation = f", {settings.activation}" if settings.hidden else ""
    for note in (*data.table.notes, *_suspicions(data.table)):
        click.echo(f"         {note}")
    if classes and not isinstance(classes[0], str | bool) and len(classes) > 2 and settings.loss is None:
        click.echo(f"         {len(classes)} different whole numbers are classes; --loss squared_error: numbers")
    click.echo(f"network: {layers}{activation}, {data.loss}, {settings.dtype}")
    click.echo()


def _suspicions(table: Table) -> list[str]:
    """Columns of a CSV or Parquet file that tell the target by themselves."""
    return suspicions(table) if table.schema.rules and len(table.schema.columns) <= _MOST_COLUMNS else []


def _print_results(results: list[Result]) -> None:
    """Print the table of results, a row per backend."""
    shown = [name for name in SCORES if name in results[0].scores]
    with_precision = any(result.precision != PRECISIONS[0] for result in results)
    titles = ["backend", "engine", *(["precision"] if with_precision else []), "epochs", "training loss"]
    if results[0].scores:
        titles += ["held-out loss", *(f"held-out {SCORES[name].title}" for name in shown)]
    rows = []
    for result in results:
        history = result.history
        row = [result.backend, result.engine, *([result.precision] if with_precision else [])]
        row += [str(history.epochs), f"{result.training_loss:.4g}"]
        if result.scores:
            row += [f"{result.scores['loss']:.4g}", *(SCORES[name].form(result.scores[name]) for name in shown)]
        rows.append([*row, f"{history.samples_per_second:,.0f}", f"{sum(history.seconds):.2f}"])
    print_table([*titles, "samples/s", "seconds"], rows, left=(0, 1, 2) if with_precision else (0, 1))
