"""Samples from main memory to the GPU while it computes.

Three things go on at a time: threads of the host gather pieces of chunk i + 1 into pinned memory, the GPU's copy engine
moves pieces of it on a stream of its own, and the current stream computes on chunk i.

- There are two rooms on the GPU, for chunks of even and of odd number. Copies into one wait for the event `used`: the
  passes over the chunk before the last are done. Passes wait for `filled`: all pieces have arrived.
- A piece's pinned memory is used again once the event `copied` says that it was read.
- A piece is a run of contiguous numbers in the room, so that a copy is one call whatever the memory order.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np

from fusedmlp.engines.feeding import Feeder, HostMatrix, Part
from fusedmlp.model.activations import Array

_MOST_WORKERS = 8


class Staging:
    """Pinned memory for a piece; `copied` says that the GPU has read what was last put into it."""

    def __init__(self, cupy: Any, n_bytes: int) -> None:
        self._memory = cupy.cuda.alloc_pinned_memory(n_bytes)
        self.bytes = np.frombuffer(self._memory, np.uint8, n_bytes)
        # Threads that wait for it sleep.
        self.copied = cupy.cuda.Event(block=True, disable_timing=True)


class Room:
    """A place on the GPU for a chunk of several matrices, and who may touch it when."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._flats: dict[int, Array] = {}
        self.used = cupy.cuda.Event(disable_timing=True)
        self.filled = cupy.cuda.Event(disable_timing=True)

    def enlarge(self, matrices: Sequence[HostMatrix | None], samples: int) -> None:
        """Make it large enough for so many samples."""
        for i, x in enumerate(matrices):
            size = 0 if x is None else x.shape[0] * samples
            if x is not None and (i not in self._flats or self._flats[i].size < size):
                self._flats.pop(i, None)
                self._flats[i] = self._cupy.empty((size,), x.dtype)
                # Memory from CuPy's pool is free once the current stream has got here, and not before.
                self.used.record(self._cupy.cuda.get_current_stream())

    def flat(self, i: int, x: HostMatrix, samples: int) -> Array:
        """Where that many samples of matrix number i lie, line by line."""
        return self._flats[i][: x.shape[0] * samples]

    def matrix(self, i: int, x: HostMatrix, samples: int) -> Array:
        """The same as (n, samples)."""
        flat, n = self.flat(i, x, samples), x.shape[0]
        return flat.reshape(samples, n).T if x.by_sample else flat.reshape(n, samples)


class StreamedFeeder(Feeder):
    """Brings chunks to the GPU while the chunk before is at work; used by one thread at a time.

    Parameters
    ----------
    cupy : module
    """

    staging_bytes: ClassVar[int] = 16 * 2**20
    """Large enough that starting a copy costs nothing beside it, small enough that the first one starts early."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._copies = cupy.cuda.Stream(non_blocking=True)
        workers = min(_MOST_WORKERS, _cores())
        runtime = cupy.cuda.runtime
        self._pool = ThreadPoolExecutor(
            workers, "fusedmlp-feeder", initializer=runtime.setDevice, initargs=(runtime.getDevice(),)
        )
        # One more than threads: a piece is gathered while another is still on its way.
        self._idle: SimpleQueue[Staging] = SimpleQueue()
        for _ in range(workers + 1):
            self._idle.put(Staging(cupy, self.staging_bytes))
        self._rooms = Room(cupy), Room(cupy)

    def feed(self, matrices: Sequence[HostMatrix | None], chunks: Sequence[slice]) -> Generator[Part]:
        """Every chunk; its arrays hold until the next one is asked for. Close the iterator where it is not read out."""
        most = max(chunk.stop - chunk.start for chunk in chunks)
        for room, _ in zip(self._rooms, chunks, strict=False):
            room.enlarge(matrices, most)
        filling: list[Future[None]] = []
        try:
            filling = self._fill(self._rooms[0], matrices, chunks[0])
            for number, chunk in enumerate(chunks):
                room, size = self._rooms[number % 2], chunk.stop - chunk.start
                for piece in filling:
                    piece.result()
                stream = self._cupy.cuda.get_current_stream()
                room.filled.record(self._copies)
                stream.wait_event(room.filled)
                if number + 1 < len(chunks):
                    filling = self._fill(self._rooms[1 - number % 2], matrices, chunks[number + 1])
                try:
                    yield chunk, [x if x is None else room.matrix(i, x, size) for i, x in enumerate(matrices)]
                finally:
                    room.used.record(stream)
        finally:
            # Whatever happened: nothing reads the caller's arrays or writes to a room after this.
            wait(filling)
            self._copies.synchronize()

    def release(self) -> None:
        """Let go of the rooms on the GPU; nothing is under way between feeds."""
        self._rooms = Room(self._cupy), Room(self._cupy)

    def _fill(self, room: Room, matrices: Sequence[HostMatrix | None], chunk: slice) -> list[Future[None]]:
        """Start filling a room; it is filled when all of these are done, and the copies that they started."""
        self._copies.wait_event(room.used)
        return [
            self._pool.submit(self._bring, x, room.flat(i, x, chunk.stop - chunk.start), *piece)
            for i, x in enumerate(matrices)
            if x is not None
            for piece in pieces(x, chunk, self.staging_bytes)
        ]

    def _bring(self, x: HostMatrix, flat: Array, rows: slice, samples: slice, start: int) -> None:
        """Gather a piece into pinned memory, and start its copy to `flat`, from number `start` on."""
        staging = self._idle.get()
        try:
            staging.copied.synchronize()
            shape = rows.stop - rows.start, samples.stop - samples.start
            count = shape[0] * shape[1]
            numbers = staging.bytes[: count * x.dtype.itemsize].view(x.dtype)
            x.write(rows, samples, numbers.reshape(shape[::-1]).T if x.by_sample else numbers.reshape(shape))
            target = flat[start : start + count]
            target.data.copy_from_host_async(numbers.ctypes.data, numbers.nbytes, self._copies)
            staging.copied.record(self._copies)
        finally:
            self._idle.put(staging)


def pieces(x: HostMatrix, chunk: slice, n_bytes: int) -> Iterator[tuple[slice, slice, int]]:
    """(rows, samples, start): pieces of at most `n_bytes` that lie together, `start` numbers into the chunk.

    Some whole lines each; where a line is too long, parts of one. A line is a sample, or, unless `x.by_sample`, a row.
    """
    n, size = x.shape[0], chunk.stop - chunk.start
    lines, length = (size, n) if x.by_sample else (n, size)
    room = max(1, n_bytes // x.dtype.itemsize)
    over, along = max(1, room // length), min(room, length)
    for line in range(0, lines, over):
        for first in range(0, length, along):
            across = slice(line, min(line + over, lines))
            within = slice(first, min(first + along, length))
            rows, samples = (within, across) if x.by_sample else (across, within)
            samples = slice(chunk.start + samples.start, chunk.start + samples.stop)
            yield rows, samples, line * length + first


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
