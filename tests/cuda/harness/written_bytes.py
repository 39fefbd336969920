"""Which bytes of the fake GPU's memory anything has written since they were allocated.

Kernels note what they write and look at what they read (``accesses.h``). What CuPy's own operations, copies and cuBLAS
do is noted here, by the views that they work on.
"""

from __future__ import annotations

import numpy as np


class UnwrittenError(AssertionError):
    """Something read memory that nobody had written."""


class WrittenBytes:
    """The bytes of an allocation.

    Attributes
    ----------
    map : array of uint8
        Of every byte, whether anything has written it.
    address : int
        Of the first one.
    """

    def __init__(self, n_bytes, address):
        self.map, self.address = np.zeros(n_bytes, np.uint8), address

    def note(self, x, key=...):
        """A view of the allocation is written to, or ``x[key]``."""
        numbers = self._of(x)
        if numbers is not None:
            numbers[key] = _written(x.itemsize)

    def require(self, x, what):
        """A view of the allocation is read by an operation."""
        numbers = self._of(x)
        if numbers is None:
            return
        missing = np.count_nonzero(numbers != _written(x.itemsize))
        if missing:
            raise UnwrittenError(f"{what} reads {missing} of {x.size} numbers of {x.dtype} that nobody has written")

    def _of(self, x):
        """The map as x lies there; None for an array that lies elsewhere: a test gave it to the fake GPU."""
        offset = x.__array_interface__["data"][0] - self.address
        if x.size == 0 or not 0 <= offset < self.map.size:
            return None
        return np.ndarray(x.shape, f"u{x.itemsize}", self.map, offset, x.strides)


def _written(itemsize):
    """The map of a number, all of whose bytes are written."""
    return np.frombuffer(b"\1" * itemsize, f"u{itemsize}")[0]
