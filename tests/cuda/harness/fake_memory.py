"""Memory of the fake CuPy: pieces between canaries, whose sizes are those of a pool."""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import ClassVar

import numpy as np
from harness import fake_streams
from harness.fake_pool import UNIT, current_pool
from harness.written_bytes import WrittenBytes

CANARY_BYTES = 64


class Allocation:
    """Memory of a fake GPU: a piece between two canaries. Every byte is 0xFF, NaN in any floating-point type.

    Attributes
    ----------
    piece : array of uint8
    address : int
    written : WrittenBytes
    """

    made = 0
    _chunk = None
    _lock = threading.Lock()
    _alive: ClassVar = weakref.WeakSet()

    def __init__(self, n_bytes, shift=0):
        assert not fake_streams.current().is_capturing(), "an allocation in a capture"
        self._pool = current_pool()
        self._chunk = self._pool.take(n_bytes, fake_streams.current().ptr)
        self.users = fake_streams.Users()
        self.users.touch(fake_streams.current())
        self._bytes = np.full(n_bytes + 2 * CANARY_BYTES + 2 * UNIT, 0xFF, np.uint8)
        start = -(self._bytes.ctypes.data + CANARY_BYTES) % UNIT + CANARY_BYTES + shift
        self.piece = self._bytes[start : start + n_bytes]
        self.address = self._bytes.ctypes.data + start
        self.written = WrittenBytes(n_bytes, self.address)
        self._canaries = self._bytes[start - CANARY_BYTES : start], self._bytes[start + n_bytes :]
        with Allocation._lock:
            Allocation.made += 1
            Allocation._alive.add(self)

    @staticmethod
    def holding(address, n_bytes):
        """The allocation that these bytes lie in."""
        with Allocation._lock:
            alive = list(Allocation._alive)
        for memory in alive:
            if memory.address <= address and address + n_bytes <= memory.address + memory.piece.size:
                return memory
        raise AssertionError(f"{n_bytes} bytes at {address:#x} lie in no allocation")

    def __del__(self):
        if self._chunk is not None:
            self._pool.give_back(self._chunk)
            self.users.leave()

    def check(self, what):
        """Nothing outside the piece was written to."""
        assert all((canary == 0xFF).all() for canary in self._canaries), f"{what} wrote out of bounds"


class Pointer:
    """cupy.cuda.MemoryPointer."""

    def __init__(self, ptr, device_id, memory):
        self.ptr = ptr
        self.device_id = device_id
        self._memory = memory

    def copy_from_host_async(self, mem, size, stream):
        memory = self._memory
        target, written = memory.piece[self.ptr - memory.address :][:size], memory.written

        def arrive():
            ctypes.memmove(target.ctypes.data, mem, size)
            written.note(target)

        fake_streams.copy_from_host_async(memory.users, mem, size, stream, arrive)
