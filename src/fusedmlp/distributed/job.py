"""The end of a job: what ends one process ends all, since the others would wait for it for ever.

A process that is killed needs no code: mpiexec sees it, and ends the others.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from dis import opname
from typing import Any, NoReturn

from fusedmlp.distributed.mpi import mpi

INTERRUPTED = 130
"""The status that shells give a process after Ctrl-C."""
_FORWARDING_SECONDS = 0.2
"""What mpiexec has for passing on a last message: it drops what it has not read when a process aborts the job."""
_PATIENCE_SECONDS = 5.0
_watching = False
_root: Any = None
"""The frame of the script, where a SystemExit that nobody catches comes to."""
_exit: JobExit | None = None
_alone: tuple[Any, BaseException] | None = None


class JobExit(SystemExit):
    """A SystemExit that can still be looked at when Python ends: it hands over no status by then."""

    def __init__(self, *arguments: Any) -> None:
        global _exit
        super().__init__(*arguments)
        _exit = self

    @property
    def status(self) -> int:
        """The status of the process, where this has ended the script; 0 where somebody has caught it."""
        if opname[_root.f_code.co_code[_root.f_lasti]].startswith("RETURN"):  # the script has come to its end
            return 0
        return self.code if isinstance(self.code, int) else int(self.code is not None)


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
    global _watching, _root
    if _watching:
        return
    _watching = True
    report, report_of_thread = sys.excepthook, threading.excepthook
    _root = sys._getframe()
    while _root.f_back is not None:
        _root = _root.f_back

    def excepthook(kind: Any, error: Any, traceback: Any) -> None:
        report(kind, error, traceback)
        _abort(INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1)

    def thread_excepthook(arguments: Any) -> None:
        report_of_thread(arguments)
        if arguments.exc_type is not SystemExit:
            _abort(1)

    def leave(status: Any = None, /) -> NoReturn:
        raise JobExit(status)

    sys.excepthook, threading.excepthook = excepthook, thread_excepthook
    sys.exit = leave
    for name in ("__main__", "_sitebuiltins"):  # where scripts, exit() and quit() find the class
        if name in sys.modules:
            vars(sys.modules[name]).setdefault("SystemExit", JobExit)
    atexit.register(_at_exit)


def _at_exit() -> None:
    """Before MPI's last call, which waits for all."""
    if mpi().Is_finalized():
        return
    status = 0 if _exit is None else _exit.status
    if status:
        _abort(status)
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
    time.sleep(_FORWARDING_SECONDS)
    mpi().COMM_WORLD.Abort(status)
