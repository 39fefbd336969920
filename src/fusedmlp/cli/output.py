"""Standard output that may fail: a reader has gone, a disk is full, an encoding lacks a character."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Output:
    """Keeps the first error of writing to standard output, for after the work that must not be lost."""

    def __init__(self) -> None:
        self._error: OSError | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Print inside of the block. After an error nothing more is written to standard output."""
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError as error:
            if self._error is None:
                self._error = error
                send_to_nowhere()

    def close(self) -> None:
        """Raise the error that was kept: a reader that has gone is none."""
        if self._error is not None and not isinstance(self._error, BrokenPipeError):
            raise self._error


def send_to_nowhere() -> None:
    """Let standard output be written to nothing, so that what its buffer holds cannot fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # it is no file
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    finally:
        os.close(nowhere)


def allow_every_character(errors: str = "replace") -> None:
    """Replace characters that the encoding of standard output lacks, such as cp1252's, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure") and "utf" not in (stream.encoding or "").lower():
            stream.reconfigure(errors=errors)
