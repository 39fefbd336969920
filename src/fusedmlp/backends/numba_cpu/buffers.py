"""Where arrays lie. numpy takes a microsecond to say so, and a small step has ten of them: addresses are kept."""

from __future__ import annotations

import weakref

import numpy as np

LINE_BYTES = 64
"""Of a cache line, and the longest register."""


def address_of(x: np.ndarray) -> int:
    """Where the first number of an array lies."""
    address: int = x.__array_interface__["data"][0]
    return address


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


class AddressCache:
    """Of the few arrays that come again and again, such as a network's parameters.

    An array that is referred to weakly does not move: numpy refuses to resize it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[int, tuple[weakref.ref[np.ndarray], int]] = {}

    def of(self, x: np.ndarray) -> int:
        """`address_of`, kept as long as there is space."""
        known = self._known.get(id(x))
        if known is not None and known[0]() is x:
            return known[1]
        if len(self._known) == self._most:
            self._known.clear()
        address = address_of(x)
        self._known[id(x)] = weakref.ref(x), address
        return address
