"""Launches of ``kernels/sum_rows.cu``: the sums of a kernel's blocks, or of samples, become one."""

from __future__ import annotations

import numpy as np

from fusedmlp.backends.cupy.launch import Launcher
from fusedmlp.model.activations import Array

_THREADS = (32, 8)
_ROWS_OF_A_BLOCK = 256
_MOST_RANGES = 256


def sum_rows(launcher: Launcher, x: Array, out: Array) -> None:
    """out = Σ over the rows of x, in their order.

    Parameters
    ----------
    launcher : Launcher
    x : array of shape (rows, n)
        Without gaps.
    out : array of shape (n,) or (ranges, n)
        Without gaps; with `ranges` rows, the sums of as many equal ranges of x's rows.
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
    """Into how many ranges to cut many rows first, so that all of a GPU has something to do."""
    return min(_MOST_RANGES, -(-rows // _ROWS_OF_A_BLOCK))
