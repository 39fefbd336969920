"""A process per library: they share neither thread pools nor settings, and wait without using a core.

In one process the libraries would disturb each other: OpenBLAS's workers keep spinning for some 90 ms after a product,
on the cores that the next library needs, and some settings of one pool change another.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.peers.cases import Case, problem
from bench.peers.registry import peer_class

LIMIT_SECONDS = 600
"""Who takes longer to answer is stopped."""
MOST_CALLS = 2000
"""Of a turn."""
SLOW_CALL_SECONDS = 0.2
"""Faster calls are preceded by one that is not timed, which wakes the library's threads."""


class PeerError(RuntimeError):
    """A library failed at a case; the message says how, without paths."""


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """The processes started inside have `threads` cores, and every library is told to use as many threads."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    wanted = {name: str(threads) for name in (*variables, "NUMBA_NUM_THREADS", "FUSEDMLP_NUM_THREADS")}
    wanted |= {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    os.environ.update(wanted)
    try:
        if cores is not None:
            os.sched_setaffinity(0, sorted(cores)[:threads])
        yield
    finally:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def in_new_process(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a process of its own.

    Raises
    ------
    PeerError
        It raised, or the process died.
    """
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    with limited(threads):
        process = context.Process(target=_return_through, args=(sending, function, *arguments))
        process.start()
    sending.close()
    try:
        kind, answer = receiving.recv()
    except EOFError:
        process.join()
        raise PeerError(f"{function.__name__}: its process died (exit code {process.exitcode})") from None
    process.join()
    if kind == "failed":
        raise PeerError(answer)
    return answer


# In the worker --------------------------------------------------------------------------------------------------------


def status_bytes(field: str) -> int | None:
    """A field of /proc/self/status, such as VmRSS (memory now) or VmHWM (its peak); None where there is none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def forget_peak() -> None:
    """From now on VmHWM is the peak from now on; memory that is free goes back to the system first."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Session:
    """What a worker does when it is told to."""

    def __init__(self, name: str, threads: int) -> None:
        self.peer = peer_class(name)(threads)
        self.versions = self.peer.versions()
        self._bound: Any = None
        self._before: int | None = None
        # Whatever the library loads or starts with its first call belongs to no case.
        for task in self.peer.tasks:
            self.start(Case(task, (2, 2, 1), 8, batch_size=4 if task == "epoch" else None))

    def start(self, case: Case) -> tuple[dict[str, Any], float]:
        """(the first call's result, the seconds it and binding took)."""
        self._bound = None
        drawn = problem(case)
        forget_peak()
        self._before = status_bytes("VmRSS")
        start = perf_counter()
        self._bound = self.peer.bind(drawn)
        self._bound.call()
        seconds = perf_counter() - start
        result = self._bound.result()
        forget_peak()
        return result, seconds

    def turn(self, seconds: float) -> list[float]:
        """The seconds of as many calls as fill `seconds`, one at least."""
        call, times = self._bound.call, []
        start = perf_counter()
        call()
        first = perf_counter() - start
        if first > SLOW_CALL_SECONDS:
            times.append(first)
        while sum(times) < seconds and len(times) < MOST_CALLS:
            start = perf_counter()
            call()
            times.append(perf_counter() - start)
        return times

    def finish(self) -> int | None:
        """The peak of memory during the turns beyond what there was with X and Y alone, bytes."""
        peak, before = status_bytes("VmHWM"), self._before
        self._bound = None
        forget_peak()
        return None if peak is None or before is None else peak - before


def serve(connection: Connection, make_session: Callable[[], Any]) -> None:
    """Answer (method, arguments) with ("done", what it returned) or ("failed", why), until None comes."""
    session = None
    while True:
        try:
            if session is None:
                session = make_session()
                answer: tuple[str, Any] = ("done", session.versions)
            else:
                asked = connection.recv()
                if asked is None:
                    return
                method, arguments = asked
                answer = ("done", getattr(session, method)(*arguments))
        except EOFError:
            return
        except Exception as error:  # whatever a library raises is reported where its figure would stand
            traceback.print_exc()
            answer = ("failed", _said(error))
        try:
            connection.send(answer)
        except BrokenPipeError:  # nobody is waiting any more
            return
        if session is None:
            return


def _return_through(connection: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        answer = ("done", function(*arguments))
    except Exception as error:
        traceback.print_exc()
        answer = ("failed", _said(error))
    connection.send(answer)


def without_paths(text: str) -> str:
    """Text in which paths that begin with / or .. are the names of their files alone."""
    return re.sub(r"(?<![\w.])(/|(\.\./)+)([\w.+-]+/)+", "", text)


def _said(error: Exception) -> str:
    """Type and first line of an error, without paths."""
    line = without_paths((str(error).splitlines() or [""])[0])
    return f"{type(error).__name__}: {line[:200]}".rstrip(": ")


# In the parent --------------------------------------------------------------------------------------------------------


class Worker:
    """A library's process, seen from outside. It is started again after it died.

    Parameters
    ----------
    name : str
        A key of `registry.PEERS`.
    threads : int
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.threads = threads
        self.versions = ""
        self.limit_seconds: float = LIMIT_SECONDS
        self._process: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def surroundings(self) -> AbstractContextManager[None]:
        """What the process is started in."""
        return limited(self.threads)

    def session(self) -> Callable[[], Any]:
        """What makes the session there."""
        return partial(Session, self.name, self.threads)

    def begin(self) -> None:
        """Start the process and import the library.

        Raises
        ------
        PeerError
        """
        if self._process is not None:
            return
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        with self.surroundings():
            self._process = context.Process(target=serve, args=(theirs, self.session()), daemon=True)
            self._process.start()
        theirs.close()
        self.versions = self._answer("starting")

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of `Session` returns.

        Raises
        ------
        PeerError
            It raised, took too long, or the process died.
        """
        if self._process is None:
            raise PeerError("its process is gone")
        self._connection.send((method, arguments))
        return self._answer(method)

    def _answer(self, doing: str) -> Any:
        if not self._connection.poll(self.limit_seconds):
            self.stop()
            raise PeerError(f"took more than {self.limit_seconds:.0f} s ({doing})")
        try:
            kind, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            code = self._process.exitcode
            self.stop()
            raise PeerError(f"its process died (exit code {code}, {doing})") from None
        if kind == "failed":
            if doing == "starting":
                self.stop()
            raise PeerError(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        with suppress(OSError):
            self._connection.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._process = None
