"""What a column of texts holds, by the evidence of all its values, and what to tell the user about it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

from fusedmlp.data.columns import dates
from fusedmlp.data.columns.numbers import Decimal, Evidence, are_codes, evidence, parsed
from fusedmlp.data.columns.rules import ColumnRule, applied, first_refused
from fusedmlp.data.messages import counted, shortened

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None", "?")
"""Texts that stand for a missing value in any column of a CSV file."""

_SIGNS_OF_NOTHING = (".", "-", "--", "---", "–", "—", "*", "**", "?", "na", "n.a.", "n.a", "n/d", "n.d.", "nil")
_WORDS_FOR_NOTHING = (
    *("none", "null", "(null)", "nan", "missing", "unknown", "unk", "undefined", "empty", "blank", "(blank)"),
    *("not available", "not known", "no data", "not applicable"),
)
_SPREADSHEET_ERRORS = ("#div/0!", "#ref!", "#value!", "#name?", "#num!", "#null!", "#n/a")
MARKERS = frozenset((*_SIGNS_OF_NOTHING, *_WORDS_FOR_NOTHING, *_SPREADSHEET_ERRORS))
"""Texts in lower case that stand for a missing value in a column that is otherwise of numbers or dates."""

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
    decimal_comma : bool
        Whether a column has numbers that can only be read with a decimal comma.
    notes : list of str
        What was decided and is not obvious, a sentence a column.
    """

    source: str
    separator: str
    choices: Choices = field(default_factory=Choices)
    decimal_comma: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, column: Any, text: str) -> None:
        """Keep what is to be said about a column."""
        self.notes.append(f"column {column.name!r} {text}")


def find_rules(pl: Any, columns: list[Any], file: File) -> dict[str, ColumnRule]:
    """The rule of each of the columns of texts, by name.

    Parameters
    ----------
    pl : module
        polars.
    columns : list of polars.Series
        Of texts; null where a value is missing.
    file : File

    Raises
    ------
    ValueError
        A column of numbers or dates has other texts too, or it is not settled what a comma means.
    """
    found = {}
    for column in columns:
        values = column.drop_nulls()
        plain = values.cast(pl.Float64, strict=False).null_count() == 0
        found[column.name] = None if plain else evidence(values.unique())  # which kinds there are, not how many
    marks = [e for e in found.values() if e is not None]
    file.decimal_comma = any(e.decimal_comma and not e.grouping_comma for e in marks)
    return {column.name: _find_rule(pl, column, found[column.name], file) for column in columns}


def _find_rule(pl: Any, column: Any, marks: Evidence | None, file: File) -> ColumnRule:
    name, values, choices = column.name, column.drop_nulls(), file.choices
    if name in choices.categorical:
        return ColumnRule("category")
    if not len(values):
        return ColumnRule("number")
    if values.str.to_lowercase().is_in(["true", "false"]).all():
        return ColumnRule("truth value")
    codes = are_codes(values)
    if codes.any() and name not in choices.numeric and not values.str.contains(r"[.,]").any():
        example = values.filter(codes)[0]
        file.note(column, f"has codes such as {example!r} and is read as text (--numeric {name}: as numbers)")
        return ColumnRule("category")
    if marks is None:
        return ColumnRule("number")
    return (
        _find_numbers(pl, column, values, marks, file)
        or _find_dates(pl, column, values, file)
        or ColumnRule("category")
    )


# Numbers --------------------------------------------------------------------------------------------------------------


def _find_numbers(pl: Any, column: Any, values: Any, marks: Evidence, file: File) -> ColumnRule | None:
    decimal = _decimal_mark(column, values, marks, file)
    numbers = parsed(pl, values, decimal)
    strays, name = values.filter(numbers.is_null()), column.name
    wanted = name in file.choices.numeric
    share = 1 - len(strays) / len(values)
    if share == 0 and not wanted:
        return None
    markers = strays.unique(maintain_order=True).to_list()
    only_markers = all(text.lower() in MARKERS for text in markers)
    few = numbers.n_unique() - numbers.has_nulls() <= _FEW_NUMBERS
    if (strays.len() and not (wanted or share >= _HALF)) or (not only_markers and few and not wanted):
        return None
    if only_markers:
        rule = ColumnRule("number", decimal, tuple(markers))
        _note_numbers(column, values, rule, len(strays), file)
        return rule
    if share < _MOSTLY and not wanted:
        return None
    rule = ColumnRule("number", decimal, tuple(text for text in markers if text.lower() in MARKERS))
    raise _mixed(column, applied(pl, column, rule), rule, "numbers", file)


def _decimal_mark(column: Any, values: Any, marks: Evidence, file: File) -> Decimal:
    """What the numbers of a column have before their fraction."""
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
    example = values.filter(values.str.contains(r"\d,\d{3}"))[0]
    raise ValueError(
        f"{file.source}: column {column.name!r}: it is not settled whether {example!r} has a decimal comma or a "
        "separator of thousands; --decimal , or --decimal . settles it"
    )


def _note_numbers(column: Any, values: Any, rule: ColumnRule, strays: int, file: File) -> None:
    if rule.missing:
        file.note(column, f"is one of numbers; {_shown(rule.missing)}: {counted(strays, 'missing value')}")
    written = values.filter(values.str.contains(r"[^\d.eE+-]") & ~values.is_in(list(rule.missing)))
    if len(written):
        how = "a decimal comma" if rule.decimal == "," else "a decimal point"
        file.note(column, f"is one of numbers such as {written[0]!r}, with {how}")


def _shown(texts: tuple[str, ...]) -> str:
    return ", ".join(map(repr, texts[:3])) + (", ..." if len(texts) > 3 else "")


def _mixed(column: Any, read: Any, rule: ColumnRule, kind: str, file: File) -> ValueError:
    refused = first_refused(column, read, rule)
    assert refused is not None
    row, text = refused
    shown = repr(shortened(text))
    n = int((read.is_null() & column.is_not_null()).sum())
    return ValueError(
        f"{file.source}: column {column.name!r}: {len(column) - read.null_count():,} {kind}, and {shown} in row {row} "
        f"(counted from 0; {counted(n, 'such value')}); --missing {shown} if it stands for a missing value, "
        f"--categorical {column.name} for categories"
    )


# Dates ----------------------------------------------------------------------------------------------------------------


def _find_dates(pl: Any, column: Any, values: Any, file: File) -> ColumnRule | None:
    formats = dates.formats_of(pl, values)
    if not formats:
        return None
    date_format, unsettled = dates.chosen(formats, file.choices.day_first)
    read = dates.as_dates(pl, values, date_format)
    strays = values.filter(read.is_null()).unique(maintain_order=True).to_list()
    markers = tuple(text for text in strays if text.lower() in MARKERS)
    rule = ColumnRule("date", missing=markers, date_format=date_format, has_time=dates.has_times(read))
    if len(markers) < len(strays):
        if read.null_count() > (1 - _MOSTLY) * len(values):
            return None
        raise _mixed(column, applied(pl, column, rule), rule, "dates", file)
    other = "; the day could be the month as well" if unsettled else ""
    option = " (--day-first: the day before the month)" if unsettled and not file.choices.day_first else ""
    if markers:
        file.note(column, f"is one of dates; {_shown(markers)}: {counted(int(read.null_count()), 'missing value')}")
    parts = ", ".join((*dates.PARTS, *([dates.HOUR] if rule.has_time else [])))
    file.note(column, f"has dates, {dates.words_of(date_format)}{other}{option}: read as numbers, {parts}")
    return rule
