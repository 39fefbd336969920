"""Phrases with numbers, for messages."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """Return "1 column", "3 columns" and the like."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def missing_values(n: int, first_row: int) -> str:
    """Say how many values are missing, and in which row the first of them is."""
    return f"{counted(n, 'value')} {'is' if n == 1 else 'are'} missing, the first in row {first_row} (counted from 0)"


def shortened(text: str, most: int = 60) -> str:
    """A text of at most so many characters: the rest of a longer one becomes "..."."""
    return text if len(text) <= most else f"{text[:most]}..."
