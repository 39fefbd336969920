"""Dates as people write them, and the numbers that a network is given in their place."""

from __future__ import annotations

from typing import Any

import numpy as np

PARTS = ("year", "day of year", "weekday", "days")
"""What a date becomes: the year, the day of the year from 1, the weekday from 1 (Monday) to 7, and the days since the
start of 1970."""
HOUR = "hour"
"""And the hour with its fraction, where a column has times of day."""

_DAYS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%m-%d-%Y",
    "%d-%m-%Y",
    "%d-%b-%Y",
    "%d %b %Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%B %d, %Y",
    "%d.%m.%y",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d-%b-%y",
)
_TIMES = ("", " %H:%M:%S", "T%H:%M:%S", " %H:%M", "T%H:%M", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
_DAY_FIRST = {"%m/%d/%Y": "%d/%m/%Y", "%m-%d-%Y": "%d-%m-%Y", "%m/%d/%y": "%d/%m/%y"}
LOOKED_AT = 200
"""So many of a column's first values decide which formats may fit it."""
_SHAPE = r"^\d{1,4}[-/. ]([A-Za-z]{3,9}|\d{1,2})[-/. ]\d{1,4}|^[A-Za-z]{3,9} \d{1,2}, \d{4}"
_ZONE = r"(:\d{2}(?:\.\d+)?)\s*(?:Z|UTC|[+-]\d{2}:?\d{2})$"


def as_dates(pl: Any, texts: Any, date_format: str) -> Any:
    """Texts as polars datetimes; null where a text is no date of the format. A time zone at the end is left out."""
    return texts.str.replace(_ZONE, "$1").str.to_datetime(date_format, strict=False, time_unit="us")


def formats_of(pl: Any, head: Any) -> list[str]:
    """The formats that fit more than half of a column's first values, at most `LOOKED_AT` of them."""
    if not len(head) or head.str.contains(_SHAPE).mean() < 0.5:
        return []
    century = bool(head.str.contains(r"\d{4}").mean() > 0.5)
    return [
        day + time
        for day in _DAYS
        if century == ("%Y" in day)
        for time in _TIMES
        if as_dates(pl, head, day + time).null_count() < len(head) / 2
    ]


def chosen(formats: list[str], day_first: bool) -> tuple[str, bool]:
    """(one of the formats, whether another would have done as well): the month first, if that is not settled."""
    first = formats[0]
    swapped = next((first.replace(a, b) for a, b in _DAY_FIRST.items() if first.startswith(a)), None)
    if swapped in formats:
        return (str(swapped) if day_first else first), True
    return first, False


def words_of(date_format: str) -> str:
    """A format in words: "%d.%m.%Y" is "day.month.year"."""
    words = {"%Y": "year", "%y": "year", "%m": "month", "%b": "month", "%B": "month", "%d": "day"}
    text = date_format.split("%H")[0].split("%I")[0].rstrip("T ")
    for code, word in words.items():
        text = text.replace(code, word)
    return text


def part_names(name: str, has_time: bool) -> tuple[str, ...]:
    """The columns of numbers that a column of dates becomes."""
    return tuple(f"{name}: {part}" for part in (*PARTS, *([HOUR] if has_time else [])))


def parts(pl: Any, dates: Any, has_time: bool) -> np.ndarray:
    """Dates as numbers, shape (m, 4), or (m, 5) with times; NaN where a date is missing."""
    days = dates.dt.epoch("us").cast(pl.Float64) / 86_400e6
    columns = [dates.dt.year(), dates.dt.ordinal_day(), dates.dt.weekday(), days]
    if has_time:
        columns.append((days - days.floor()) * 24)
    return np.column_stack([column.cast(pl.Float64).fill_null(float("nan")).to_numpy() for column in columns])


def has_times(dates: Any) -> bool:
    """Whether a date of the column is not at the start of its day."""
    return bool(((dates.dt.hour() > 0) | (dates.dt.minute() > 0) | (dates.dt.second() > 0)).any())
