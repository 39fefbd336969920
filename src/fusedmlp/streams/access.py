"""How an engine gets the samples of a stream: as copies, window by window, or from where they lie."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.model.architecture import Architecture
from fusedmlp.streams.base import BlockStream, Piece, Stream
from fusedmlp.streams.batches import BatchReading, BatchStream
from fusedmlp.streams.order import BlockOrder, order_of_window
from fusedmlp.streams.reading import Reading, read_ahead

_CACHED_SECONDS = 2e-3
"""A block that takes longer was not in memory."""

Check = Callable[[Piece, Callable[[int], str]], None]
"""``check(piece, name)`` looks at samples that were read; ``name(row)`` says which one a row is."""

Window = tuple[Any, Any, Any, np.ndarray | None]
"""X (n1, k), Y (nL, k), weights (1, k) or None, and the columns that are meant in their order, or None."""


class Access(ABC):
    """How an engine gets the samples of a stream."""

    @abstractmethod
    def windows(
        self, size: int, first: int, seed: int | None, poll: Callable[[], None] | None = None
    ) -> Generator[tuple[Any, int]]:
        """Windows of `size` samples, from sample `first` of an epoch on: (where they are, how many they are).

        A window is valid until the next one is asked for. Close the iterator where it is not read out.

        Parameters
        ----------
        size, first : int
            `first` is a multiple of `size`.
        seed : int, optional
            Of the order of the epoch; None: as the samples lie.
        poll : callable, optional
            As in `read_ahead`.
        """

    @abstractmethod
    def samples(self, window: Any, count: int) -> Window:
        """A window as an engine takes it."""


@dataclass
class _Room:
    """Room for a window.

    Attributes
    ----------
    piece : Piece
    order : numpy.ndarray of int, optional
        In which the samples are trained on; None: as they lie.
    """

    piece: Piece
    order: np.ndarray | None = None


class Copies(Access):
    """Two rooms that windows are copied to: one is trained on while the other is filled.

    Moves X, Y and the weights of a sample twice more than training in memory does: to the room, and from there.

    Parameters
    ----------
    stream : Stream
    architecture : Architecture
    is_host : bool
        Whether the engine reads host memory; else windows are `HostMatrix` for it.
    check : Check
    """

    def __init__(self, stream: Stream, architecture: Architecture, is_host: bool, check: Check) -> None:
        self._stream, self._architecture, self._is_host, self._check = stream, architecture, is_host, check
        self._checked = _Checked(stream) if isinstance(stream, BlockStream) else None
        self._rooms: list[_Room] = []

    def windows(
        self, size: int, first: int, seed: int | None, poll: Callable[[], None] | None = None
    ) -> Generator[tuple[_Room, int]]:
        stream = self._stream
        reading: Reading[Piece]
        if self._checked is not None:
            assert isinstance(stream, BlockStream)
            reading = _Copying(stream, _Places(stream, seed, first), self._check, self._checked)
        else:
            assert isinstance(stream, BatchStream)
            reading = BatchReading(stream, first, self._check)
        return read_ahead(_Shuffled(reading, seed, first // size), self._rooms_of(size), size, poll)

    def samples(self, window: _Room, count: int) -> Window:
        arrays: list[Any] = [None if x is None else x[:count].T for x in window.piece]
        if not self._is_host:
            arrays = [None if x is None else HostMatrix(x, x.dtype) for x in arrays]
        return arrays[0], arrays[1], arrays[2], window.order

    def _rooms_of(self, size: int) -> list[_Room]:
        if not self._rooms or len(self._rooms[0].piece.X) < size:
            a, self._rooms = self._architecture, []
            widths = (a.n_inputs, a.n_outputs, 1 if self._stream.weighted else 0)
            for _ in range(2):
                room = (np.empty((size, width), a.dtype) if width else None for width in widths)
                self._rooms.append(_Room(Piece(*room)))  # type: ignore[arg-type]
        return self._rooms


class _Shuffled(Reading[_Room]):
    """A reading whose samples get the order of their window, `number` being that of the first one."""

    def __init__(self, reading: Reading[Piece], seed: int | None, number: int) -> None:
        self._reading, self._seed, self._number = reading, seed, number
        self.waits_for_others = reading.waits_for_others

    def fill(self, room: _Room, size: int, go_on: Callable[[], bool]) -> int:
        count = self._reading.fill(room.piece, size, go_on)
        room.order = order_of_window(self._seed, self._number, count)
        self._number += 1
        return count


class _Checked:
    """Which blocks of a stream were checked: they are checked once."""

    def __init__(self, stream: BlockStream) -> None:
        self._edges, self._done = stream.edges, np.zeros(len(stream.edges) - 1, bool)

    def is_done(self, start: int) -> bool:
        """Whether the block of a sample was checked."""
        return bool(self._done[self._block(start)])

    def did(self, start: int, stop: int) -> None:
        """Samples of a block were checked; only a whole block counts."""
        block = self._block(start)
        self._done[block] = stop - start == self._edges[block + 1] - self._edges[block]

    def _block(self, sample: int) -> int:
        return int(np.searchsorted(self._edges, sample, side="right")) - 1


class _Places:
    """Where the samples of an epoch's order are, a window at a time, from its place `first` on."""

    def __init__(self, stream: BlockStream, seed: int | None, first: int) -> None:
        self._stream, self._order, self._first = stream, BlockOrder(stream.edges, seed), first
        self._waits = True

    def next(self, size: int) -> Iterator[tuple[int, int]]:
        """The samples of the next window, each pair in one block.

        Where the last window was waited for, the system is asked first to read all of it; that takes as long as to go
        through a window that is in memory already.
        """
        stop = min(self._stream.m, self._first + size)
        segments = list(self._order.segments(self._first, stop))
        if self._waits:
            for segment in segments:
                self._stream.announce(*segment)
        self._first = stop
        begin = time.perf_counter()
        yield from segments
        self._waits = time.perf_counter() - begin > _CACHED_SECONDS * len(segments)


