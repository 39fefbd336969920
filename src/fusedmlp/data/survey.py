"""A survey of a table: what its columns hold and which of its rows are read, by all values, piece after piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fusedmlp.data.columns import dates
from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.columns.row_index import RowIndex, may_be_row_index
from fusedmlp.data.columns.texts import Texts
from fusedmlp.data.pieces import Pieces
from fusedmlp.data.row_names import RowNames, Stretch


class Survey:
    """What is known of a table after all of its pieces. Memory does not grow with the number of rows.

    Parameters
    ----------
    pl : module
        polars.
    pieces : Pieces
    choices : Choices
    target : str or None
        The target, where it is read: rows without one are left out.
    no_target : tuple of str
        Texts that stand for a missing value in the target alone.
    features : bool
        Whether the other columns are looked at.

    Attributes
    ----------
    rows : int
        All rows, empty rows of a file of text aside.
    kept : int
        Those with a target.
    empty_rows : int
    first_without_target : int or None
        The first row without a target.
    row_names, kept_names : RowNames
        What all rows, and those with a target, are called in messages.
    target : Texts or None
        The target, where it is one of texts.
    texts : dict of str to Texts
        The columns of text, by the rows that are kept.
    valueless : set of str
        Columns without a name and a value.
    """

    def __init__(
        self,
        pl: Any,
        pieces: Pieces,
        choices: Choices,
        target: str | None,
        no_target: Sequence[str] = (),
        features: bool = True,
    ) -> None:
        self._pl, self._pieces, self._choices = pl, pieces, choices
        self._target_name, self._no_target, self._features = target, tuple(no_target), features
        self.rows = self.kept = self.empty_rows = 0
        self.first_without_target: int | None = None
        self.row_names: RowNames = ()
        self.kept_names: RowNames = ()
        self.target: Texts | None = None
        self.texts: dict[str, Texts] = {}
        self.valueless = set(pieces.nameless)
        self.types: dict[str, Any] = {}
        self._indices: dict[str, RowIndex] = {}
        self._with_times: set[str] = set()
        with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
            for frame, empty, source in pieces.frames(pl):
                self.empty_rows += empty
                if source and (not self.row_names or self.row_names[-1].source != source):
                    self.row_names += (Stretch(self.rows, 0, source),)
                    self.kept_names += (Stretch(self.kept, 0, source),)
                self._add(frame, pool)

    def _add(self, frame: Any, pool: ThreadPoolExecutor) -> None:
        if not self.types:
            self._begin(frame)
        self.valueless = {name for name in self.valueless if frame[name].null_count() == len(frame)}
        if self.target is not None:
            self.target.add(frame[self.target.name], self.rows)
        kept = self._with_target(frame)
        if self._features:
            first_row = self.kept
            list(pool.map(lambda texts: texts.add(kept[texts.name], first_row), self.texts.values()))
            for name, index in self._indices.items():
                index.add(kept[name])
            for name in self.types:
                if self.is_date(name) and dates.has_times(local(self._pl, kept[name])):
                    self._with_times.add(name)
        self.rows += len(frame)
        self.kept += len(kept)

    def _begin(self, frame: Any) -> None:
        pl = self._pl
        self.types = dict(zip(frame.columns, frame.dtypes, strict=True))
        if self._target_name is not None and self.types[self._target_name] == pl.String:
            self.target = Texts(pl, self._target_name)
        if not self._features:
            return
        for name, dtype in self.types.items():
            if name == self._target_name:
                continue
            if dtype in (pl.String, pl.Categorical, pl.Enum):
                are_categories = not self._pieces.separator or name in self._choices.categorical
                self.texts[name] = Texts(pl, name, are_categories)
        for name in frame.columns:
            if may_be_row_index(pl, frame[name]):
                self._indices[name] = RowIndex(pl, name)

    def _with_target(self, frame: Any) -> Any:
        """The rows that have a target."""
        name = self._target_name
        if name is None:
            return frame
        column = frame[name]
        without = column.is_null()
        if self._no_target:
            without = without | column.is_in(list(self._no_target)).fill_null(False)
        if not without.any():
            return frame
        if self.first_without_target is None:
            self.first_without_target = self.rows + int(without.arg_true()[0])
        return frame.filter(~without)

    def again(self, names: Sequence[str]) -> Iterator[tuple[Any, int]]:
        """Some columns once more: frames of the rows that are kept, each with the number of its first row."""
        first_row = 0
        for frame, *_ in self._pieces.frames(self._pl):
            kept = self._with_target(frame).select(names)
            yield kept, first_row
            first_row += len(kept)

    def target_again(self, names: Sequence[str]) -> Iterator[tuple[Any, int]]:
        """The target once more, of all rows."""
        first_row = 0
        for frame, *_ in self._pieces.frames(self._pl):
            yield frame.select(names), first_row
            first_row += len(frame)

    @property
    def columns(self) -> list[str]:
        """The columns that the table has: not those without a name and a value."""
        return [name for name in self._pieces.columns if name not in self.valueless]

    def row_index(self) -> tuple[str, str] | None:
        """(the first column, what it is), if it only tells the rows apart; else None."""
        columns = self.columns
        index = self._indices.get(columns[0]) if len(columns) > 1 else None
        what = None if index is None else index.what
        return None if what is None else (columns[0], what)

    def is_date(self, name: str) -> bool:
        """Whether a column is of a type of dates."""
        return self.types[name] in (self._pl.Date, self._pl.Datetime)

    def has_times(self, name: str) -> bool:
        """Whether a column of a type of dates has times of day."""
        return name in self._with_times


def local(pl: Any, column: Any) -> Any:
    """Dates, or times of any unit and zone, as datetimes of their own clock."""
    return (column.dt.replace_time_zone(None) if column.dtype == pl.Datetime else column).cast(pl.Datetime("us"))
