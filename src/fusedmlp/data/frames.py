"""CSV and Parquet files and frames as tables, read with polars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.conversion import table_of
from fusedmlp.data.csv_files import CsvFile
from fusedmlp.data.layout import find_layout
from fusedmlp.data.messages import errors_alone, first_line_of
from fusedmlp.data.pieces import Pieces
from fusedmlp.data.table import Table
from fusedmlp.extras import require


def read_frame_table(path: Path, target: str | None = None, **options: Any) -> Table:
    """Read a table from a CSV or Parquet file.

    Parameters
    ----------
    path : Path
        Read as Parquet if the name ends in .parquet or .pq, else as CSV.
    target : str, optional
        The target's column. By default the one of the schema, else "target", if there is such a column.
    **options
        As `layout.find_layout` has them.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    with open(path, "rb"):
        pass  # raises an OSError that names the file, if the file cannot be read; polars' own error is less clear
    if is_parquet(path):
        return frame_table(_read_parquet(pl, path), str(path), target, **options)
    return _table(pl, CsvFile(pl, path).whole(), target, options)


def is_parquet(path: Path) -> bool:
    """Whether a file is read as Parquet, by its name."""
    return path.suffix.lower() in (".parquet", ".pq")


def frame_table(frame: Any, source: str, target: str | None = None, **options: Any) -> Table:
    """Make a table of a polars frame.

    Parameters
    ----------
    frame : polars.DataFrame
    source : str
        For messages.
    target : str, optional
        As `read_frame_table`.
    **options
        As `layout.find_layout` has them.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    return _table(pl, Pieces(source, tuple(frame.columns), "", lambda: iter([frame])), target, options)


def _table(pl: Any, pieces: Pieces, target: str | None, options: dict[str, Any]) -> Table:
    """The table of one frame."""
    pieces = pieces.with_missing(options.get("choices", Choices()).missing)
    layout = find_layout(pl, pieces, target, **options)
    ((frame, _),) = pieces.frames(pl)
    table = table_of(pl, frame, layout)
    assert table is not None  # the layout has rows
    return table


def _read_parquet(pl: Any, path: Path) -> Any:
    try:
        with errors_alone():
            return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, MemoryError) as error:
        raise ValueError(f"{path}: not a Parquet file, or a damaged one: {first_line_of(error)}") from None
