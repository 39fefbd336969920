"""Ctrl-C while an engine works: seen between two batches, so that no update is interrupted in its middle."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Remembers a Ctrl-C until it is asked for."""

    def __init__(self) -> None:
        self._seen = False

    def poll(self) -> None:
        """Raise KeyboardInterrupt if there was a Ctrl-C."""
        if self._seen:
            raise KeyboardInterrupt

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Let Ctrl-C raise KeyboardInterrupt in `poll`, or after the block; a second one acts at once.

        Only in the main thread, and only where Ctrl-C has Python's own meaning.
        """
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def remember(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._seen = True

        self._seen = False
        signal.signal(signal.SIGINT, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.poll()  # it may have come after the last one
