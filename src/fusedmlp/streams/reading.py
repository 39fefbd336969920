"""Windows of samples, read by a thread of their own while the window before is trained on."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Room = TypeVar("Room")

_WAIT_SECONDS = 0.05
_STUCK_SECONDS = 1.0


class Reading(ABC, Generic[Room]):
    """The samples of an epoch in its order, from some sample on."""

    waits_for_others = False
    """Whether `fill` may wait for longer than a disk takes."""

    @abstractmethod
    def fill(self, room: Room, size: int, go_on: Callable[[], bool]) -> int:
        """Write the next samples into `room`.

        Parameters
        ----------
        room : Piece, or whatever the reading writes samples into
        size : int
            How many it has room for.
        go_on : callable
            Looked at from time to time; once it is False, the room is not used any more.

        Returns
        -------
        int
            How many samples were written: less than `size` only where the epoch ends with them.
        """


def read_ahead(
    reading: Reading[Room], rooms: Sequence[Room], size: int, poll: Callable[[], None] | None = None
) -> Generator[tuple[Room, int]]:
    """The windows of an epoch: (a room, how many samples it has). It is valid until the next one is asked for.

    Close the iterator where it is not read out.

    Parameters
    ----------
    reading : Reading
    rooms : sequence
        One for each window that is in memory at the same time.
    size : int
        The samples of a room.
    poll : callable, optional
        Called every 0.05 s while the reading is waited for.
    """
    free: SimpleQueue[Room] = SimpleQueue()
    ready: SimpleQueue[tuple[Room, int] | BaseException] = SimpleQueue()
    stopped = threading.Event()
    for room in rooms:
        free.put(room)

    def read() -> None:
        try:
            count = size
            while count == size and not stopped.is_set():
                room = free.get()
                if stopped.is_set():
                    return
                count = reading.fill(room, size, lambda: not stopped.is_set())
                ready.put((room, count))
        except BaseException as error:  # raised in the thread that trains
            ready.put(error)

    thread = threading.Thread(target=read, name="fusedmlp-reader", daemon=True)
    thread.start()
    try:
        count = size
        while count == size:
            window = _next(ready, poll)
            if isinstance(window, BaseException):
                raise window
            room, count = window
            if count:
                yield room, count
            free.put(room)
    finally:
        stopped.set()
        free.put(rooms[0])  # wakes the thread
        thread.join(_STUCK_SECONDS if reading.waits_for_others else None)


def _next(
    ready: SimpleQueue[tuple[Room, int] | BaseException], poll: Callable[[], None] | None
) -> tuple[Room, int] | BaseException:
    while True:
        try:
            return ready.get(timeout=_WAIT_SECONDS)
        except Empty:
            if poll is not None:
                poll()
