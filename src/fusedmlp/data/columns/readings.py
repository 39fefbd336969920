"""The texts of a column read as numbers or as dates: how many have a value, and which have none.

The texts come as tables of different ones ("text", "count", "row"), as `texts.different_texts` makes them: all at once
where they are few, else piece by piece.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fusedmlp.data.columns.dates import as_dates, formats_of, has_times
from fusedmlp.data.columns.numbers import Decimal, as_written

_SIGNS_OF_NOTHING = (".", "-", "--", "---", "–", "—", "*", "**", "?", "na", "n.a.", "n.a", "n/d", "n.d.", "nil")
_WORDS_FOR_NOTHING = (
    *("none", "null", "(null)", "nan", "missing", "unknown", "unk", "undefined", "empty", "blank", "(blank)"),
    *("not available", "not known", "no data", "not applicable"),
)
_SPREADSHEET_ERRORS = ("#div/0!", "#ref!", "#value!", "#name?", "#num!", "#null!", "#n/a")
MARKERS = frozenset((*_SIGNS_OF_NOTHING, *_WORDS_FOR_NOTHING, *_SPREADSHEET_ERRORS))
"""Texts in lower case that stand for a missing value in a column that is otherwise of numbers or dates."""


class Stray(NamedTuple):
    """A text without a value, and its row."""

    row: int
    text: str


class Strays:
    """Texts to which a way of reading gives no value.

    Attributes
    ----------
    markers : list of str
        Those that stand for a missing value, in the order in which they come.
    count : int
        How often there is any of them, markers included.
    first : Stray or None
        The first that is no marker.
    """

    def __init__(self) -> None:
        self.markers: list[str] = []
        self.count = 0
        self.first: Stray | None = None

    def add(self, different: Any) -> None:
        """Take more of them into account."""
        if not len(different):
            return
        self.count += int(different["count"].sum())
        are_markers = different["text"].str.to_lowercase().is_in(list(MARKERS))
        known = set(self.markers)
        self.markers += [text for text in different["text"].filter(are_markers).to_list() if text not in known]
        others = different.filter(~are_markers)
        if self.first is None and len(others):
            self.first = Stray(others["row"][0], others["text"][0])


class AsNumbers:
    """Texts as numbers.

    Parameters
    ----------
    pl : module
        polars.
    decimal : {".", ","}
    most : int
        So many different numbers are counted, and one more.

    Attributes
    ----------
    decimal : {".", ","}
    strays : Strays
    unusual : str or None
        The first number that no program writes, such as "5 %".
    """

    def __init__(self, pl: Any, decimal: Decimal, most: int) -> None:
        self._pl, self.decimal, self._most = pl, decimal, most
        self.strays = Strays()
        self.unusual: str | None = None
        self._numbers: set[float] = set()

    def add(self, different: Any) -> None:
        """Take more texts into account."""
        numbers = as_written(self._pl, different["text"], self.decimal)
        self.strays.add(different.filter(numbers.is_null()))
        if self.are_few:
            self._numbers.update(numbers.drop_nulls().unique().head(self._most + 1).to_list())
        if self.unusual is None:
            unusual = different["text"].filter(different["text"].str.contains(r"[^\d.eE+-]") & numbers.is_not_null())
            self.unusual = unusual[0] if len(unusual) else None

    @property
    def are_few(self) -> bool:
        """Whether there are at most `most` different numbers."""
        return len(self._numbers) <= self._most


class _AsDatesOf:
    """Texts as dates of one format."""

    def __init__(self) -> None:
        self.strays, self.has_time = Strays(), False


class AsDates:
    """Texts as dates of each format that may fit.

    Parameters
    ----------
    pl : module
        polars.
    head : polars.Series
        The column's first values.
    """

    def __init__(self, pl: Any, head: Any) -> None:
        self._pl = pl
        self._formats = {date_format: _AsDatesOf() for date_format in formats_of(pl, head)}

    def add(self, different: Any) -> None:
        """Take more texts into account."""
        for date_format, found in self._formats.items():
            read = as_dates(self._pl, different["text"], date_format)
            found.strays.add(different.filter(read.is_null()))
            found.has_time = found.has_time or has_times(read)

    @property
    def best(self) -> list[str]:
        """The formats that fit the most texts; several, where day and month may change places."""
        fewest = min((found.strays.count for found in self._formats.values()), default=0)
        return [date_format for date_format, found in self._formats.items() if found.strays.count == fewest]

    def of(self, date_format: str) -> tuple[Strays, bool]:
        """(the texts that are no dates of a format, whether one of the dates is not at the start of its day)."""
        found = self._formats[date_format]
        return found.strays, found.has_time