class _Copying(Reading[Piece]):
    """Copies samples of a stream."""

    def __init__(self, stream: BlockStream, places: _Places, check: Check, checked: _Checked) -> None:
        self._stream, self._places, self._check, self._checked = stream, places, check, checked

    def fill(self, room: Piece, size: int, go_on: Callable[[], bool]) -> int:
        count = 0
        for start, stop in self._places.next(size):
            if not go_on():
                break
            part = room.part(count, count + stop - start)
            self._stream.read(start, stop, part)
            if not self._checked.is_done(start):
                self._check(part, _names(self._stream, start))
                self._checked.did(start, stop)
            count += stop - start
        return count


class InPlace(Access):
    """An engine that reads arrays in host memory reads the samples where they are, a memory-mapped file too.

    Before a window is trained on, its samples are brought into memory, and are checked in the first epoch. Moves X, Y
    and the weights of a sample once, as training in memory does, and once more in the first epoch.

    Parameters
    ----------
    stream : BlockStream
    arrays : Piece
        As `BlockStream.in_place` gives it.
    check : Check
    """

    def __init__(self, stream: BlockStream, arrays: Piece, check: Check) -> None:
        self._stream, self._arrays, self._check = stream, arrays, check
        self._checked = _Checked(stream)

    def windows(
        self, size: int, first: int, seed: int | None, poll: Callable[[], None] | None = None
    ) -> Generator[tuple[np.ndarray, int]]:
        places = _Places(self._stream, seed, first)
        reading = _Fetching(self._stream, places, seed, first // size, self._look_at)
        return read_ahead(reading, [np.empty(size, np.int64) for _ in range(2)], size, poll)

    def samples(self, window: np.ndarray, count: int) -> Window:
        columns, rows, order = window[:count], slice(None), None
        first, last = int(columns[0]), int(columns[-1])
        if last - first == count - 1 and bool((np.diff(columns) == 1).all()):
            rows = slice(first, last + 1)
        else:
            order = columns
        X, Y, weight = self._arrays
        return X[rows].T, Y[rows].T, None if weight is None else weight[rows].T, order

    def _look_at(self, start: int, stop: int) -> None:
        """Bring samples of a block into memory, and check them if they were not checked."""
        stream = self._stream
        if self._checked.is_done(start):
            stream.fetch(start, stop)
            return
        place = stream.place(start)
        self._check(self._arrays.part(place, place + stop - start), _names(stream, start))
        self._checked.did(start, stop)


class _Fetching(Reading[np.ndarray]):
    """Brings samples into memory; what it writes is where they are, in the order of their window."""

    def __init__(
        self,
        stream: BlockStream,
        places: _Places,
        seed: int | None,
        number: int,
        look_at: Callable[[int, int], None],
    ) -> None:
        self._stream, self._places, self._look_at = stream, places, look_at
        self._seed, self._number = seed, number

    def fill(self, room: np.ndarray, size: int, go_on: Callable[[], bool]) -> int:
        count = 0
        for start, stop in self._places.next(size):
            if not go_on():
                break
            self._look_at(start, stop)
            place, samples = self._stream.place(start), stop - start
            room[count : count + samples] = np.arange(place, place + samples)
            count += samples
        order = order_of_window(self._seed, self._number, count)
        if order is not None:
            room[:count] = room[order]
        self._number += 1
        return count


def _names(stream: BlockStream, start: int) -> Callable[[int], str]:
    return lambda row: stream.where(start + row)
