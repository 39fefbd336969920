"""CSV files, read with polars: every column as text, with a name, and no row that is shorter than the first line."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from fusedmlp.data.columns.finding import MISSING
from fusedmlp.data.idx import GZIP_MAGIC
from fusedmlp.data.messages import counted, shortened
from fusedmlp.data.table import is_number

SEPARATORS = (",", ";", "\t", "|")
_INDEX_NAMES = frozenset(
    (
        "",
        "index",
        "rownames",
        "row",
        "rowid",
        "row_id",
        "row number",
        "unnamed: 0",
        "__index_level_0__",
        "id",
        "#",
        "nr",
    )
)
"""In lower case: a column of such a name that counts the rows is left out."""


def read_csv(pl: Any, path: Path, notes: list[str]) -> tuple[Any, str]:
    """(a polars frame of texts, null where a value is missing, and the separator).

    Parameters
    ----------
    pl : module
        polars.
    path : Path
    notes : list of str
        Takes what was left out.
    """
    header = _first_line(path)
    separator = max(SEPARATORS, key=lambda s: header.count(s))
    try:
        frame = pl.read_csv(_source(path), infer_schema=False, separator=separator, glob=False)
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path}: the file is empty; expected a line of column names, then rows") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = _first_fault(path, separator) or first_line_of(error)
        raise ValueError(f"{path}: this CSV cannot be read: {reason}") from None
    _refuse_short_rows(frame, path, separator)
    try:
        names = next(csv.reader([header], delimiter=separator), [])
    except csv.Error as error:  # a carriage return within the line
        raise ValueError(f"{path}: this CSV cannot be read: {first_line_of(error)}, in line 1") from None
    if len(names) != len(frame.columns):  # a name with a line break
        names = frame.columns
    frame.columns = _column_names([name.strip() for name in names], str(path))
    frame = frame.with_columns(pl.all().str.strip_chars().replace(dict.fromkeys(MISSING)))
    return _without_empty(pl, frame, names, notes), separator


def _source(path: Path) -> Any:
    """What polars reads: the path, or the bytes of a compressed file that is not called one."""
    if is_gzip(path) and not path.name.lower().endswith(".gz"):
        with _open(path) as file, _whole(path):
            return file.read()
    return path


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed by gzip, by its content."""
    with open(path, "rb") as file:
        return file.read(2) == GZIP_MAGIC


def _open(path: Path) -> IO[bytes]:
    """Open a CSV file, decompressed."""
    return cast(IO[bytes], gzip.open(path)) if is_gzip(path) else open(path, "rb")


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Name the file that is decompressed in the block, where it is damaged."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the compressed file is damaged or truncated: {error}") from None


def _first_line(path: Path) -> str:
    with _open(path) as file, _whole(path):
        line = file.readline(2**20)
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: this CSV cannot be read: {_not_utf8(line, error, 1)}") from None


def _not_utf8(line: bytes, error: UnicodeDecodeError, number: int) -> str:
    return f"expected text in UTF-8; got byte 0x{line[error.start]:02x} in line {number}"


def first_line_of(error: BaseException) -> str:
    """The first line of an error's message."""
    return shortened(str(error).strip().partition("\n")[0], 300)


# Faults ---------------------------------------------------------------------------------------------------------------


def _first_fault(path: Path, separator: str) -> str | None:
    """Describe the first fault of a CSV file that polars refused, with its line; None if no fault is found."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return _not_utf8(line, error, number)
        return _wrong_length(path, separator)
    except (csv.Error, OSError, EOFError, zlib.error):
        return None


def _wrong_length(path: Path, separator: str) -> str | None:
    """Describe the first row that has more fields than the first line, or fewer."""
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=separator)
        n = len(next(rows, ()))
        for row in rows:
            if row and len(row) != n:
                return f"line {rows.line_num} has {counted(len(row), 'field')}; the first line names {n}"
    return None


def _refuse_short_rows(frame: Any, path: Path, separator: str) -> None:
    """polars fills short rows with nulls, without a word: look at the file itself, where that may have happened."""
    if len(frame.columns) < 2 or not frame.to_series(-1).has_nulls() or _counts_agree(path, separator, frame.width):
        return
    try:
        fault = _wrong_length(path, separator)
    except csv.Error:
        return
    if fault:
        raise ValueError(f"{path}: this CSV cannot be read: {fault}")


def _counts_agree(path: Path, separator: str, columns: int) -> bool:
    """Whether every line of a file without quotes has as many separators as its columns need."""
    with _open(path) as file:
        data = np.frombuffer(file.read(), np.uint8)
    if (data == ord('"')).any():
        return False
    ends = np.flatnonzero(data == ord("\n"))
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    marks = np.searchsorted(np.flatnonzero(data == ord(separator)), ends)
    counts = np.diff(marks, prepend=0)
    lengths = np.diff(ends, prepend=-1)
    return bool((counts[lengths > 2] == columns - 1).all())


# Names ----------------------------------------------------------------------------------------------------------------


def _column_names(names: list[str], source: str) -> list[str]:
    """The names of all columns: "column 3" for one without."""
    repeated = [name for name in names if name and names.count(name) > 1]
    if repeated:
        raise ValueError(f"{source}: expected different column names; {repeated[0]!r} comes twice")
    if all(is_number(name) for name in names):
        raise ValueError(
            f"{source}: expected column names in the first line; got numbers ({', '.join(names[:3])}, ...)"
        )
    return [name or f"column {number}" for number, name in enumerate(names, 1)]


def _without_empty(pl: Any, frame: Any, names: list[str], notes: list[str]) -> Any:
    """The frame without empty rows and without columns that have no name and no value."""
    if frame.width > 1:
        empty = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
        if empty.any():
            notes.append(f"{counted(int(empty.sum()), 'empty row')}: left out")
            frame = frame.filter(~empty)
    nameless = [c for c, name in zip(frame.columns, names, strict=True) if not name.strip()]
    empty_columns = [c for c in nameless if frame[c].null_count() == len(frame)]
    if empty_columns:
        notes.append(f"{counted(len(empty_columns), 'column')} without a name or a value: left out")
    return frame.drop(empty_columns)


def row_index(pl: Any, frame: Any) -> tuple[str, str] | None:
    """(the first column, what it is), if it only tells the rows apart; else None.

    It counts the rows from 0 or 1, and has no name or that of an index; or it has no name, and a text for every row.
    """
    if frame.width < 2 or len(frame) < 2:
        return None
    column = frame.to_series(0)
    nameless = column.name == "column 1"
    if not nameless and column.name.lower() not in _INDEX_NAMES:
        return None
    if column.dtype != pl.String and not column.dtype.is_integer():
        return None
    numbers = column.cast(pl.Int64, strict=False)
    if not numbers.has_nulls() and numbers[0] in (0, 1) and bool((numbers.diff().drop_nulls() == 1).all()):
        return column.name, "only counts the rows"
    if nameless and numbers.null_count() == len(column) and column.n_unique() == len(column):
        return column.name, "has no name, and a text for every row"
    return None
