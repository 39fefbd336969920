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

from fusedmlp.data.columns.finding import MISSING
from fusedmlp.data.csv_faults import first_fault, not_utf8, short_row
from fusedmlp.data.csv_records import first_record, whole_records
from fusedmlp.data.idx import GZIP_MAGIC
from fusedmlp.data.messages import first_line_of
from fusedmlp.data.pieces import Pieces, without_texts
from fusedmlp.data.table import is_number

SEPARATORS = (",", ";", "\t", "|")


class CsvFile:
    """A CSV file.

    Parameters
    ----------
    pl : module
        polars.
    path : Path

    Attributes
    ----------
    separator : str
    columns : tuple of str
        A name for every column: "column 3" for one without.

    Raises
    ------
    ValueError
        The file has no line of different column names.
    """

    def __init__(self, pl: Any, path: Path) -> None:
        self._pl, self._path = pl, path
        with _open(path) as file, _whole(path):
            self._header = first_record(file)
        line = self._decoded(self._header.partition(b"\n")[0])
        self.separator = max(SEPARATORS, key=lambda s: line.count(s))
        self._width = len(self._parsed(self._header, 1).columns)
        try:
            names = next(csv.reader([line], delimiter=self.separator), [])
        except csv.Error as error:  # a carriage return within the line
            raise ValueError(f"{path}: this CSV cannot be read: {first_line_of(error)}, in line 1") from None
        if len(names) != self._width:  # a name with a line break
            names = self._parsed(self._header, 1).columns
        self.columns = tuple(_column_names([name.strip() for name in names], str(path)))
        self._nameless = frozenset(c for c, name in zip(self.columns, names, strict=True) if not name.strip())

    def whole(self) -> Pieces:
        """The file as one piece."""
        frame = self._cleaned(self._read_whole())
        return self._pieces(lambda: iter([(frame, "")]))

    def in_pieces(self, size: int) -> Pieces:
        """The file in pieces of about so many bytes, of which one at a time is in memory."""
        return self._pieces(lambda: self._read_pieces(size))

    def _pieces(self, read: Any) -> Pieces:
        return Pieces(str(self._path), self.columns, self.separator, read, self._nameless)

    def _read_whole(self) -> Any:
        frame = self._parsed(self._source(), 1)
        if _may_be_short(frame):
            with _open(self._path) as file:
                self._refuse_short_rows(file.read(), 1)
        return frame

    def _read_pieces(self, size: int) -> Iterator[tuple[Any, str]]:
        with _open(self._path) as file, _whole(self._path):
            file.read(len(self._header))
            lines = self._header.count(b"\n")
            for records, line in whole_records(file, size, str(self._path), lines + 1):
                data, first_line = self._header + records, line - lines
                frame = self._parsed(data, first_line)
                if _may_be_short(frame):
                    self._refuse_short_rows(data, first_line)
                yield self._cleaned(frame), ""

    def _source(self) -> Any:
        """What polars reads: the path, or the bytes of a compressed file that is not called one."""
        if is_gzip(self._path) and not self._path.name.lower().endswith(".gz"):
            with _open(self._path) as file, _whole(self._path):
                return file.read()
        return self._path

    def _parsed(self, source: Any, first_line: int) -> Any:
        """A frame of texts; the first record has the names, and is counted as if it came right before the others."""
        pl, path = self._pl, self._path
        try:
            return pl.read_csv(source, infer_schema=False, separator=self.separator, glob=False)
        except pl.exceptions.NoDataError:
            raise ValueError(f"{path}: the file is empty; expected a line of column names, then rows") from None
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            reason = self._fault(source, first_line) or first_line_of(error)
            raise ValueError(f"{path}: this CSV cannot be read: {reason}") from None

    def _fault(self, source: Any, first_line: int) -> str | None:
        with _open(self._path) if isinstance(source, Path) else io.BytesIO(source) as file:
            return first_fault(file, self.separator, first_line)

    def _refuse_short_rows(self, data: bytes, first_line: int) -> None:
        fault = short_row(data, self.separator, self._width, first_line)
        if fault:
            raise ValueError(f"{self._path}: this CSV cannot be read: {fault}")

    def _cleaned(self, frame: Any) -> Any:
        """The frame with the file's names, and null for texts that stand for a missing value."""
        frame.columns = self.columns
        return without_texts(self._pl, frame.with_columns(self._pl.all().str.strip_chars()), MISSING)

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path}: this CSV cannot be read: {not_utf8(line, error, 1)}") from None


def _may_be_short(frame: Any) -> bool:
    """Whether rows may have been shorter than the first line: polars fills them with nulls, without a word."""
    return frame.width > 1 and frame.to_series(-1).has_nulls()


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
