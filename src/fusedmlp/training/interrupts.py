"""Ctrl-C and SIGTERM while an engine works: seen between two batches, so that no update is cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fusedmlp.errors import TerminatedError


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
    def caught(self, terminations: bool = False) -> Iterator[None]:
        """Let Ctrl-C raise KeyboardInterrupt in `poll`, or after the block; a second one acts at once.

        Only in the main thread, and only where Ctrl-C has Python's own meaning.

        Parameters
        ----------
        terminations : bool
            SIGTERM too, as TerminatedError, where nothing else handles it.
        """
        own = {signal.SIGINT: signal.default_int_handler} | ({signal.SIGTERM: signal.SIG_DFL} if terminations else {})
        main = threading.current_thread() is threading.main_thread()
        before = {number: handler for number, handler in own.items() if main and signal.getsignal(number) is handler}
        if not before:
            yield
            return

        def remember(number: int, frame: FrameType | None) -> None:
            signal.signal(number, before[signal.Signals(number)])
            self._seen = number

        self._seen = 0
        for number in before:
            signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.poll()  # it may have come after the last one
