"""``fusedmlp describe``."""

from __future__ import annotations

from typing import Any

import click

from fusedmlp.cli.options import DATA_HELP, reading_options
from fusedmlp.cli.report import print_table
from fusedmlp.data.describing import describe as describe_columns
from fusedmlp.data.messages import counted, shortened
from fusedmlp.data.reading import read_table
from fusedmlp.data.table import Table

HELP = f"""Show how the columns of DATA are read, and what they hold. Nothing is trained or written.

\b
fusedmlp describe houses.csv --target price
{DATA_HELP}
The table has a line for every column: what it is read as, missing and different values, the range of numbers or the
most frequent categories, and whether it alone tells the target. Such a column may have been made from the target, or
after it.
"""


@click.command(help=HELP)
@click.argument("data")
@click.option("--target", metavar="COL", help="The column to predict, as for train. [default: target, if there is one]")
@reading_options
def describe(data: str, target: str | None, require_target: bool, **reading: Any) -> None:
    """Print the report."""
    table = _read(data, target, require_every_target=require_target, **reading)
    click.echo(f"{table.source}: {counted(len(table), 'row')}, {counted(len(table.schema.columns), 'column')}")
    for note in table.notes:
        click.echo(f"  {note}")
    click.echo()
    rows = [
        [shortened(d.name, 30), d.kind, str(d.missing), str(d.distinct), d.values, d.note]
        for d in describe_columns(table)
    ]
    print_table(["column", "read as", "missing", "different", "values", ""], rows, left=(0, 1, 4, 5))


def _read(data: str, target: str | None, **reading: Any) -> Table:
    """The table; without a target, where none is named and there is none."""
    try:
        return read_table(data, target, **reading)
    except ValueError as error:
        if target is not None or not str(error).startswith("target:"):
            raise
        return read_table(data, target_required=False, **reading)
