"""Sums over processes of gradients on GPUs: by NCCL where each process has a GPU of its own, else by the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.distributed.mpi import mpi
from fusedmlp.model.activations import Array


class SumByNccl:
    """NCCL sums from GPU to GPU, in the current stream, without the host.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        All of its processes make one.
    cupy : module
    """

    def __init__(self, comm: Any, cupy: Any) -> None:
        nccl = cupy.cuda.nccl
        name = comm.bcast(nccl.get_unique_id() if comm.Get_rank() == 0 else None)
        self._communicator = nccl.NcclCommunicator(comm.Get_size(), name, comm.Get_rank())
        self._cupy, self._sum = cupy, nccl.NCCL_SUM
        self._kinds = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}

    def __call__(self, gradient: Array) -> None:
        """Replace a gradient by the sum of those of all processes."""
        at, stream = gradient.data.ptr, self._cupy.cuda.get_current_stream().ptr
        self._communicator.allReduce(at, at, gradient.size, self._kinds[gradient.dtype.name], self._sum, stream)


class SumByHost:
    """MPI sums in the host's memory, which is pinned: copies from and to other memory take twice as long.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._staging: np.ndarray | None = None

    def __call__(self, gradient: Array) -> None:
        """Replace a gradient by the sum of those of all processes."""
        if self._staging is None or self._staging.shape != gradient.shape:
            from cupyx import empty_pinned

            self._staging = empty_pinned(gradient.shape, gradient.dtype)
        gradient.get(out=self._staging)
        self._comm.Allreduce(mpi().IN_PLACE, self._staging)
        gradient.set(self._staging)


def sum_on_gpus(comm: Any) -> SumByNccl | SumByHost:
    """The faster of the two that all processes of a communicator can use; they all call this."""
    import cupy

    nccl = getattr(cupy.cuda, "nccl", None)
    has_nccl = bool(getattr(nccl, "available", False))
    gpu = mpi().Get_processor_name(), cupy.cuda.runtime.deviceGetPCIBusId(cupy.cuda.runtime.getDevice())
    everyones = comm.allgather((has_nccl, gpu))
    of_their_own = len({gpu for _, gpu in everyones}) == len(everyones)  # NCCL refuses two processes on one
    if len(everyones) > 1 and of_their_own and all(has for has, _ in everyones):
        return SumByNccl(comm, cupy)
    return SumByHost(comm)
