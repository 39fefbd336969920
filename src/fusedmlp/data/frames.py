"""CSV and Parquet files, read with polars: finds out which columns are numbers and which values are missing."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from fusedmlp.data.messages import counted, missing_values
from fusedmlp.data.table import Schema, Table, as_target, check_columns, is_number
from fusedmlp.extras import require

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None", "?")
"""Texts that stand for a missing value in a CSV file."""

SEPARATORS = (",", ";", "\t", "|")
MOST_CATEGORIES = 1000


def read_frame_table(
    path: Path,
    target: str | None = None,
    *,
    drop: Collection[str] = (),
    categorical: Collection[str] = (),
    schema: Schema | None = None,
    target_required: bool = True,
) -> Table:
    """Read a table from a CSV or Parquet file.

    Parameters
    ----------
    path : Path
        Read as Parquet if the name ends in .parquet or .pq, else as CSV.
    target : str, optional
        The target's column. By default the one of `schema`, else "target", if there is such a column.
    drop : collection of str
        Columns to leave out.
    categorical : collection of str
        Columns to read as categories, even if they look like numbers.
    schema : Schema, optional
        The schema of a trained model: only its columns are converted, and its text columns are always read as text.
    target_required : bool
        False: the table may lack the target.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    source = str(path)
    with open(path, "rb"):
        pass  # raises an OSError that names the file, if the file cannot be read; polars' own error is less clear
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    frame = _read_parquet(pl, path) if is_parquet else _read_csv(pl, path)
    if len(frame) == 0:
        raise ValueError(f"{source}: expected at least one row of data; got none")
    name = target or (schema.target if schema is not None else None) or "target"
    if name not in frame.columns and (target_required or target is not None):
        raise ValueError(
            f"target: {source}: expected the name of the target's column; "
            f"{f'there is no {target!r}' if target else 'none was given'}; the columns are {', '.join(frame.columns)}"
        )
    if schema is not None:
        check_columns(schema, frame.columns, source)
    _check_known("drop", drop, frame.columns, source)
    _check_known("categorical", categorical, frame.columns, source)
    wanted = set(frame.columns if schema is None else schema.columns) - set(drop) - {name}
    text = set(categorical) | set(schema.text if schema is not None else ())
    parsed = set(frame.columns if not is_parquet else schema.numeric if schema is not None else ()) - text
    columns = {
        c: _typed(pl, frame[c], source, as_text=c in text, parse=c in parsed) for c in frame.columns if c in wanted
    }
    if schema is None:
        _check_categories(pl, columns, source)
    y = None
    if name in frame.columns and (target_required or target is not None):
        as_text = schema is not None and schema.text_target
        y = _target(_typed(pl, frame[name], source, as_text, parse=not is_parquet and not as_text), source)
    return _table(pl, source, columns, name, y, len(frame))


def _read_csv(pl: Any, path: Path) -> Any:
    """Read every column as text; `_parsed` then looks at whole columns to find out whether they are numbers."""
    with _open(path) as file:
        try:
            header = file.readline(2**20)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: the compressed file is damaged or truncated: {error}") from None
    separator = max(SEPARATORS, key=lambda s: header.count(s.encode()))
    try:
        frame = pl.read_csv(path, infer_schema=False, separator=separator, glob=False)
    except pl.exceptions.NoDataError:
        raise ValueError(f"{path}: the file is empty; expected a line of column names, then rows") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = _first_fault(path, separator) or _first_line(error)
        raise ValueError(f"{path}: this CSV cannot be read: {reason}") from None
    names = [name.strip() for name in frame.columns]
    _check_header(names, str(path))
    frame.columns = names
    return frame.with_columns(pl.all().str.strip_chars().replace(dict.fromkeys(MISSING)))


def _open(path: Path) -> IO[bytes]:
    """Open a CSV file, decompressed."""
    return cast(IO[bytes], gzip.open(path)) if path.name.lower().endswith(".gz") else open(path, "rb")


