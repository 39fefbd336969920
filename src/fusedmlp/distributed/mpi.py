"""mpi4py's communicators, and where compiled code finds MPI_Allreduce."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

from fusedmlp.checks import shown
from fusedmlp.extras import require


@cache
def mpi() -> Any:
    """The module ``mpi4py.MPI``, whose import starts MPI.

    Raises
    ------
    MissingExtraError
        mpi4py or the MPI library is not installed.
    """
    return require("mpi4py.MPI", "mpi", "comm")


def checked_communicator(comm: Any) -> Any:
    """A communicator that a training can use from this thread.

    Raises
    ------
    ValueError
        It is no intracommunicator of mpi4py.
    RuntimeError
        MPI was started at a level of threads that does not allow calls from here.
    """
    MPI = mpi()
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise ValueError(f"comm: expected a communicator of mpi4py, such as MPI.COMM_WORLD; got {shown(comm)}")
    needed, name = (MPI.THREAD_FUNNELED, "funneled") if MPI.Is_thread_main() else (MPI.THREAD_SERIALIZED, "serialized")
    if MPI.Query_thread() < needed:
        raise RuntimeError(
            f"comm: expected MPI to be started at thread level {name!r} or above, as threads compute beside the one "
            "that calls MPI; set mpi4py.rc.thread_level before mpi4py.MPI is imported"
        )
    return comm


class Handles(NamedTuple):
    """What compiled code passes to MPI_Allreduce, each as an int64: addresses, or MPI's own numbers."""

    allreduce: int
    in_place: int
    float32: int
    float64: int
    sum: int


@cache
def handles() -> Handles:
    """The numbers of the MPI library that mpi4py has loaded; MPICH's handles are ints, Open MPI's are pointers."""
    MPI = mpi()
    # The library is a dependency of mpi4py's module, so that its symbols are found through that.
    address = ctypes.cast(ctypes.CDLL(MPI.__file__).MPI_Allreduce, ctypes.c_void_p).value or 0
    kinds = MPI.FLOAT, MPI.DOUBLE, MPI.SUM
    return Handles(address, int(MPI.IN_PLACE), *map(handle_of, kinds))


def handle_of(thing: Any) -> int:
    """The handle of a communicator, a type or an operation, as an int64."""
    handle: int = mpi()._handleof(thing)
    return handle - ((handle >> 63) << 64)
