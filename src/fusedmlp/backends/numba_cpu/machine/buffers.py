"""Aligned arrays for compiled code, and addresses of arrays in a fraction of the microsecond that numpy takes."""

from __future__ import annotations

import ctypes

import numpy as np

LINE_BYTES = 64
"""The size of a cache line, and of the longest register."""


_HEAD = object.__basicsize__


def _slow_address_of(x: np.ndarray) -> int:
    address: int = x.__array_interface__["data"][0]
    return address


def _fast_address_of(x: np.ndarray) -> int:
    """PyArray_DATA of numpy's C interface: the first field of an array after those that every object has."""
    return ctypes.c_int64.from_address(id(x) + _HEAD).value


def _same_address(x: np.ndarray) -> bool:
    return ctypes.sizeof(ctypes.c_void_p) == 8 and _fast_address_of(x) == _slow_address_of(x)


address_of = _fast_address_of if all(map(_same_address, (np.zeros(3), np.zeros(9)[2:]))) else _slow_address_of
"""The address of the first number of an array."""


class AlignedArray:
    """Memory for numbers of a dtype, and where it starts: at a cache line, so that no register's worth lies across two.

    Parameters
    ----------
    size : int
        Numbers; all 0.
    dtype : str
    """

    __slots__ = ("address", "numbers")

    def __init__(self, size: int, dtype: str) -> None:
        self.numbers = np.zeros(size + LINE_BYTES // np.dtype(dtype).itemsize, dtype)
        skipped = -address_of(self.numbers) % LINE_BYTES // self.numbers.itemsize
        self.numbers = self.numbers[skipped : skipped + size]
        self.address = address_of(self.numbers)

    def with_room(self, size: int) -> AlignedArray:
        """Itself, with space for at least so many numbers; they are lost if there was too little."""
        if len(self.numbers) < size:
            self.__init__(size, self.numbers.dtype.str)  # type: ignore[misc]
        return self