def _first_fault(path: Path, separator: str) -> str | None:
    """Describe the first fault of a CSV file that polars refused, with its line; None if no fault is found."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return f"expected text in UTF-8; got byte 0x{line[error.start]:02x} in line {number}"
        with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, delimiter=separator)
            n = len(next(rows, ()))
            for row in rows:
                if len(row) > n:
                    return f"line {rows.line_num} has {counted(len(row), 'field')}; the first line names {n}"
    except (csv.Error, OSError, EOFError, zlib.error):
        return None
    return None


def _check_header(names: list[str], source: str) -> None:
    repeated = [name for name in names if name.rpartition("_duplicated_")[0] in names]
    if repeated or len(set(names)) < len(names):
        name = repeated[0].rpartition("_duplicated_")[0] if repeated else max(names, key=names.count)
        raise ValueError(f"{source}: expected different column names; {name!r} comes twice")
    if all(is_number(name.partition("_duplicated_")[0]) for name in names):
        raise ValueError(
            f"{source}: expected column names in the first line; got numbers ({', '.join(names[:3])}, ...)"
        )


def _read_parquet(pl: Any, path: Path) -> Any:
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file, or a truncated one: {_first_line(error)}") from None


def _typed(pl: Any, column: Any, source: str, as_text: bool, parse: bool) -> Any:
    """Convert a column to integers, floats, booleans or text. Text is parsed if `parse`."""
    dtype = column.dtype
    if dtype == pl.String:
        return _parsed(pl, column) if parse else column
    if dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if dtype == pl.Null:
        return column.cast(pl.String if as_text else pl.Float64)
    if dtype.is_decimal():
        column = column.cast(pl.Float64)
    elif not (dtype.is_numeric() or dtype == pl.Boolean):
        raise ValueError(
            f"{source}: column {column.name!r} is of type {dtype}; expected numbers, booleans or text "
            f"(drop it, or convert it to one of these)"
        )
    return column.cast(pl.String) if as_text else column


def _parsed(pl: Any, column: Any) -> Any:
    """Convert text to whole numbers, numbers or booleans, if every value that is not missing is one."""
    for dtype in (pl.Int64, pl.Float64):
        numbers = column.cast(dtype, strict=False)
        if numbers.null_count() == column.null_count():
            return numbers
    lower = column.str.to_lowercase()
    if lower.drop_nulls().is_in(["true", "false"]).all():
        return lower == "true"
    return column


def _check_categories(pl: Any, columns: dict[str, Any], source: str) -> None:
    """Refuse text columns whose values hardly repeat, such as names, identifiers and free text."""
    bad = {}
    for name, column in columns.items():
        if column.dtype == pl.String:
            n, m = column.n_unique(), len(column)
            if n > MOST_CATEGORIES or (n > 20 and n > m / 2):
                bad[name] = f"{name!r} has {n} different values in {m} rows, such as {column.drop_nulls()[0]!r}"
    if bad:
        raise ValueError(
            f"{source}: expected columns of numbers or of categories that repeat; {'; '.join(bad.values())} "
            f"(drop what is no category: {','.join(bad)})"
        )


def _target(column: Any, source: str) -> np.ndarray:
    name = f"{source}: column {column.name!r}"
    if column.null_count():
        row = column.is_null().arg_true()[0]
        raise ValueError(f"target: {name}: {missing_values(column.null_count(), row)}; expected a target in every row")
    # Without nulls, polars returns text as an array of str objects, and numbers and booleans in their own types.
    return as_target(column.to_numpy(), name)


def _table(pl: Any, source: str, columns: dict[str, Any], target: str, y: np.ndarray | None, m: int) -> Table:
    text = tuple(name for name, column in columns.items() if column.dtype == pl.String)
    numeric = tuple(name for name in columns if name not in text)
    numbers = np.empty((m, len(numeric)))
    for i, name in enumerate(numeric):
        numbers[:, i] = columns[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    words = np.empty((m, len(text)), dtype=object)
    for i, name in enumerate(text):
        words[:, i] = columns[name].to_list()
    schema = Schema(numeric, text, target=target, text_target=y is not None and y.dtype == object)
    return Table(source, schema, numbers, words, y)


def _check_known(argument: str, names: Collection[str], columns: list[str], source: str) -> None:
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise ValueError(
            f"{argument}: {source} has no column {', '.join(unknown)}; the columns are {', '.join(columns)}"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
