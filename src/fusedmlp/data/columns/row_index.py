"""Columns that only tell the rows apart: they count them, or have no name and another text in every row."""

from __future__ import annotations

from typing import Any

import numpy as np

_NAMES = frozenset(
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
"""In lower case: a first column of such a name that counts the rows is left out."""
NAMELESS = "column 1"
"""What a first column without a name is called."""


def may_be_row_index(pl: Any, column: Any) -> bool:
    """Whether a column has the name and the type of one that only tells the rows apart."""
    has_type = column.dtype == pl.String or column.dtype.is_integer()
    return has_type and (column.name == NAMELESS or column.name.lower() in _NAMES)


class RowIndex:
    """Whether a column only tells the rows apart, by all of its values so far.

    Parameters
    ----------
    pl : module
        polars.
    name : str
    """

    def __init__(self, pl: Any, name: str) -> None:
        self._pl, self._rows = pl, 0
        self._counts, self._last = True, -1
        self._is_text = name == NAMELESS
        self._hashes: list[np.ndarray] = []

    def add(self, column: Any) -> None:
        """Take the next rows into account."""
        if not len(column) or not (self._counts or self._is_text):
            return
        numbers = column.cast(self._pl.Int64, strict=False)
        self._counts = self._counts and not numbers.has_nulls() and self._goes_on(numbers)
        self._is_text = self._is_text and numbers.null_count() == len(column)
        if self._is_text:
            self._hashes.append(column.hash().to_numpy())
        self._rows += len(column)

    def _goes_on(self, numbers: Any) -> bool:
        """Whether numbers count on from the last row, or from 0 or 1."""
        first = numbers[0]
        goes_on = first in (0, 1) if not self._rows else first == self._last + 1
        self._last = numbers[-1]
        return goes_on and bool((numbers.diff().drop_nulls() == 1).all())

    @property
    def what(self) -> str | None:
        """What the column is, if it only tells the rows apart."""
        if self._rows < 2:
            return None
        if self._counts:
            return "only counts the rows"
        if self._is_text and len(np.unique(np.concatenate(self._hashes))) == self._rows:
            return "has no name, and a text for every row"
        return None
