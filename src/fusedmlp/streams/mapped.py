"""Rows of a memory-mapped file, and how they come into memory before they are needed."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def is_mapped(x: Any) -> bool:
    """Whether x is, or is a view of, a memory-mapped file."""
    return _mapping(x) is not None


def _mapping(x: Any) -> mmap.mmap | None:
    """The mapping that the memory of an array belongs to."""
    while isinstance(x, np.ndarray | memoryview):
        x = x.obj if isinstance(x, memoryview) else x.base
    return x if isinstance(x, mmap.mmap) else None


class MappedRows:
    """Contiguous rows in a mapping.

    Parameters
    ----------
    mapping : mmap.mmap
    start : int
        Where the rows begin in it, in bytes.
    row_bytes : int
    """

    def __init__(self, mapping: mmap.mmap, start: int, row_bytes: int) -> None:
        self._mapping, self._start, self._row_bytes = mapping, start, row_bytes
        self._bytes = np.frombuffer(mapping, np.uint8)

    @classmethod
    def of(cls, rows: np.ndarray) -> MappedRows | None:
        """Those of an array; None where it is not one of contiguous rows in a mapping."""
        mapping = _mapping(rows)
        if mapping is None or not rows.flags.c_contiguous or not rows.size:
            return None
        begin = np.frombuffer(mapping, np.uint8).ctypes.data
        return cls(mapping, rows.ctypes.data - begin, rows.size // len(rows) * rows.itemsize)

    def _pages(self, start: int, stop: int) -> tuple[int, int]:
        first = (self._start + start * self._row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        return first, self._start + stop * self._row_bytes

    def announce(self, start: int, stop: int) -> None:
        """Let the system begin to read some rows from the disk; it goes on while this returns."""
        if hasattr(mmap, "MADV_WILLNEED"):
            first, last = self._pages(start, stop)
            self._mapping.madvise(mmap.MADV_WILLNEED, first, last - first)

    def fetch(self, start: int, stop: int) -> None:
        """Wait until some rows are in memory: a byte of every page is read."""
        first, last = self._pages(start, stop)
        self._bytes[first : last : mmap.PAGESIZE].max()
