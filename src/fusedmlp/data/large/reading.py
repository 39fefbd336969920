"""`read_large_table`: a table that is larger than memory, as a `Table` whose arrays are memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.data.coded import MISSING_CODE, CodedColumn, CodedTable
from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.conversion import table_of
from fusedmlp.data.frame_files import bytes_of, pieces_of
from fusedmlp.data.large.scratch import ArrayWriter, Scratch
from fusedmlp.data.layout import Layout, find_layout, layout_of_model
from fusedmlp.data.messages import counted
from fusedmlp.data.pieces import Pieces
from fusedmlp.data.reading import is_frame_data
from fusedmlp.data.row_names import Stretch
from fusedmlp.data.table import Schema, Table
from fusedmlp.extras import require

LARGE_BYTES = 256 * 2**20
"""A larger file is read in pieces, unless the user says otherwise."""
PIECE_BYTES = 8 * 2**20


def is_large(path: Path, limit: int = LARGE_BYTES) -> bool:
    """Whether a CSV or Parquet file, or a folder of them, holds more than so many bytes when it is not compressed."""
    return is_frame_data(path) and bytes_of(require("polars", "data", "reading CSV and Parquet"), path) > limit


def read_large_table(
    path: Path,
    target: str | None,
    scratch: Scratch,
    *,
    name: str = "table",
    choices: Choices = Choices(),  # noqa: B008 - it cannot be changed
    schema: Schema | None = None,
    require_every_target: bool = False,
    beside: int = 0,
    copies: int = 1,
    piece_bytes: int = PIECE_BYTES,
) -> Table:
    """Read a CSV or Parquet file, or a folder of them, in two passes or three, piece by piece.

    The first pass finds out what the columns hold, another one writes the values to scratch files: float64, and for
    texts the numbers of words. Where columns have many different texts that are no plain numbers, there is one more
    pass for them. The table is the one that `read_table` gives.

    Parameters
    ----------
    path : Path
    target : str or None
        As in `read_table`.
    scratch : Scratch
    name : str
        Begins the names of the files.
    choices, schema, require_every_target
        As in `find_layout`.
    beside : int
        Bytes for every number of a row that others will write to the scratch folder, for the check of its space.
    copies : int
        How many processes keep the table in scratch folders of their own.
    piece_bytes : int
        Bytes of a piece, about.

    Raises
    ------
    ValueError
        As `read_table`.
    OSError
        The scratch folder has not enough space.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    pieces = pieces_of(pl, path, piece_bytes).with_missing(choices.missing)
    layout = find_layout(pl, pieces, target, choices=choices, schema=schema, require_every_target=require_every_target)
    scratch.require(copies * _bytes_needed(layout, beside), f"the {layout.rows:,} rows of {path}, as numbers,")
    tables = tables_of(pl, pieces, layout)
    first = next(tables)
    with ExitStack() as stack:
        writer = _TableWriter(first, layout.rows, scratch, name, stack)
        writer.write(first)
        for table in tables:
            writer.write(table)
        if writer.rows != layout.rows:
            raise ValueError(
                f"{path}: the file changed while it was read: expected {layout.rows} rows; got {writer.rows}"
            )
    return replace(writer.table(first), row_names=layout.row_names)


