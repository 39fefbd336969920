"""The sum over all processes, as a C function that a compiled epoch calls: no step returns to Python for it.

A small gradient and its sums travel as one message of float64 numbers: a message's latency counts, not its size. A
large gradient is summed where it lies, in its own type, after a message of the sums.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.machine.compilation import routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, load
from fusedmlp.backends.numba_cpu.machine.simd import call, item_bytes, store

MOST_PACKED = 1024
"""Parameters of a gradient that is packed into one message with its sums (docs/scaling.md)."""
MOST_NUMBERS = 1 << 30
"""Numbers of a message: MPI counts them in 32 bits."""
EXTRA = 4
"""Numbers of a message before the gradient: the votes for an end, Σ w j, Σ w and the count."""
STOP_AT_ONCE = 2


class ContextRecord(NamedTuple):
    """What the function needs, int64 numbers in memory; those without a word are MPI's."""

    allreduce: int
    in_place: int
    number: int
    """MPI's type of the gradient's numbers."""
    float64: int
    sum: int
    comm: int
    message: int
    """The address of float64 numbers: the votes for an end, the three sums, and the packed gradient."""
    vote: int
    """The address of this process's vote, float64: not 0 where it has to end."""
    stop: int
    """Where to store that the epoch ends."""


ALLREDUCE, IN_PLACE, NUMBER, FLOAT64, SUM, COMM, MESSAGE, VOTE, STOP = range(0, 8 * len(ContextRecord._fields), 8)


@cache
def summing_address(dtype: str) -> int:
    """The address of the function for gradients of a dtype; compiled at the first call."""
    return routine_address(summing(np.dtype(dtype).type(0)), 4)


def summing(like):
    """The C function of a `GradientPhase`, for numbers of the type of `like`."""
    number = type(like)

    def sum_over_processes(gradient, n_parameters, sums, context):
        item, packed = item_bytes(like), n_parameters if n_parameters <= MOST_PACKED else 0
        routine, in_place = load(INTEGER, context + ALLREDUCE), load(INTEGER, context + IN_PLACE)
        operation, comm = load(INTEGER, context + SUM), load(INTEGER, context + COMM)
        message = load(INTEGER, context + MESSAGE)
        store(load(0.0, load(INTEGER, context + VOTE)), message)
        for i in range(3):
            store(load(0.0, sums + 8 * i), message + 8 + 8 * i)
        numbers = message + 8 * EXTRA
        for i in range(packed):
            store(np.float64(load(like, gradient + item * i)), numbers + 8 * i)
        call(routine, (in_place, message, packed + EXTRA, load(INTEGER, context + FLOAT64), operation, comm))
        for i in range(3):
            store(load(0.0, message + 8 + 8 * i), sums + 8 * i)
        for i in range(packed):
            store(number(load(0.0, numbers + 8 * i)), gradient + item * i)
        if load(0.0, message) > 0:  # every process sees the same votes, and ends with the same batch
            store(np.int64(STOP_AT_ONCE), load(INTEGER, context + STOP))
            return
        kind = load(INTEGER, context + NUMBER)
        for first in range(packed, n_parameters, MOST_NUMBERS):
            count = min(np.int64(MOST_NUMBERS), n_parameters - first)
            call(routine, (in_place, gradient + item * first, count, kind, operation, comm))

    return sum_over_processes
