"""The end of a job: what ends one process ends all, since the others would wait for it for ever.

A process that is killed needs no code: mpiexec sees it, and ends the others.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from typing import Any, NoReturn

from fusedmlp.distributed.mpi import mpi

INTERRUPTED = 130
"""The status that shells give a process after Ctrl-C."""
_PATIENCE_SECONDS = 5.0
_watching = False
_status = 0
_alone: tuple[Any, BaseException] | None = None


def check() -> None:
    """Raise where a training has ended in this process alone.

    Raises
    ------
    RuntimeError
        The other processes may still be in that training: no message would find its partner.
    """
    if _alone is not None:
        raise RuntimeError(
            f"comm: an exception ended the last training in this process alone ({_alone[1]!r}), and others may be "
            "waiting in it; start the job again"
        )


def left_alone(comm: Any, error: BaseException) -> None:
    """Remember that an exception has ended a training in this process, and maybe in no other."""
    global _alone
    _alone = comm, error


def watch() -> None:
    """From now on, end all processes of the job where this one ends with an exception or with a status that is not 0.

    ``python -m mpi4py`` does the same. Without it, a process would wait in MPI's last call for the others, and they in
    the middle of a training for it.
    """
    global _watching
    if _watching:
        return
    _watching = True
    report, report_of_thread, leave = sys.excepthook, threading.excepthook, sys.exit

    def excepthook(kind: Any, error: Any, traceback: Any) -> None:
        report(kind, error, traceback)
        _abort(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)

    def thread_excepthook(arguments: Any) -> None:
        report_of_thread(arguments)
        if arguments.exc_type is not SystemExit:
            _abort(1)

    def leave_with(status: Any = None, /) -> NoReturn:
        global _status
        _status = status if isinstance(status, int) else int(status is not None)
        leave(status)

    sys.excepthook, threading.excepthook = excepthook, thread_excepthook
    sys.exit = leave_with
    atexit.register(_at_exit)


def _at_exit() -> None:
    """Before MPI's last call, which waits for all."""
    if mpi().Is_finalized():
        return
    if _status:
        _abort(_status)
    if _alone is not None and not _all_left(_alone[0]):
        sys.stderr.write(f"fusedmlp: a training ended in this process alone: {_alone[1]!r}\n")
        _abort(1)


def _all_left(comm: Any) -> bool:
    """Whether all processes leave in the same way, as after an exception that each of them had."""
    request, start = comm.Ibarrier(), time.monotonic()
    while not request.Test():
        if time.monotonic() - start > _PATIENCE_SECONDS:
            return False
        time.sleep(0.01)
    return True


def _abort(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    mpi().COMM_WORLD.Abort(status)
