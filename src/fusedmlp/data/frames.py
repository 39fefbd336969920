"""CSV and Parquet files and frames as tables, read with polars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.conversion import table_of
from fusedmlp.data.frame_files import pieces_of
from fusedmlp.data.layout import find_layout
from fusedmlp.data.pieces import Pieces
from fusedmlp.data.table import Table
from fusedmlp.extras import require


def read_frame_table(path: Path, target: str | None = None, **options: Any) -> Table:
    """Read a table from a CSV or Parquet file, or a folder of them, into memory.

    Parameters
    ----------
    path : Path
        As `frame_files.pieces_of` takes it.
    target : str, optional
        The target's column. By default the one of the schema, else "target", if there is such a column.
    **options
        As `layout.find_layout` has them.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    return _table(pl, pieces_of(pl, path), target, options)


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
    return _table(pl, Pieces(source, tuple(frame.columns), "", lambda: iter([(frame, "")])), target, options)


def _table(pl: Any, pieces: Pieces, target: str | None, options: dict[str, Any]) -> Table:
    """The table of all pieces together."""
    pieces = pieces.with_missing(options.get("choices", Choices()).missing)
    layout = find_layout(pl, pieces, target, **options)
    frames = [piece.frame for piece in pieces.frames(pl)]
    table = table_of(pl, frames[0] if len(frames) == 1 else pl.concat(frames), layout, layout.row_names)
    assert table is not None  # the layout has rows
    return table
