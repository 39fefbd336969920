"""What is wrong with a CSV file that polars refuses, or reads with rows that are too short; with the line."""

from __future__ import annotations

import csv
import io
import zlib
from typing import IO

import numpy as np

from fusedmlp.data.messages import counted


def not_utf8(line: bytes, error: UnicodeDecodeError, number: int) -> str:
    """Say which byte of a line is no text."""
    return f"expected text in UTF-8; got byte 0x{line[error.start]:02x} in line {number}"


def first_fault(file: IO[bytes], separator: str, first_line: int) -> str | None:
    """Describe the first fault of a CSV file that polars refused; None if no fault is found.

    Parameters
    ----------
    file : file of bytes
        At its start; or a part of a larger file, after the line of its names.
    separator : str
    first_line : int
        The number of the first line of `file`, for messages.
    """
    try:
        for number, line in enumerate(file, first_line):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return not_utf8(line, error, number)
        file.seek(0)
        return _wrong_length(file, separator, first_line)
    except (csv.Error, OSError, EOFError, zlib.error):
        return None


def _wrong_length(file: IO[bytes], separator: str, first_line: int) -> str | None:
    """Describe the first row that has more fields than the first line, or fewer."""
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=separator)
        n = len(next(rows, ()))
        for row in rows:
            if row and len(row) != n:
                line = first_line - 1 + rows.line_num
                return f"line {line} has {counted(len(row), 'field')}; the first line names {n}"
    return None


def short_row(data: bytes, separator: str, columns: int, first_line: int) -> str | None:
    """Describe the first row that has another number of fields than there are columns; None if there is none.

    Parameters
    ----------
    data : bytes
        A line of names, and rows.
    separator : str
    columns : int
    first_line : int
        As in `first_fault`.
    """
    if _counts_agree(data, separator, columns):
        return None
    try:
        return _wrong_length(io.BytesIO(data), separator, first_line)
    except csv.Error:
        return None


def _counts_agree(data: bytes, separator: str, columns: int) -> bool:
    """Whether every line of a file without quotes has as many separators as its columns need."""
    if b'"' in data:
        return False
    characters = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    marks = np.searchsorted(np.flatnonzero(characters == ord(separator)), ends)
    counts = np.diff(marks, prepend=0)
    lengths = np.diff(ends, prepend=-1)
    return bool((counts[lengths > 2] == columns - 1).all())
