"""Numbers of things in messages."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """ "1 column", "3 columns"; an s makes the plural."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def missing_values(n: int, first_row: int) -> str:
    """How many values are missing, and where the first one is."""
    return f"{counted(n, 'value')} {'is' if n == 1 else 'are'} missing, the first in row {first_row} (counted from 0)"
