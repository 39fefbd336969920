"""Checks of single arguments. Each raises a ValueError that names the argument and says what was expected and given."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any

LARGEST_COUNT = 2**63 - 1
"""Counts are kept in 64-bit integers by the compiled code."""

_LONGEST_REPR = 80


def check_choice(argument: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(choices)}; got {shown(value)}")
    return value


def check_number(
    argument: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    include_low: bool = False,
    include_high: bool = False,
) -> float:
    """Return `value` as a finite float if it lies between `low` and `high`.

    Parameters
    ----------
    argument : str
        The name for the error message.
    value : real number
        An int, a float, any other `numbers.Real`, a numpy scalar or an array without axes. Not a bool, not text, not a
        Decimal, not a complex number.
    low, high : float
    include_low, include_high : bool, default False
        Whether the ends themselves are allowed.

    Raises
    ------
    ValueError
    """
    number = _as_float(value)
    above = low <= number if include_low else low < number
    below = number <= high if include_high else number < high
    if not (math.isfinite(number) and above and below):
        interval = f"{'[' if include_low else '('}{low:g}, {high:g}{']' if include_high else ')'}"
        raise ValueError(f"{argument}: expected a number in {interval}; got {shown(value)}")
    return number


def check_flag(argument: str, value: object) -> bool:
    """Return `value` as a bool if it is True or False, Python's or numpy's."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise ValueError(f"{argument}: expected True or False; got {shown(value)}")
    return bool(value)


def check_count(argument: str, value: Any, low: int = 1) -> int:
    """Return `value` as an int if it is a whole number from `low` to 2^63 - 1, of Python's or numpy's integer types."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if number < low or isinstance(value, bool) or getattr(value, "ndim", 0) != 0:
        raise ValueError(f"{argument}: expected a whole number >= {low}; got {shown(value)}")
    if number > LARGEST_COUNT:
        raise ValueError(f"{argument}: expected a whole number from {low} to {LARGEST_COUNT}; got {shown(value)}")
    return number


def shown(value: object) -> str:
    """The repr of a value for an error message, shortened. A value that has none is described by its type."""
    try:
        text = repr(value)
    except Exception:  # e.g. an int of more than 4,300 digits
        return f"an object of type {type(value).__name__} that cannot be printed"
    if len(text) <= _LONGEST_REPR:
        return text
    return f"{text[:_LONGEST_REPR]}... ({type(value).__name__}, {len(text):,} characters)"


def _as_float(value: Any) -> float:
    """`value` as a float; NaN if it is not a real number, or too large for a float."""
    if type(value) is float:
        return value
    is_scalar_array = getattr(value, "ndim", None) == 0 and getattr(value.dtype, "kind", "f") in "fiu"
    if isinstance(value, bool) or not (isinstance(value, Real) or is_scalar_array):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, ArithmeticError):
        return math.nan
