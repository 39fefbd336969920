"""Memory of the fake CuPy: pieces between canaries, from a pool with a limit."""

from __future__ import annotations

import threading
import weakref
from typing import ClassVar

import numpy as np
from harness import fake_streams

CANARY_BYTES = 64
ALIGNMENT = 512  # as CuPy's memory pool allocates


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""


class MemoryPool:
    """cupy.cuda.MemoryPool: counts bytes, and refuses what goes beyond its limit.

    Attributes
    ----------
    sizes : list of int
        The bytes of every allocation so far.
    refuse : callable, optional
        Whether to refuse the next allocation, whatever the limit; given the bytes.
    """

    def __init__(self):
        self.sizes, self.refuse = [], None
        self._used = self._free = self._limit = 0
        self._lock = threading.RLock()  # memory may be given back by any thread

    def allocate(self, n_bytes):
        with self._lock:
            used = self._used + n_bytes
            if (self._limit and used > self._limit) or (self.refuse is not None and self.refuse(n_bytes)):
                raise OutOfMemoryError(
                    f"Out of memory allocating {n_bytes:,} bytes (allocated so far: {self._used:,} bytes)."
                )
            self.sizes.append(n_bytes)
            self._used, self._free = used, max(0, self._free - n_bytes)

    def give_back(self, n_bytes):
        with self._lock:
            self._used -= n_bytes
            self._free += n_bytes

    def set_limit(self, size):
        self._limit = size

    def get_limit(self):
        return self._limit

    def used_bytes(self):
        return self._used

    def free_bytes(self):
        return self._free

    def free_all_blocks(self, stream=None):
        self._free = 0


POOL = MemoryPool()


class Allocation:
    """Memory of a fake GPU: a piece between two canaries. Every byte is 0xFF, NaN in any floating-point type."""

    n_bytes = 0
    made = 0
    _lock = threading.Lock()
    _alive: ClassVar = weakref.WeakSet()

    def __init__(self, n_bytes, shift=0):
        assert not fake_streams.current().is_capturing(), "an allocation in a capture"
        taken = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        POOL.allocate(taken)
        self.n_bytes = taken
        self.users = fake_streams.Users()
        self.users.touch(fake_streams.current())
        self._bytes = np.full(n_bytes + 2 * CANARY_BYTES + 2 * ALIGNMENT, 0xFF, np.uint8)
        start = -(self._bytes.ctypes.data + CANARY_BYTES) % ALIGNMENT + CANARY_BYTES + shift
        self.piece = self._bytes[start : start + n_bytes]
        self._canaries = self._bytes[start - CANARY_BYTES : start], self._bytes[start + n_bytes :]
        self._address = self._bytes.ctypes.data + start
        with Allocation._lock:
            Allocation.made += 1
            Allocation._alive.add(self)

    @staticmethod
    def holding(address, n_bytes):
        """The allocation that these bytes lie in."""
        with Allocation._lock:
            alive = list(Allocation._alive)
        for memory in alive:
            if memory._address <= address and address + n_bytes <= memory._address + memory.piece.size:
                return memory
        raise AssertionError(f"{n_bytes} bytes at {address:#x} lie in no allocation")

    def __del__(self):
        if self.n_bytes:
            POOL.give_back(self.n_bytes)
            self.users.leave()

    def check(self, what):
        """Nothing outside the piece was written to."""
        assert all((canary == 0xFF).all() for canary in self._canaries), f"{what} wrote out of bounds"