def tables_of_model(
    path: Path,
    schema: Schema,
    notes: list[str],
    *,
    target: str | None = None,
    with_target: bool = False,
    piece_bytes: int = PIECE_BYTES,
) -> Iterator[Table]:
    """The pieces of a CSV or Parquet file, or of a folder of them, with the columns that a model was trained on.

    Parameters
    ----------
    path : Path
    schema : Schema
        That of the model.
    notes : list of str
        Takes what is to be said about rows that are left out, at the end at the latest.
    target : str, optional
        The target's column. [default: as in training]
    with_target : bool
        Whether the target is read. What its texts mean is found out in a pass over the file before.
    piece_bytes : int
        Bytes of a piece, about.

    Raises
    ------
    ValueError
        As `read_table`.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    pieces = pieces_of(pl, path, piece_bytes)
    if with_target:
        layout = find_layout(pl, pieces, target, schema=schema)
        notes += layout.notes
        yield from (table.aligned(schema) for table in tables_of(pl, pieces, layout))
        return
    rows = empty_rows = 0
    for table, empty in _converted(pl, pieces, layout_of_model(pieces, schema)):
        empty_rows += empty
        if table is not None:
            rows += len(table)
            yield table.aligned(schema)
    if not rows:
        raise ValueError(f"{path}: expected at least one row of data; got none")
    if empty_rows:
        notes.append(f"{counted(empty_rows, 'empty row')}: left out")


def tables_of(pl: Any, pieces: Pieces, layout: Layout) -> Iterator[Table]:
    """The pieces as tables, one after the other; not those without a row that is read."""
    return (table for table, _ in _converted(pl, pieces, layout) if table is not None)


def _converted(pl: Any, pieces: Pieces, layout: Layout) -> Iterator[tuple[Table | None, int]]:
    """(each piece as a table, whose rows are called as they are counted in their file; its empty rows)."""
    number, before = 0, ""
    for frame, empty, source in pieces.frames(pl):
        number, before = number if source == before else 0, source
        table = table_of(pl, frame, layout, (Stretch(0, number, source),))
        yield table, empty
        number += 0 if table is None else len(table)


def _bytes_needed(layout: Layout, beside: int) -> int:
    """How much the values of all rows need in the scratch folder, and what others write beside them."""
    numbers, words = 2, 0  # the target and the row's number
    categories = layout.categories or {}
    encoded = categories.get(layout.target, 1)
    for name in layout.columns:
        rule = layout.rules.get(name)
        different = categories.get(name)
        if different is None or (rule is not None and rule.kind != "category"):
            parts = 5 if rule is not None and rule.kind == "date" else 1
            numbers, encoded = numbers + parts, encoded + parts
        else:
            words, encoded = words + 1, encoded + different
    return layout.rows * (8 * numbers + 4 * words + beside * encoded)


class _Words:
    """The numbers of a column's words: each new one has the next number."""

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {None: MISSING_CODE}

    def codes(self, texts: list[str | None]) -> np.ndarray:
        numbers = self._numbers
        for text in dict.fromkeys(texts):
            numbers.setdefault(text, len(numbers) - 1)
        return np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts))

    @property
    def words(self) -> list[str]:
        return [word for word in self._numbers if word is not None]


class _TableWriter:
    """Writes the arrays of a table, piece by piece."""

    def __init__(self, first: Table, rows: int, scratch: Scratch, name: str, stack: ExitStack) -> None:
        self._scratch, self._name, self._rows, self._stack = scratch, name, rows, stack
        self.rows = 0
        n, k = len(first.schema.numeric), len(first.schema.text)
        self._numeric = self._writer("numbers", np.float64, n) if n else None
        self._text = self._writer("words", np.int32, k) if k else None
        self._words = [_Words() for _ in range(k)]
        self._labels = _Words()
        self._target: ArrayWriter | None = None
        if first.target is not None:
            is_text = first.target.dtype == object
            self._target = self._writer("target", np.int32 if is_text else first.target.dtype)

    def _writer(self, what: str, dtype: Any, *width: int) -> ArrayWriter:
        shape = (self._rows, *width)
        return self._stack.enter_context(self._scratch.writing(f"{self._name}-{what}", dtype, shape))

    def write(self, table: Table) -> None:
        """Write the next rows."""
        self.rows += len(table)
        if self._numeric is not None:
            self._numeric.write(table.numeric)
        if self._text is not None:
            columns = [words.codes(table.text[:, j].tolist()) for j, words in enumerate(self._words)]
            self._text.write(np.column_stack(columns))
        if self._target is not None and table.target is not None:
            target = np.asarray(table.target)
            self._target.write(self._labels.codes(target.tolist()) if target.dtype == object else target)

    def table(self, first: Table) -> Table:
        """The whole table; what was decided is that of its first piece."""
        m, scratch, name = self._rows, self._scratch, self._name
        numeric = np.empty((m, 0)) if self._numeric is None else scratch.array(f"{name}-numbers")
        codes = np.empty((m, 0), np.int32) if self._text is None else scratch.array(f"{name}-words")
        target: Any = None
        if first.target is not None:
            target = scratch.array(f"{name}-target")
            if first.target.dtype == object:
                target = CodedColumn(target, self._labels.words)
        text = CodedTable(codes, [words.words for words in self._words])
        return Table(first.source, first.schema, numeric, text, target, notes=first.notes)
