"""How long an Allreduce takes, by the size of its message."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.distributed.mpi import checked_communicator, mpi

SIZES = tuple(8 << k for k in range(0, 22, 1))
"""Bytes: from one number to 16 MiB."""
_ROUND_SECONDS, _ROUNDS = 0.02, 9
_BUFFERS, _BUFFER_BYTES = 256, 2**26
"""Messages take turns in so many buffers at most, of so many bytes in all: a training, too, uses the caches for other
things between two large messages."""


class Timing(NamedTuple):
    """An Allreduce of a size: the median seconds of the slowest rank."""

    n_bytes: int
    seconds: float


class Line(NamedTuple):
    """Seconds of an Allreduce as a line: latency + bytes · per_byte."""

    latency: float
    per_byte: float


def allreduce_times(comm: Any, sizes: tuple[int, ...] = SIZES) -> list[Timing]:
    """The times of sums of float32 numbers in place, as all ranks call this. Large messages do not lie in a cache.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    sizes : tuple of int
        Bytes.
    """
    MPI, comm = mpi(), checked_communicator(comm)
    timings = []
    for n_bytes in sizes:
        count = max(1, min(_BUFFERS, _BUFFER_BYTES // n_bytes))
        messages = [[numbers, MPI.FLOAT] for numbers in np.zeros((count, n_bytes // 4), np.float32)]
        seconds = _round(comm, messages, 3)
        repeats = comm.bcast(max(3, min(1000, int(_ROUND_SECONDS / max(seconds, 1e-7)))))
        rounds = [_round(comm, messages, repeats) for _ in range(_ROUNDS)]
        timings.append(Timing(n_bytes, comm.allreduce(statistics.median(rounds), MPI.MAX)))
    return timings


def _round(comm: Any, messages: list[Any], repeats: int) -> float:
    """Seconds of one of so many sums."""
    in_place, turns = mpi().IN_PLACE, len(messages)
    comm.Barrier()
    start = time.perf_counter()
    for number in range(repeats):
        comm.Allreduce(in_place, messages[number % turns])
    return (time.perf_counter() - start) / repeats


def line_through(timings: list[Timing]) -> Line:
    """Latency and seconds per byte; relative errors count, so that small messages do as much as large ones."""
    n_bytes, seconds = (np.array(each, np.float64) for each in zip(*timings, strict=True))
    terms = np.stack([np.ones_like(n_bytes), n_bytes], axis=1) / seconds[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(terms, np.ones_like(seconds), rcond=None)
    return Line(max(0.0, float(latency)), max(0.0, float(per_byte)))
