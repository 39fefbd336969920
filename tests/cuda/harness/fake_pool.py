"""The memory pool of the fake CuPy: which sizes are free, and when an allocation fails. It holds no memory itself.

As CuPy's own (``cupy.cuda.MemoryPool``):

- Sizes are multiples of 512 bytes. What is given back is kept as a free block of the stream that it was allocated in,
  and is joined with its free neighbours. No other stream gets it.
- An allocation takes the smallest free block of the current stream that is large enough, and splits it. If there is
  none, the pool obtains a new block from the device.
- The limit counts what the pool has obtained, free blocks included. Beyond it the pool raises an error at once; it does
  not give free blocks back first.
- `free_all_blocks` gives back the blocks that are wholly free. A block of which a part is in use stays.
"""

from __future__ import annotations

import collections
import contextlib
import threading

UNIT = 512


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""


class Chunk:
    """A part of a block, in use or free, with the parts before and behind it."""

    def __init__(self, size, stream, before=None, behind=None):
        self.size, self.stream, self.before, self.behind = size, stream, before, behind


class MemoryPool:
    """cupy.cuda.MemoryPool, of one device.

    Attributes
    ----------
    sizes : list of int
        The bytes of every allocation so far.
    refuse : callable, optional
        Whether to refuse the next allocation, whatever the limit; given the bytes.
    """

    def __init__(self):
        self.sizes, self.refuse = [], None
        self._used = self._total = self._limit = 0
        self._free = {}  # the free chunks of a stream
        # Memory may be given back by any thread, and by the garbage collector in the middle of the methods below.
        self._lock, self._returned = threading.RLock(), collections.deque()

    def take(self, n_bytes, stream):
        """A chunk of at least so many bytes; None for 0 bytes."""
        size = -(-n_bytes // UNIT) * UNIT
        with self._ready():
            if self.refuse is not None and self.refuse(size):
                raise self._error(size)
            self.sizes.append(size)
            if size == 0:
                return None
            chunk = self._fitting(size, stream) or self._obtained(size, stream)
            self._used += size
            return chunk

    def give_back(self, chunk):
        self._returned.append(chunk)

    @contextlib.contextmanager
    def _ready(self):
        """The lock, with all that was given back before among the free chunks."""
        with self._lock:
            while self._returned:
                self._make_free(self._returned.popleft())
            yield

    def _make_free(self, chunk):
        self._used -= chunk.size
        free = self._free.setdefault(chunk.stream, set())
        if chunk.behind in free:
            free.remove(chunk.behind)
            self._join(chunk, chunk.behind)
        if chunk.before in free:
            free.remove(chunk.before)
            chunk = self._join(chunk.before, chunk)
        free.add(chunk)

    def _fitting(self, size, stream):
        """The smallest free chunk that is large enough, cut to size; None if there is none."""
        free = self._free.get(stream, set())
        chunk = min((x for x in free if x.size >= size), key=lambda x: x.size, default=None)
        if chunk is None:
            return None
        free.remove(chunk)
        if chunk.size > size:
            rest = Chunk(chunk.size - size, stream, chunk, chunk.behind)
            if chunk.behind is not None:
                chunk.behind.before = rest
            chunk.size, chunk.behind = size, rest
            free.add(rest)
        return chunk

    def _obtained(self, size, stream):
        if self._limit and self._total + size > self._limit:
            raise self._error(size)
        self._total += size
        return Chunk(size, stream)

    @staticmethod
    def _join(chunk, behind):
        chunk.size += behind.size
        chunk.behind = behind.behind
        if chunk.behind is not None:
            chunk.behind.before = chunk
        return chunk

    def _error(self, size):
        limit = f", limit set to: {self._limit:,} bytes" if self._limit else ""
        return OutOfMemoryError(
            f"Out of memory allocating {size:,} bytes (allocated so far: {self._total:,} bytes{limit})."
        )

    def set_limit(self, size):
        self._limit = size

    def get_limit(self):
        return self._limit

    def used_bytes(self):
        with self._ready():
            return self._used

    def free_bytes(self):
        with self._ready():
            return sum(chunk.size for free in self._free.values() for chunk in free)

    def total_bytes(self):
        return self._total

    def free_all_blocks(self, stream=None):
        with self._ready():
            for free in self._free.values() if stream is None else [self._free.get(stream.ptr, set())]:
                for chunk in [x for x in free if x.before is None and x.behind is None]:
                    free.remove(chunk)
                    self._total -= chunk.size

    def forget_free_blocks(self):
        """Start as if nothing had been freed before: what other tests have left behind is no matter of the next one."""
        with self._ready():
            self._free, self._total = {}, self._used

    malloc = take  # what `using_allocator` is given


POOL = MemoryPool()
_thread = threading.local()


def current_pool():
    """The pool that the calling thread allocates from."""
    return (getattr(_thread, "pools", None) or [POOL])[-1]


@contextlib.contextmanager
def using_allocator(malloc):
    """cupy.cuda.using_allocator, given the method of a pool."""
    _thread.pools = [*getattr(_thread, "pools", []), malloc.__self__]
    try:
        yield
    finally:
        _thread.pools.pop()
