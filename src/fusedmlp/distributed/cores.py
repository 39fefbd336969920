"""How many threads a process uses: its share of the cores that it and others of its node may run on."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from fusedmlp.backends.numba_cpu.workers import threads
from fusedmlp.distributed.mpi import mpi

_BLAS_VARIABLES = (*threads.ENVIRONMENT_VARIABLES, "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_kept: list[Any] = []
"""A limit of BLAS's threads holds as long as its object."""


def share_cores(comm: Any) -> None:
    """Let the ranks of a node use different cores, where no variable sets a number of threads."""
    node = comm.Split_type(mpi().COMM_TYPE_SHARED)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    count = share_of(node.Get_rank(), node.allgather(frozenset(cores)), threads.cpu_quota())
    size = node.Get_size()
    node.Free()
    if size == 1:
        return
    threads.use_at_most(count)
    if not any(os.environ.get(name, "").strip() for name in _BLAS_VARIABLES):
        from threadpoolctl import threadpool_limits

        _kept[:] = [threadpool_limits(count, user_api="blas")]


def share_of(rank: int, cores: Sequence[frozenset[int]], quota: float | None = None) -> int:
    """The threads of a process of a node, at least 1.

    Parameters
    ----------
    rank : int
    cores : sequence of frozenset of int
        The cores that each process of the node may run on. A core that several share counts as a part for each.
    quota : float, optional
        The number of CPUs that all of them together may use.
    """
    share = sum(Fraction(1, sum(core in other for other in cores)) for core in cores[rank])
    if quota is not None:
        share = min(share, Fraction(math.ceil(quota), len(cores)))
    return max(1, math.floor(share))
