"""A dense X, read sample by sample for its numbers that are not 0. Compiled."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.random_masks import INPUT_BYTES
from fusedmlp.backends.numba_cpu.machine.compilation import from_python
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, load
from fusedmlp.backends.numba_cpu.machine.simd import item_bytes, store, store_as_int32


class Nonzeros(NamedTuple):
    """Compiled functions for a dtype; arguments are addresses, steps in bytes and counts."""

    count: Any
    copy: Any


@cache
def nonzeros(dtype: str) -> Nonzeros:
    """Compiled at the first call."""
    like = np.dtype(dtype).type(0)
    return Nonzeros(from_python(count(like), 7), from_python(copy(like), 9))


def count(like):
    """counts[i] = how many numbers of sample i, of those from first to last, are not 0."""

    def count(X, x_row, x_sample, n_in, first, last, counts):
        for i in range(first, last):
            total, x = 0, X + i * x_sample
            for k in range(n_in):
                total += np.int64(load(like, x + k * x_row) != 0)
            store(np.int64(total), counts + 8 * i)

    return count


def copy(like):
    """The inputs and the values of these numbers, sample i's from starts[i] on."""

    def copy(X, x_row, x_sample, n_in, first, last, starts, inputs, values):
        for i in range(first, last):
            place, x = load(INTEGER, starts + 8 * i), X + i * x_sample
            for k in range(n_in):
                value = load(like, x + k * x_row)
                if value != 0:
                    store_as_int32(k, inputs + place * INPUT_BYTES)
                    store(value, values + place * item_bytes(like))
                    place += 1

    return copy
