"""Phrases with numbers, for messages; and one line in place of what a library writes before it fails."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def counted(n: int, noun: str) -> str:
    """Return "1 column", "3 columns" and the like."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def missing_values(n: int, first_row: str) -> str:
    """Say how many values are missing, and in which row the first of them is."""
    return f"{counted(n, 'value')} {'is' if n == 1 else 'are'} missing, the first in row {first_row} (counted from 0)"


def shortened(text: str, most: int = 60) -> str:
    """A text of at most so many characters: the rest of a longer one becomes "..."."""
    return text if len(text) <= most else f"{text[:most]}..."


def first_line_of(error: BaseException) -> str:
    """The first line of an error's message."""
    return shortened(str(error).strip().partition("\n")[0], 300)


@contextmanager
def errors_alone() -> Iterator[None]:
    """What is written to standard error inside of the block comes at its end, and not at all after an exception.

    A panic of polars writes a stack trace before it is an exception. The process's standard error is replaced for it.
    """
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as file:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        os.write(2, file.read())
