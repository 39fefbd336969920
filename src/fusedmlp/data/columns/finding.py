"""What a column of texts holds, by the evidence of all its values, and what to tell the user about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fusedmlp.data.columns import dates
from fusedmlp.data.columns.numbers import Decimal
from fusedmlp.data.columns.readings import AsDates, AsNumbers, Strays
from fusedmlp.data.columns.rules import ColumnRule
from fusedmlp.data.columns.texts import Texts, different_texts
from fusedmlp.data.messages import counted, shortened
from fusedmlp.data.row_names import RowNames, row_name

Again = Callable[[Sequence[str]], Iterator[tuple[Any, int]]]
"""Some columns once more: frames, each with the number of its first row."""

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None", "?")
"""Texts that stand for a missing value in any column of a CSV file."""

_MOSTLY = 0.9
"""A column with so many numbers is one of numbers: another text in it is an error."""
_HALF = 0.5
_FEW_NUMBERS = 10
"""A column of so few different numbers, and other texts, is one of categories: "0", "1", "2", "3+"."""


@dataclass(frozen=True)
class Choices:
    """What a user has settled about columns.

    Attributes
    ----------
    drop, numeric, categorical : collections of str
        Columns.
    decimal : {".", ","}, optional
    missing : collection of str
        Texts that stand for a missing value in any column.
    day_first : bool
        Where day and month may change places: the day comes first.
    """

    drop: Collection[str] = ()
    numeric: Collection[str] = ()
    categorical: Collection[str] = ()
    decimal: str | None = None
    missing: Collection[str] = ()
    day_first: bool = False

    def __post_init__(self) -> None:
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"decimal: expected '.' or ','; got {self.decimal!r}")


@dataclass
class File:
    """What the columns of a file have in common.

    Attributes
    ----------
    source : str
        For messages.
    separator : str
        Between the fields of a line; "" where there is none.
    choices : Choices
    row_names : RowNames
        What the rows are called in messages.
    decimal_comma : bool
        Whether a column has numbers that can only be read with a decimal comma.
    notes : list of str
        What was decided and is not obvious, a sentence a column.
    """

    source: str
    separator: str
    choices: Choices = field(default_factory=Choices)
    row_names: RowNames = ()
    decimal_comma: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, name: str, text: str) -> None:
        """Keep what is to be said about a column."""
        self.notes.append(f"column {name!r} {text}")


def find_rules(pl: Any, columns: Sequence[Texts], file: File, again: Again) -> dict[str, ColumnRule]:
    """The rule of each of the columns of texts, by name.

    Parameters
    ----------
    pl : module
        polars.
    columns : list of Texts
        All that they hold has been added.
    file : File
    again : callable
        Reads columns once more whose different texts are too many to be kept.

    Raises
    ------
    ValueError
        A column of numbers or dates has other texts too, or it is not settled what a comma means.
    """
    marks = [column.marks for column in columns if not column.plain]
    file.decimal_comma = any(e.decimal_comma and not e.grouping_comma for e in marks)
    readings = {column.name: _Reading(pl, column, file) for column in columns if _is_mixed(column, file)}
    unknown = [c for c in columns if c.different is None and (c.name in readings or _has_codes(c, file))]
    for column in columns:
        if column.name in readings and column.different is not None:
            readings[column.name].add(column.different)
    if unknown:
        _read_again(pl, unknown, readings, again)
    return {column.name: _find_rule(column, readings.get(column.name), file) for column in columns}


def _is_mixed(column: Texts, file: File) -> bool:
    """Whether it takes more than a look at a column to say what it holds."""
    settled = column.name in file.choices.categorical or not column.values or column.truth or column.plain
    return not (settled or _has_codes(column, file))


def _has_codes(column: Texts, file: File) -> bool:
    return column.code is not None and not column.point_or_comma and column.name not in file.choices.numeric


class _Reading:
    """A column of texts as numbers and as dates."""

    def __init__(self, pl: Any, column: Texts, file: File) -> None:
        self.dates = AsDates(pl, column.head)
        self._numbers: AsNumbers | ValueError
        try:
            self._numbers = AsNumbers(pl, _decimal_mark(column, file), _FEW_NUMBERS)
        except ValueError as error:  # it is the error of this column, and others come before
            self._numbers = error

    def add(self, different: Any) -> None:
        if isinstance(self._numbers, AsNumbers):
            self._numbers.add(different)
        self.dates.add(different)

    @property
    def numbers(self) -> AsNumbers:
        if isinstance(self._numbers, ValueError):
            raise self._numbers
        return self._numbers


def _read_again(pl: Any, columns: Sequence[Texts], readings: dict[str, _Reading], again: Again) -> None:
    """Look at columns once more, piece by piece: as numbers and dates, and how many different texts there are."""
    started = set()
    for frame, first_row in again([column.name for column in columns]):
        for column in columns:
            different = different_texts(pl, frame[column.name], first_row)
            if not len(different):
                continue
            if column.name in readings:
                readings[column.name].add(different)
            column.count(different, anew=column.name not in started)
            started.add(column.name)


def _find_rule(column: Texts, reading: _Reading | None, file: File) -> ColumnRule:
    name = column.name
    if name in file.choices.categorical:
        return ColumnRule("category")
    if not column.values:
        return ColumnRule("number")
    if column.truth:
        return ColumnRule("truth value")
    if _has_codes(column, file):
        file.note(name, f"has codes such as {column.code!r} and is read as text (--numeric {name}: as numbers)")
        return ColumnRule("category")
    if reading is None:
        return ColumnRule("number")
    numbers = _find_numbers(column, reading.numbers, file)
    return numbers or _find_dates(column, reading.dates, file) or ColumnRule("category")


# Numbers --------------------------------------------------------------------------------------------------------------


def _find_numbers(column: Texts, found: AsNumbers, file: File) -> ColumnRule | None:
    strays, name = found.strays, column.name
    wanted = name in file.choices.numeric
    share = 1 - strays.count / column.values
    if share == 0 and not wanted:
        return None
    only_markers = strays.first is None
    if strays.count and not (wanted or share >= _HALF):
        return None
    if not only_markers and found.are_few and not wanted:
        return None
    rule = ColumnRule("number", found.decimal, tuple(strays.markers))
    if only_markers:
        _note_numbers(name, found, rule, file)
        return rule
    if share < _MOSTLY and not wanted:
        return None
    raise _mixed(column, strays, "numbers", file)


def _decimal_mark(column: Texts, file: File) -> Decimal:
    """What the numbers of a column have before their fraction."""
    marks = column.marks
    if file.choices.decimal is not None:
        return cast("Decimal", file.choices.decimal)
    if marks.decimal_comma and not marks.grouping_comma:
        return ","
    if marks.grouping_comma or marks.point or not marks.either:
        return "."
    if file.decimal_comma:
        return ","
    if file.separator == ",":  # who separates fields by commas has a decimal point
        return "."
    raise ValueError(
        f"{file.source}: column {column.name!r}: it is not settled whether {column.settles_comma!r} has a decimal "
        "comma or a separator of thousands; --decimal , or --decimal . settles it"
    )


def _note_numbers(name: str, found: AsNumbers, rule: ColumnRule, file: File) -> None:
    if rule.missing:
        file.note(name, f"is one of numbers; {_shown(rule.missing)}: {counted(found.strays.count, 'missing value')}")
    if found.unusual is not None:
        how = "a decimal comma" if rule.decimal == "," else "a decimal point"
        file.note(name, f"is one of numbers such as {found.unusual!r}, with {how}")


def _shown(texts: tuple[str, ...]) -> str:
    return ", ".join(map(repr, texts[:3])) + (", ..." if len(texts) > 3 else "")


def _mixed(column: Texts, strays: Strays, kind: str, file: File) -> ValueError:
    assert strays.first is not None
    row, text = strays.first
    shown = repr(shortened(text))
    return ValueError(
        f"{file.source}: column {column.name!r}: {column.values - strays.count:,} {kind}, and {shown} in row "
        f"{row_name(file.row_names, row)} "
        f"(counted from 0; {counted(strays.count, 'such value')}); --missing {shown} if it stands for a missing value, "
        f"--categorical {column.name} for categories"
    )


# Dates ----------------------------------------------------------------------------------------------------------------


def _find_dates(column: Texts, found: AsDates, file: File) -> ColumnRule | None:
    formats = found.best
    if not formats:
        return None
    date_format, unsettled = dates.chosen(formats, file.choices.day_first)
    strays, has_time = found.of(date_format)
    rule = ColumnRule("date", missing=tuple(strays.markers), date_format=date_format, has_time=has_time)
    if strays.first is not None:
        if strays.count > (1 - _MOSTLY) * column.values:
            return None
        raise _mixed(column, strays, "dates", file)
    other = "; the day could be the month as well" if unsettled else ""
    option = " (--day-first: the day before the month)" if unsettled and not file.choices.day_first else ""
    if rule.missing:
        file.note(column.name, f"is one of dates; {_shown(rule.missing)}: {counted(strays.count, 'missing value')}")
    parts = ", ".join((*dates.PARTS, *([dates.HOUR] if has_time else [])))
    file.note(column.name, f"has dates, {dates.words_of(date_format)}{other}{option}: read as numbers, {parts}")
    return rule
