"""Threads that share a run, and stay awake for a moment after it, so that the next one finds them at once.

Waking a thread takes 60 to 100 µs, which is more than a small step. A helper that has nothing to do looks for a new run
some tenths of a millisecond long, without the GIL; then it sleeps until it is called. A run is given to helpers on a
board in memory, without Python: the leader posts it, helpers that are awake join, and the leader withdraws it when it
is done. It does not wait for a helper that has not joined.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Any

from fusedmlp.backends.numba_cpu.machine.buffers import AlignedArray
from fusedmlp.backends.numba_cpu.machine.compilation import from_python
from fusedmlp.backends.numba_cpu.machine.intrinsics import (
    INTEGER,
    atomic_add,
    atomic_load,
    atomic_store,
    call_function,
    load,
    relax,
    swap_if,
    yield_address,
)
from fusedmlp.backends.numba_cpu.machine.simd import call, store

# The board: what is posted, and, each on cache lines of its own, what the helpers write.
_TICKET, _WORK, _RUN, _WORKERS, _WANTED, _LAST, _YIELDER = (8 * place for place in range(7))
_TAKEN, _INSIDE, _AWAKE, _LEADING = 128, 256, 384, 448
_BOARD_SIZE = 64
_CLOSED = -(1 << 62)
_LOOKS = 4000
"""How often a helper looks for a run before it sleeps: 0.1 to 0.2 ms."""
_SPINS_BEFORE_YIELD = 1000
# A run shorter than this wakes no helper, unless the last one ended so recently that the next may find it awake.
_WORTH_WAKING_NS, _PATIENCE_NS = 150_000, 100_000


def attend(board):
    """A helper's watch."""
    atomic_add(board + _AWAKE, 1)
    looks, seen = 0, 0
    while looks < _LOOKS:
        ticket = atomic_load(board + _TICKET)
        if ticket < 0:
            break
        if ticket in (0, seen):
            relax()
            looks += 1
            continue
        atomic_add(board + _INSIDE, 1)
        if atomic_load(board + _TICKET) == ticket:  # the leader will wait: it withdraws before it looks inside
            place = atomic_add(board + _TAKEN, 1)
            if place < load(INTEGER, board + _WANTED):
                worker = load(INTEGER, load(INTEGER, board + _WORKERS) + 8 * place)
                call(load(INTEGER, board + _WORK), (load(INTEGER, board + _RUN), worker))
        atomic_add(board + _INSIDE, -1)
        looks, seen = 0, ticket
    atomic_add(board + _AWAKE, -1)


def post(board, work, run, workers, wanted):
    """Let helpers join a run: work(run, worker), with the second to the last of `wanted` workers.

    Nothing happens while another run has the helpers.
    """
    if not swap_if(board + _LEADING, 0, run):
        return
    store(work, board + _WORK)
    store(run, board + _RUN)
    store(workers, board + _WORKERS)
    store(wanted, board + _WANTED)
    atomic_store(board + _TAKEN, 1)
    ticket = load(INTEGER, board + _LAST) + 1
    store(ticket, board + _LAST)
    atomic_add(board + _TICKET, ticket)


def withdraw(board, run):
    """Let no more helpers join a run, and wait for those that have; nothing, if it has not been posted."""
    if atomic_load(board + _LEADING) != run:
        return
    atomic_add(board + _TICKET, -load(INTEGER, board + _LAST))
    spins = 0
    while atomic_load(board + _INSIDE) > 0:
        relax()
        spins += 1
        if spins > _SPINS_BEFORE_YIELD and load(INTEGER, board + _YIELDER):
            call_function(load(INTEGER, board + _YIELDER))
    atomic_store(board + _LEADING, 0)


def enter(work, run, worker):
    """Call the routine at the address `work`."""
    call(work, (run, worker))


@cache
def _compiled() -> tuple[Any, ...]:
    """`attend`, `post`, `withdraw` and `enter`."""
    return tuple(from_python(*function) for function in ((attend, 1), (post, 5), (withdraw, 2), (enter, 3)))


class Crew:
    """The helpers of a process."""

    def __init__(self) -> None:
        self._board = AlignedArray(_BOARD_SIZE, "int64")
        self._board.numbers[_YIELDER // 8] = yield_address()
        self._attend, self._post, self._withdraw, self._enter = _compiled()
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._helpers: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._last = 0
        atexit.register(self._dismiss)

    def share(
        self,
        work: int,
        run: int,
        workers: AlignedArray,
        wanted: int,
        nanoseconds: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Do a run: work(run, worker), here and in helpers; without them while another run has them.

        Parameters
        ----------
        work, run : int
            Address of a compiled function of two int64, and its first argument. The function returns when the run
            is done, whichever workers did it.
        workers : AlignedArray
            Its second argument, for each.
        wanted : int
            Workers, one for each of them.
        nanoseconds : float
            About how long one takes for it all.
        meanwhile : callable, optional
            Called while helpers have begun, before this thread does its part.
        """
        worker = int(workers.numbers[0])
        if wanted == 1:
            if meanwhile is not None:
                meanwhile()
            self._enter(work, run, worker)
            return
        # An exception of a signal handler can come after any of these calls. `_withdraw` knows what was posted.
        try:
            self._post(self._board.address, work, run, workers.address, wanted)
            if self._board.numbers[_LEADING // 8] == run:
                self._wake(wanted - 1, nanoseconds)
            if meanwhile is not None:
                meanwhile()
            self._enter(work, run, worker)
        finally:
            self._withdraw(self._board.address, run)
            self._last = perf_counter_ns()

    def _wake(self, wanted: int, nanoseconds: float) -> None:
        """Wake helpers, if the run is worth it: all for a long one, as one that is awake may be about to sleep.

        The run is posted: a helper that is called finds it.
        """
        missing = wanted - self._calls.qsize()
        if nanoseconds < _WORTH_WAKING_NS:
            quick = perf_counter_ns() - self._last < _PATIENCE_NS
            missing = missing - int(self._board.numbers[_AWAKE // 8]) if quick else 0
        if missing > 0:
            if len(self._helpers) < wanted:
                self._start(wanted)
            for _ in range(missing):
                self._calls.put(True)

    def _start(self, wanted: int) -> None:
        with self._starting:
            while len(self._helpers) < wanted:
                helper = threading.Thread(target=self._help, name="fusedmlp-helper", daemon=True)
                helper.start()
                self._helpers.append(helper)

    def _help(self) -> None:
        while self._calls.get():
            self._attend(self._board.address)

    def _dismiss(self) -> None:
        """Before Python ends: a helper must not look at memory that is gone."""
        self._board.numbers[_TICKET // 8] = _CLOSED
        for _ in self._helpers:
            self._calls.put(False)
        for helper in self._helpers:
            helper.join(1.0)


_crew: Crew | None = None
_lock = threading.Lock()


def crew() -> Crew:
    """This process's."""
    global _crew
    if _crew is None:
        with _lock:
            _crew = _crew or Crew()
    return _crew


def _forget() -> None:
    """A forked child has the object but not the threads."""
    global _crew, _lock
    _crew, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
