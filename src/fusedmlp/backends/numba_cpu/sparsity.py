"""Dense X that is mostly zeros, as one-hot tables are, is copied as a `SparseMatrix` before a training."""

from __future__ import annotations

from functools import partial

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.nonzeros import nonzeros
from fusedmlp.backends.numba_cpu.machine.buffers import address_of
from fusedmlp.backends.numba_cpu.workers import threads
from fusedmlp.engines.sparse import SparseMatrix
from fusedmlp.model.architecture import Architecture
from fusedmlp.streams.mapped import is_mapped

LARGEST_SHARE = 1 / 8
"""The largest share of numbers that are not 0: with it a gradient takes half of the time or less, with 0.3 as long."""
# With fewer, a sample's own costs count for more than its products.
_FEWEST_INPUTS, _FEWEST_UNITS, _FEWEST_SAMPLES = 32, 8, 256
_LOOKED_AT = 256
_SMALLEST_TASK = 1 << 20


def is_mostly_zero(X: np.ndarray, architecture: Architecture) -> bool:
    """Whether a `SparseMatrix` of X, shape (n1, m), is worth making; some samples are looked at."""
    n1, m = X.shape
    if is_mapped(X):  # it may be larger than memory
        return False
    if n1 < _FEWEST_INPUTS or m < _FEWEST_SAMPLES or architecture.layer_sizes[1] < _FEWEST_UNITS:
        return False
    some = X[:, :: -(-m // _LOOKED_AT)]
    return bool(np.count_nonzero(some) <= LARGEST_SHARE * some.size)


def sparse_copy(X: np.ndarray) -> SparseMatrix | None:
    """The numbers of X, shape (n1, m), that are not 0; None, if there are more of them than pays."""
    (n1, m), routines = X.shape, nonzeros(X.dtype.name)
    counts = np.zeros(m + 1, np.int64)
    parts = threads.split(m, _SMALLEST_TASK // n1 + 1)
    place = address_of(X), *X.strides, n1
    threads.run([partial(routines.count, *place, *part, address_of(counts) + 8) for part in parts])
    starts = np.cumsum(counts)
    if starts[-1] > LARGEST_SHARE * X.size:
        return None
    inputs, values = np.empty(starts[-1], np.int32), np.empty(starts[-1], X.dtype)
    to = address_of(starts), address_of(inputs), address_of(values)
    threads.run([partial(routines.copy, *place, *part, *to) for part in parts])
    return SparseMatrix((n1, m), starts, inputs, values)
