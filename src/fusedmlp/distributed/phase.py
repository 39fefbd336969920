"""SumOverProcesses: the gradient phase that makes the sums of a batch those of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusedmlp.distributed.gpu_sums import SumByHost, SumByNccl, sum_on_gpus
from fusedmlp.distributed.mpi import handle_of, handles, mpi
from fusedmlp.engines.options import GradientPhase
from fusedmlp.errors import TerminatedError
from fusedmlp.model.activations import Array
from fusedmlp.training.loop import DeadlineError, RecordingError

_RECORD, _DEADLINE, _TERMINATION, _INTERRUPT = 1.0, 2.0, 2.0**20, 2.0**40
"""Votes for an end. Rank 0 alone votes for the first, so that their sum tells the largest that a process has given."""
_COUNT = 3
"""Where a message has the number of samples: 0 before the first one."""


class SumOverProcesses(GradientPhase):
    """Σ over all processes of a batch's gradient and of its three sums; the same bits in each.

    A process that has to end, by a signal or a deadline, says so in its next message; rank 0 also, when a checkpoint is
    due. All end with that batch, and take no step for it.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Of this object alone.
    dtype : str
        The gradient's.
    """

    def __init__(self, comm: Any, dtype: str) -> None:
        self._comm, self._dtype = comm, dtype
        self._message, self._vote = np.zeros(4), np.zeros(1)
        self._record: np.ndarray | None = None
        self._sum_on_gpus: SumByNccl | SumByHost | None = None
        self._found: BaseException | None = None

    def begin(self) -> None:
        """Forget the votes of the training before."""
        self._vote[0], self._message[:4], self._found = 0.0, 0.0, None

    def go_on(self) -> None:
        """Forget that it was time for a checkpoint."""
        self._vote[0] = 0.0 if self._vote[0] == _RECORD else self._vote[0]
        if self.ended_by is None:
            self._message[:4], self._found = 0.0, None

    def apply(self, gradient: Array, sums: np.ndarray) -> None:
        MPI = mpi()
        message = self._message[:4]
        message[0], message[1:] = self._vote[0], sums
        self._comm.Allreduce(MPI.IN_PLACE, message)
        sums[:] = message[1:]
        if self.error is not None:
            raise self.error
        if isinstance(gradient, np.ndarray):
            self._comm.Allreduce(MPI.IN_PLACE, gradient)
            return
        if self._sum_on_gpus is None:
            self._sum_on_gpus = sum_on_gpus(self._comm)
        self._sum_on_gpus(gradient)

    def compiled_with(self, stop: int) -> tuple[int, int] | None:
        """The C function of `allreduce`, and the address of its record."""
        from fusedmlp.distributed import allreduce

        if self._record is None:
            self._message = np.zeros(allreduce.MOST_PACKED + allreduce.EXTRA)
            h = handles()
            number = h.float32 if self._dtype == "float32" else h.float64
            comm, at = handle_of(self._comm), (self._message.ctypes.data, self._vote.ctypes.data)
            record = allreduce.ContextRecord(h.allreduce, h.in_place, number, h.float64, h.sum, comm, *at, stop)
            self._record = np.array(record, np.int64)
        self._record[-1] = stop
        return allreduce.summing_address(self._dtype), self._record.ctypes.data

    # Ending together -------------------------------------------------------------------------------------------------

    def poll(self, check: Callable[[], None]) -> None:
        """Turn what ends the training here into a vote, which all processes see with their next sums."""
        vote = 0.0
        try:
            check()
        except KeyboardInterrupt:
            vote = _INTERRUPT
        except TerminatedError:
            vote = _TERMINATION
        except DeadlineError:
            vote = _DEADLINE
        except RecordingError:  # before its first batch a pass would get nowhere
            vote = _RECORD if self._message[_COUNT] else 0.0
        self._vote[0] = max(self._vote[0], vote)

    def ends_all(self, error: BaseException) -> bool:
        """Whether all processes have seen the vote for it; a second Ctrl-C ends one process alone, and then the job."""
        return error is self.ended_by

    def end(self) -> None:
        """After a training: raise the error of a signal that came too late for any of its messages, in all processes.

        Raises
        ------
        KeyboardInterrupt, TerminatedError
        """
        vote = np.array([self._vote[0] if self._vote[0] >= _TERMINATION else 0.0])
        self._comm.Allreduce(mpi().IN_PLACE, vote)
        if vote[0] and self.ended_by is None:
            self._found = _meaning(vote[0])
            raise self._found

    @property
    def error(self) -> BaseException | None:
        """What ends the training, or a part of an epoch, in all processes, when their sums have brought a vote."""
        if self._message[0] and self._found is None:
            self._found = _meaning(self._message[0])
        return self._found

    @property
    def ended_by(self) -> BaseException | None:
        """What has ended the training in all processes."""
        return None if isinstance(self._found, RecordingError) else self._found


def _meaning(votes: float) -> BaseException:
    """The exception that all processes raise after the sum of their votes."""
    if votes >= _INTERRUPT:
        return KeyboardInterrupt()
    if votes >= _TERMINATION:
        return TerminatedError()
    return DeadlineError() if votes >= _DEADLINE else RecordingError()
