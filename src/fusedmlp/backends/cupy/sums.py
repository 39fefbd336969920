"""Launches of ``kernels/sum_rows.cu``: the sums of a kernel's blocks become one."""

from __future__ import annotations

import numpy as np

from fusedmlp.activations import Array
from fusedmlp.backends.cupy.launch import Launcher

_THREADS = (32, 8)


def sum_rows(launcher: Launcher, x: Array, out: Array) -> None:
    """out = Σ over the rows of x (rows, n), in their order; `x` without gaps, `out` (n,)."""
    rows, count = x.shape
    along, over = _THREADS
    kernel = launcher.kernel("sum_rows.cu", f"sum_rows_{x.dtype}")
    arguments = (x, np.int64(rows), np.int64(count), out)
    kernel((-(-count // along),), (along, over), arguments, shared_mem=along * over * x.itemsize)
