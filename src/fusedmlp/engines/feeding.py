"""Samples that stay in host memory, and how passes read them: chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

Part = tuple[slice, list[Any]]
"""Some samples, and the columns of matrices there, on the device; None for a matrix that is None."""

_BLOCK_BYTES = 32 * 2**20


class HostMatrix:
    """A matrix with a column per sample that stays in host memory.

    It is used where a device has no memory for the whole of it, and for large arrays of another type. Columns are
    copied when they are asked for, and no others. The copy is converted to `dtype`; samples are chosen and ordered in it.

    Parameters
    ----------
    array : numpy.ndarray of shape (n, k)
        Any real dtype and any strides. It is read whenever columns are asked for.
    dtype : dtype
        The dtype of the copied columns.
    samples : numpy.ndarray of shape (m,) of int, optional
        The columns of `array` that this matrix consists of, in this order; None: all of them.

    Attributes
    ----------
    shape : (int, int)
        (n, m).
    dtype : numpy.dtype
    nbytes : int
        The size of all columns in `dtype`.
    by_sample : bool
        Whether a copy has contiguous columns; else it has contiguous rows. Copies of chosen samples always have
        contiguous columns, as ``X.T[samples].T`` has.
    """

    ndim = 2

    def __init__(self, array: np.ndarray, dtype: Any, samples: np.ndarray | None = None) -> None:
        self._array, self._samples = array, samples
        self.dtype = np.dtype(dtype)
        self.shape = (array.shape[0], array.shape[1] if samples is None else len(samples))
        self.nbytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        self.by_sample = samples is not None or abs(array.strides[0]) <= abs(array.strides[1])

    def take(self, samples: slice | np.ndarray) -> HostMatrix:
        """Some of the samples, in the order given; no number is copied."""
        if self._samples is not None:
            return HostMatrix(self._array, self.dtype, self._samples[samples])
        if isinstance(samples, slice):
            return HostMatrix(self._array[:, samples], self.dtype)
        return HostMatrix(self._array, self.dtype, samples)

    def write(self, rows: slice, samples: slice, out: np.ndarray) -> None:
        """Copy a piece into `out`, of that piece's shape and of this matrix's dtype, in any memory order."""
        if self._samples is None:
            np.copyto(out, self._array[rows, samples], casting="unsafe")
            return
        table, chosen = self._array.T[:, rows], self._samples[samples]
        if table.flags.c_contiguous and out.T.flags.c_contiguous and table.dtype == out.dtype:
            # Whole samples, straight to where they go. The indices are in range: "clip" saves numpy's own buffer.
            np.take(table, chosen, axis=0, out=out.T, mode="clip")
        else:
            np.copyto(out.T, table[chosen], casting="unsafe")

    def columns(self, samples: slice = slice(None)) -> np.ndarray:
        """A copy of some of the columns, in the order that `by_sample` says."""
        start, stop, _ = samples.indices(self.shape[1])
        n, k = self.shape[0], stop - start
        out = np.empty((k, n), self.dtype).T if self.by_sample else np.empty((n, k), self.dtype)
        self.write(slice(0, n), slice(start, stop), out)
        return out

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """All columns, some at a time: (the first one's number, a copy of them)."""
        step = max(1, _BLOCK_BYTES // max(1, self.shape[0] * self.dtype.itemsize))
        for start in range(0, self.shape[1], step):
            yield start, self.columns(slice(start, min(start + step, self.shape[1])))

    def sum(self, dtype: Any = None) -> np.floating:
        """The sum of all numbers, accumulated in `dtype`; of one block after the other."""
        return np.sum([block.sum(dtype=dtype) for _, block in self.blocks()], dtype=dtype)


class Feeder:
    """Brings chunks of samples from main memory to the device, one after the other.

    Parameters
    ----------
    asarray : callable
        Makes a numpy array one of the device's.
    """

    def __init__(self, asarray: Callable[[np.ndarray], Any]) -> None:
        self._asarray = asarray

    def feed(self, matrices: Sequence[HostMatrix | None], chunks: Sequence[slice]) -> Generator[Part]:
        """Every chunk; its arrays hold until the next one is asked for. Close the iterator where it is not read out."""
        for chunk in chunks:
            yield chunk, [x if x is None else self._asarray(x.columns(chunk)) for x in matrices]

    def release(self) -> None:
        """Let go of all memory on the device."""


def all_finite(xp: Any, x: Any) -> bool:
    """Whether no element of an array of the module `xp` is NaN or infinite."""
    # A sum is one read of the array; only a sum that is not finite (it may have overflowed) needs a closer look.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(x.sum())
    return bool(np.isfinite(total)) or bool(xp.isfinite(x).all())
