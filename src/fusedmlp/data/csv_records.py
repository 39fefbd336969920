"""The records of a CSV file: where they end. A line break within quotes ends none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

_BLOCK = 2**16
_LONGEST_RECORD = 2**26
"""Bytes: a longer record has a quote that is not closed."""


def first_record(file: IO[bytes]) -> bytes:
    """The first record of a file, its line break included."""
    data, start, quotes = b"", 0, 0
    while block := file.read(_BLOCK):
        data += block
        while (end := data.find(b"\n", start)) >= 0:
            quotes += data.count(b'"', start, end)
            start = end + 1
            if quotes % 2 == 0:
                return data[:start]
    return data


def whole_records(file: IO[bytes], size: int, source: str, first_line: int = 1) -> Iterator[tuple[bytes, int]]:
    """The rest of a file in pieces of whole records.

    Parameters
    ----------
    file : file of bytes
        At the start of a record.
    size : int
        Bytes of a piece, about; at least one record.
    source : str
        For messages.
    first_line : int
        The number of the line that begins here.

    Yields
    ------
    records : bytes
    line : int
        The number of its first line.

    Raises
    ------
    ValueError
        A record has no end.
    """
    rest, line = b"", first_line
    while block := file.read(size):
        rest += block
        end = _last_record_end(rest)
        if end:
            yield rest[:end], line
            line += rest.count(b"\n", 0, end)
            rest = rest[end:]
        elif len(rest) > _LONGEST_RECORD:
            raise ValueError(
                f"{source}: this CSV cannot be read: expected rows of at most {_LONGEST_RECORD:,} bytes; the one that "
                f"begins in line {line} is longer: a quote may not be closed"
            )
    if rest:
        yield rest, line


def _last_record_end(data: bytes) -> int:
    """Where the last record ends that is whole and not blank; 0, if there is none."""
    end = data.rfind(b"\n")
    quotes = data.count(b'"', 0, end) if end >= 0 else 0
    while end >= 0:
        before = data.rfind(b"\n", 0, end)
        if quotes % 2 == 0 and data[before + 1 : end].strip(b"\r"):
            return end + 1
        quotes -= data.count(b'"', before + 1, end)
        end = before
    return 0
