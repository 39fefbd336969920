"""Checks of single arguments: each raises a ValueError that names the argument, what came and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable


def check_choice(argument: str, value: object, choices: Iterable[str]) -> str:
    """`value`, if it is one of `choices`."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(choices)}; got {value!r}")
    return value


def check_number(
    argument: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    include_low: bool = False,
    include_high: bool = False,
) -> float:
    """`value` as a finite float, if it lies between `low` and `high`, ends included as told."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    above = low <= number if include_low else low < number
    below = number <= high if include_high else number < high
    if not (math.isfinite(number) and above and below):
        interval = f"{'[' if include_low else '('}{low:g}, {high:g}{']' if include_high else ')'}"
        raise ValueError(f"{argument}: expected a number in {interval}; got {value!r}")
    return number


def check_flag(argument: str, value: object) -> bool:
    """`value`, if it is True or False (numpy's will do)."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{argument}: expected True or False; got {value!r}")
    return bool(value)


def check_count(argument: str, value: int, low: int = 1) -> int:
    """`value` as an int, if it is a whole number of at least `low`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or isinstance(value, bool):
        raise ValueError(f"{argument}: expected a whole number >= {low}; got {value!r}")
    return number
