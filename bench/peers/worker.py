"""A process per library: they share neither thread pools nor settings.

In one process the libraries would disturb each other: OpenBLAS's threads keep spinning for some 90 ms after a product,
on the cores that the next library needs, and some settings of one pool change another.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from bench.peers.session import Session

LIMIT_SECONDS = 600
"""A process that takes longer to answer is stopped."""


class PeerError(RuntimeError):
    """A library failed at a case; the message says how, without paths."""


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Processes that are started inside have `threads` cores, and every library is told to use as many threads."""
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
    """Call a module's function in a process of its own, and return its result.

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


# In the library's process ---------------------------------------------------------------------------------------------


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
    """A library's process, seen from the measuring one. It can be started again after it died.

    Parameters
    ----------
    name : str
        A key of `registry.PEERS`.
    kind : {"cpu", "cuda"}
        On a CPU the process has `threads` cores, on a GPU all cores.
    threads : int
    """

    def __init__(self, name: str, kind: str, threads: int) -> None:
        self.name, self.kind, self.threads = name, kind, threads
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
        make_session = partial(Session, self.name, self.kind, self.threads)
        with limited(self.threads) if self.kind == "cpu" else nullcontext():
            self._process = context.Process(target=serve, args=(theirs, make_session), daemon=True)
            self._process.start()
        theirs.close()
        self.versions = self._answer("starting")

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of `Session` there, and return its result.

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
