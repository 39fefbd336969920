"""What the rows of a table are called in messages: by their numbers, in a folder with their file."""

from __future__ import annotations

from typing import NamedTuple


class Stretch(NamedTuple):
    """Rows of a table that follow each other in a file.

    Attributes
    ----------
    start : int
        The first of them in the table.
    number : int
        Its number in the file, from 0; rows that are left out do not count.
    source : str
        The file, where the table has several; else "".
    """

    start: int
    number: int
    source: str


RowNames = tuple[Stretch, ...]
"""Stretches in their order; none: the rows are called as they are counted."""


def row_name(names: RowNames, row: int) -> str:
    """What a row is called: "17", or "17 of folder/part-3.csv"."""
    of = next((each for each in reversed(names) if each.start <= row), Stretch(0, 0, ""))
    number = row - of.start + of.number
    return f"{number} of {of.source}" if of.source else str(number)
