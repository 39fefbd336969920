"""Samples are copied from host memory to the GPU while it computes.

Three things happen at the same time: host threads gather pieces of chunk i + 1 in pinned memory, the GPU's copy engine
copies them on a stream of its own, and the current stream computes on chunk i.

- There are two buffers on the GPU, for chunks of even and of odd number. Copies into one wait for its event `used`: the
  passes over its last chunk are done. Passes wait for `filled`: all pieces have arrived.
- A piece's pinned memory is reused after its event `copied`.
- A piece is contiguous in the buffer, so that one call copies it, in either memory order.
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
    """Pinned memory for a piece; the event `copied` comes after the GPU has read the last piece in it."""

    def __init__(self, cupy: Any, n_bytes: int) -> None:
        self._memory = cupy.cuda.alloc_pinned_memory(n_bytes)
        self.bytes = np.frombuffer(self._memory, np.uint8, n_bytes)
        # block: threads that wait for it sleep.
        self.copied = cupy.cuda.Event(block=True, disable_timing=True)


class ChunkBuffer:
    """Memory on the GPU for a chunk of several matrices, with the events that order copies and passes."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._flats: dict[int, Array] = {}
        self.used = cupy.cuda.Event(disable_timing=True)
        self.filled = cupy.cuda.Event(disable_timing=True)

    def enlarge(self, matrices: Sequence[HostMatrix | None], samples: int) -> None:
        """Make it large enough for this number of samples."""
        for i, x in enumerate(matrices):
            size = 0 if x is None else x.shape[0] * samples
            if x is not None and (i not in self._flats or self._flats[i].size < size):
                self._flats.pop(i, None)
                self._flats[i] = self._cupy.empty((size,), x.dtype)
                # Memory from CuPy's pool may be in use until the current stream has reached this point.
                self.used.record(self._cupy.cuda.get_current_stream())

    def flat(self, i: int, x: HostMatrix, samples: int) -> Array:
        """The memory of so many samples of matrix number i, line by line."""
        return self._flats[i][: x.shape[0] * samples]

    def matrix(self, i: int, x: HostMatrix, samples: int) -> Array:
        """The same memory as a matrix (n, samples)."""
        flat, n = self.flat(i, x, samples), x.shape[0]
        return flat.reshape(samples, n).T if x.by_sample else flat.reshape(n, samples)


class StreamedFeeder(Feeder):
    """Copies chunks to the GPU while it computes on the chunk before; used by one thread at a time.

    Parameters
    ----------
    cupy : module
    """

    staging_bytes: ClassVar[int] = 16 * 2**20
    """Large enough that starting a copy costs little, small enough that the first copy starts early."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._copies = cupy.cuda.Stream(non_blocking=True)
        workers = min(_MOST_WORKERS, _cores())
        runtime = cupy.cuda.runtime
        self._pool = ThreadPoolExecutor(
            workers, "fusedmlp-feeder", initializer=runtime.setDevice, initargs=(runtime.getDevice(),)
        )
        # One more than threads, so that a thread can gather a piece while its last one is still being copied.
        self._idle: SimpleQueue[Staging] = SimpleQueue()
        for _ in range(workers + 1):
            self._idle.put(Staging(cupy, self.staging_bytes))
        self._chunk_buffers = ChunkBuffer(cupy), ChunkBuffer(cupy)

    def feed(self, matrices: Sequence[HostMatrix | None], chunks: Sequence[slice]) -> Generator[Part]:
        """Yield every chunk; its arrays are valid until the next one is asked for. Close an unfinished iterator."""
        most = max(chunk.stop - chunk.start for chunk in chunks)
        for buffer, _ in zip(self._chunk_buffers, chunks, strict=False):
            buffer.enlarge(matrices, most)
        filling: list[Future[None]] = []
        try:
            filling = self._fill(self._chunk_buffers[0], matrices, chunks[0])
            for number, chunk in enumerate(chunks):
                buffer, size = self._chunk_buffers[number % 2], chunk.stop - chunk.start
                for piece in filling:
                    piece.result()
                stream = self._cupy.cuda.get_current_stream()
                buffer.filled.record(self._copies)
                stream.wait_event(buffer.filled)
                if number + 1 < len(chunks):
                    filling = self._fill(self._chunk_buffers[1 - number % 2], matrices, chunks[number + 1])
                try:
                    yield chunk, [x if x is None else buffer.matrix(i, x, size) for i, x in enumerate(matrices)]
                finally:
                    buffer.used.record(stream)
        finally:
            # After an error too, nothing may read the caller's arrays or write to a buffer after this.
            wait(filling)
            self._copies.synchronize()

    def release(self) -> None:
        """Free the buffers on the GPU; no copy is running between feeds."""
        self._chunk_buffers = ChunkBuffer(self._cupy), ChunkBuffer(self._cupy)

    def _fill(self, buffer: ChunkBuffer, matrices: Sequence[HostMatrix | None], chunk: slice) -> list[Future[None]]:
        """Start to fill a buffer: it is full when these futures are done, and the copies that they started."""
        self._copies.wait_event(buffer.used)
        return [
            self._pool.submit(self._bring, x, buffer.flat(i, x, chunk.stop - chunk.start), *piece)
            for i, x in enumerate(matrices)
            if x is not None
            for piece in pieces(x, chunk, self.staging_bytes)
        ]

    def _bring(self, x: HostMatrix, flat: Array, rows: slice, samples: slice, start: int) -> None:
        """Gather a piece in pinned memory and start its copy to ``flat[start:]``."""
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
    """(rows, samples, start): contiguous pieces of at most `n_bytes`, which start `start` numbers into the chunk.

    A piece is some whole lines, or a part of a long line. A line is a sample, or a row unless `x.by_sample`.
    """
    n, size = x.shape[0], chunk.stop - chunk.start
    lines, length = (size, n) if x.by_sample else (n, size)
    most = max(1, n_bytes // x.dtype.itemsize)
    over, along = max(1, most // length), min(most, length)
    for line in range(0, lines, over):
        for first in range(0, length, along):
            across = slice(line, min(line + over, lines))
            within = slice(first, min(first + along, length))
            rows, samples = (within, across) if x.by_sample else (across, within)
            samples = slice(chunk.start + samples.start, chunk.start + samples.stop)
            yield rows, samples, line * length + first


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
