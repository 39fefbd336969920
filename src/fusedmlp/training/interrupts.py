"""Ctrl-C and SIGTERM while an engine works: seen between two batches, so that no update is cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fusedmlp.errors import TerminatedError

_asked_to_end: list[int] = []
"""The SIGTERMs that became errors. Python drops an error that is raised in some places, such as a callback of a weak
reference, which an import may be in."""


def terminate(number: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM for programs that have to tidy up: the signal becomes an error."""
    _asked_to_end.append(number)
    raise TerminatedError


@contextmanager
def terminations_raise() -> Iterator[None]:
    """Let SIGTERM raise a TerminatedError in the block, or at its end, where it would end the process at once."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    _asked_to_end.clear()
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
        _raise_dropped()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _asked_to_end.clear()


def _raise_dropped() -> None:
    if _asked_to_end:
        raise TerminatedError


class Interrupts:
    """Remembers a Ctrl-C, or a SIGTERM, until it is asked for."""

    def __init__(self) -> None:
        self._seen = 0

    def poll(self) -> None:
        """Raise KeyboardInterrupt if there was a Ctrl-C, TerminatedError if there was a SIGTERM."""
        if self._seen == signal.SIGTERM:
            raise TerminatedError
        if self._seen:
            raise KeyboardInterrupt

    @contextmanager
    def caught(
        self,
        number: int = signal.SIGINT,
        own: Any = signal.default_int_handler,
        last_poll: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """Let a signal raise its error in `poll`, or after the block; a second one acts at once.

        Only in the main thread, and only where the signal has Python's own meaning.

        Parameters
        ----------
        number : int
            Ctrl-C by default.
        own : handler
            That of the signal, where it has Python's own meaning.
        last_poll : callable, optional
            Called after the block in place of `poll`, where signals are not caught too.
        """
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(number) is not own:
            yield
            if last_poll is not None:
                last_poll()
            return

        def remember(number: int, frame: FrameType | None) -> None:
            signal.signal(number, own)
            self._seen = number

        self._seen = 0
        signal.signal(number, remember)
        try:
            yield
        finally:
            signal.signal(number, own)
        (last_poll or self.poll)()  # it may have come after the last one

    @contextmanager
    def terminations_caught(self, last_poll: Callable[[], None] | None = None) -> Iterator[None]:
        """As `caught`, of Ctrl-C and of SIGTERM."""
        own = terminate if terminations_are_errors() else signal.SIG_DFL
        _raise_dropped()
        with self.caught(signal.SIGTERM, own, last_poll), self.caught(last_poll=last_poll):
            yield


def terminations_are_errors() -> bool:
    """Whether the program handles SIGTERM by `terminate`."""
    return signal.getsignal(signal.SIGTERM) is terminate
