"""Launches of ``kernels/sum_rows.cu``: sums over the rows of a matrix, in a fixed order."""

from __future__ import annotations

import numpy as np

from fusedmlp.backends.cupy.launch import Launcher
from fusedmlp.model.activations import Array

_THREADS = (32, 8)
_ROWS_OF_A_BLOCK = 256
_MOST_RANGES = 256


def sum_rows(launcher: Launcher, x: Array, out: Array) -> None:
    """Write Σ over the rows of x into `out`, in the order of the rows.

    Parameters
    ----------
    launcher : Launcher
    x : array of shape (rows, n)
        Without gaps.
    out : array of shape (n,) or (ranges, n)
        Without gaps. Two axes: the sums of `ranges` equal ranges of x's rows.
    """
    rows, count = x.shape
    along, over = _THREADS
    ranges = 1 if out.ndim == 1 else len(out)
    if out.shape[-1] != count:
        raise ValueError(f"out: expected {count} numbers a row, as x has; got shape {out.shape}")
    kernel = launcher.kernel("sum_rows.cu", f"sum_rows_{x.dtype}")
    arguments = (x, np.int64(rows), np.int64(-(-rows // ranges)), np.int64(count), out)
    kernel((-(-count // along), ranges), (along, over), arguments, shared_mem=along * over * x.itemsize)


def ranges_of(rows: int) -> int:
    """The number of ranges to sum first, so that a long sum uses the whole GPU."""
    return min(_MOST_RANGES, -(-rows // _ROWS_OF_A_BLOCK))
