"""Peers: the processes of a communicator, which train together and come to the same decisions."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from fusedmlp.distributed import job
from fusedmlp.distributed.cores import share_cores
from fusedmlp.distributed.mpi import checked_communicator, mpi
from fusedmlp.distributed.phase import SumOverProcesses

Result = TypeVar("Result")

_keyval: int | None = None


def peers_of(comm: Any) -> Peers:
    """The peers of a communicator: made once for it, by all of its processes.

    Raises
    ------
    ValueError, RuntimeError
        As `checked_communicator`; or an exception ended the last training here, and here alone.
    """
    global _keyval
    comm = checked_communicator(comm)
    job.check()
    if _keyval is None:
        _keyval = mpi().Comm.Create_keyval()
    peers: Peers | None = comm.Get_attr(_keyval)
    if peers is None:
        peers = Peers(comm.Dup())
        comm.Set_attr(_keyval, peers)
    return peers


class Peers:
    """The processes of a communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        A duplicate, so that no message meets one of the user's.

    Attributes
    ----------
    rank, size : int
    """

    def __init__(self, comm: Any) -> None:
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        # Compiled code cannot handle an error of MPI's.
        comm.Set_errhandler(mpi().ERRORS_ARE_FATAL)
        self._phases: dict[str, SumOverProcesses] = {}
        self._shared_error: BaseException | None = None
        if self.size > 1:
            job.watch()
        share_cores(comm)

    def phase(self, dtype: str) -> SumOverProcesses:
        """The gradient phase of a training that begins."""
        phase = self.phase_of(dtype)
        phase.begin()
        return phase

    def phase_of(self, dtype: str) -> SumOverProcesses:
        """The gradient phase of trainings in a dtype."""
        if dtype not in self._phases:
            self._phases[dtype] = SumOverProcesses(self.comm, dtype)
        return self._phases[dtype]

    # Numbers ---------------------------------------------------------------------------------------------------------

    def total(self, *numbers: float) -> list[float]:
        """The sum over all processes of each number, in float64."""
        sums = np.array(numbers, np.float64)
        self.comm.Allreduce(mpi().IN_PLACE, sums)
        return list(sums.tolist())

    def counts(self, count: int) -> list[int]:
        """The count of each process."""
        counts = np.zeros(self.size, np.int64)
        self.comm.Allgather(np.array([count], np.int64), counts)
        return list(counts.tolist())

    def smallest(self, numbers: list[int]) -> list[int]:
        """The smallest over all processes of each whole number below 2**63."""
        least = np.array(numbers, np.int64)
        self.comm.Allreduce(mpi().IN_PLACE, least, mpi().MIN)
        return list(least.tolist())

    def same(self, number: int) -> bool:
        """Whether a whole number below 2**62 is the same in all processes."""
        low, high = self.smallest([number, -number])
        return low == -high

    def from_first(self, value: Result, root: int = 0) -> Result:
        """The value that rank 0, or another one, has."""
        result: Result = self.comm.bcast(value, root)
        return result

    def send(self, array: np.ndarray, root: int = 0) -> None:
        """Overwrite a contiguous array with that of rank 0, or another one."""
        bits = array.reshape(-1).view(np.uint8)
        for first in range(0, len(bits), 1 << 30):  # MPI counts in 32 bits
            self.comm.Bcast(bits[first : first + (1 << 30)], root)

    def copied(self, value: Result, root: int = 0) -> Result:
        """The value that rank 0, or another one, has; its arrays may be large.

        Raises
        ------
        ValueError
            In all processes: it cannot be pickled.
        """
        buffers: list[pickle.PickleBuffer] = []
        text, failure = b"", ""
        if self.rank == root:
            try:
                text = pickle.dumps(value, 5, buffer_callback=buffers.append)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                failure = f"comm: expected what other processes can have; got what cannot be pickled: {error}"
        parts = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        text, sizes, failure = self.comm.bcast((text, [len(part) for part in parts], failure), root)
        if failure:
            raise self.shared(ValueError(failure))
        if self.rank != root:
            parts = [np.empty(size, np.uint8) for size in sizes]
        for part in parts:
            self.send(part, root)
        if self.rank == root:
            return value
        copy: Result = pickle.loads(text, buffers=parts)
        return copy

    def everyones(self, value: Result) -> list[Result]:
        """The value of each process."""
        return list(self.comm.allgather(value))

    # Errors ----------------------------------------------------------------------------------------------------------

    def together(self, work: Callable[[], Result]) -> Result:
        """Call `work`, which sends no messages: where it raises an exception in one process, all raise one.

        Raises
        ------
        ValueError
            In the processes where it went well: it names the first rank where it did not, and what went wrong there.
        """
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        if not self.total(float(error is not None))[0]:
            return result
        messages = self.everyones(None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            rank = next(rank for rank, message in enumerate(messages) if message is not None)
            text = (messages[rank] or "").removeprefix("ValueError: ")
            error = ValueError(f"rank {rank}: {text}")
        raise self.shared(error)

    def by_first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on rank 0, which alone calls it. An exception of it is raised in all processes."""
        result, error = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as caught:
                error = caught
        received = self.from_first(None if error is None else sendable(error))
        if received is not None:
            raise self.shared(error or received)
        return self.copied(result)  # type: ignore[return-value]

    def shared(self, error: BaseException) -> BaseException:
        """An exception that all processes raise: none waits for another."""
        self._shared_error = error
        return error

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """Around what raises the same exceptions in all processes, as it works with the same numbers in each."""
        try:
            yield
        except Exception as error:
            self.shared(error)
            raise

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around a training. After an exception that is not `shared`, others may wait for this process for ever."""
        self._shared_error = None
        try:
            yield
        except BaseException as error:
            ended_by = [phase.ended_by for phase in self._phases.values()]
            alone = error is not self._shared_error and all(error is not other for other in ended_by)
            if self.size > 1 and alone:
                job.left_alone(self.comm, error)
            raise


def sendable(error: Exception) -> Exception:
    """An exception as another process can have it: of its own class, unless that cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
