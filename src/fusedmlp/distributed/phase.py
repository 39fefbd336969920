"""SumOverProcesses: the gradient phase that makes the sums of a batch those of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusedmlp.distributed.mpi import handle_of, handles, mpi
from fusedmlp.engines.options import GradientPhase
from fusedmlp.model.activations import Array
from fusedmlp.training.loop import DeadlineError

_DEADLINE, _INTERRUPT = 1.0, 2.0**20
"""Votes for an end; their sum tells whether any process was interrupted."""


class SumOverProcesses(GradientPhase):
    """Σ over all processes of a batch's gradient and of its three sums; the same bits in each.

    A process that has to end, by Ctrl-C or a deadline, says so in its next message. All end with that batch.

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
        self._staging: np.ndarray | None = None
        self.ended_by: BaseException | None = None

    def begin(self) -> None:
        """Forget the votes of the training before."""
        self._vote[0], self._message[0], self.ended_by = 0.0, 0.0, None

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
        staging = self._staging_for(gradient)
        gradient.get(out=staging)
        self._comm.Allreduce(MPI.IN_PLACE, staging)
        gradient.set(staging)

    def _staging_for(self, gradient: Array) -> np.ndarray:
        """Pinned memory of the host for a gradient on a GPU: copies from and to other memory take twice as long."""
        if self._staging is None or self._staging.shape != gradient.shape:
            from cupyx import empty_pinned

            self._staging = empty_pinned(gradient.shape, gradient.dtype)
        return self._staging

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
        try:
            check()
        except KeyboardInterrupt:
            self._vote[0] = _INTERRUPT
        except DeadlineError:
            self._vote[0] = max(self._vote[0], _DEADLINE)

    def end(self) -> None:
        """Raise KeyboardInterrupt where a Ctrl-C came too late for any message of the training."""
        if self._vote[0] >= _INTERRUPT and self.ended_by is None:
            self.ended_by = KeyboardInterrupt()
            raise self.ended_by

    @property
    def error(self) -> BaseException | None:
        """What ends the training in every process, once its sums have brought a vote for that."""
        votes = self._message[0]
        if votes and self.ended_by is None:
            self.ended_by = KeyboardInterrupt() if votes >= _INTERRUPT else DeadlineError()
        return self.ended_by
