"""Measuring cases: first every library's result is compared with float64, then those that are right are timed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.measure import WrongResultError
from bench.peers import registry
from bench.peers.cases import Case
from bench.peers.check import Right, check_whole_epoch, compare
from bench.peers.device import Device
from bench.peers.load import Load, settle
from bench.peers.registry import OURS
from bench.peers.results import Entry, Measured
from bench.peers.session import Started
from bench.peers.worker import LIMIT_SECONDS, PeerError, Worker

TURN_SECONDS = {"cpu": 0.03, "cuda": 0.05}
"""A turn is as many calls as fill this."""
MOST_SECONDS, FEWEST_ROUNDS = {"cpu": 60.0, "cuda": 8.0}, 3
"""Rounds of a case end after so many seconds, but not before so many of them."""
MEMORY_SHARE = {"cpu": 0.4, "cuda": 0.92}
"""The part of the free memory that libraries may take, one by one on a CPU, side by side on a GPU."""
PROCESS_BYTES = 2**30
"""Memory of a process on a GPU beside its arrays: the context, kernels, a workspace of cuBLAS."""
KEPT_BYTES = 4 * PROCESS_BYTES
"""Memory of a GPU that all processes together may keep after a case."""
LEAST_SECONDS = 5.0
"""With less time left, nothing more is begun."""
ANSWER_SECONDS = 150.0
"""The most time for one answer of a library on a GPU: a case's first calls, with compilation."""
GPU_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # otherwise jax takes three quarters of the GPU's memory
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # the libraries' processes may not have processes of their own
}


class Clock:
    """The time that a run may take.

    Parameters
    ----------
    limit : float
        Seconds.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        self._start, self.limit = time.monotonic(), limit

    def spent(self) -> float:
        """Seconds."""
        return time.monotonic() - self._start

    def left(self) -> float:
        """Seconds, 0 at least."""
        return max(0.0, self.limit - self.spent())


def needed_bytes(case: Case, peer: str) -> int:
    """Memory that a library takes for a case on a GPU, about, X and Y included."""
    return PROCESS_BYTES + (case.sample_bytes + 2**31 if peer in OURS else case.stored_bytes)


def side_by_side(needs: dict[str, int], free: int | None, share: float) -> list[list[str]]:
    """The libraries, in their order, in batches that fit together into the share of the free bytes."""
    batches: list[list[str]] = []
    room = 0.0
    for name, need in needs.items():
        if not batches or (free is not None and need > room):
            batches.append([])
            room = share * (free or 0)
        batches[-1].append(name)
        room -= need
    return batches


class Field:
    """The libraries of a run: those that are installed and start, and the others with the reason.

    Parameters
    ----------
    names : list of str
        Keys of `registry.PEERS`.
    device : Device
    say : callable
        Takes a line of progress.
    threads : int
        Threads of every library on a CPU.
    clock : Clock, optional
    """

    def __init__(
        self, names: list[str], device: Device, say: Callable[[str], None], threads: int = 1, clock: Clock | None = None
    ) -> None:
        self.names, self.device, self.kind, self.say = names, device, device.kind, say
        self.clock = clock or Clock()
        self.reasons = {name: reason for name in names if (reason := registry.missing(name)) is not None}
        self.workers = {name: Worker(name, self.kind, threads) for name in names if name not in self.reasons}
        if self.kind == "cuda":
            os.environ.update(GPU_ENVIRONMENT)
        for name, reason in self._all(list(self.workers), self._begin).items():
            if reason is not None:
                del self.workers[name]
                self.reasons[name] = reason
        for name, reason in self.reasons.items():
            say(f"skipped: {name}: {reason}")

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *exc: object) -> None:
        self._all(list(self.workers), lambda name: self.workers[name].stop())

    @property
    def versions(self) -> dict[str, str]:
        """A line of versions per library."""
        return {name: worker.versions for name, worker in self.workers.items()}

    def ask(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of a library's `Session`; its process is started where it is gone.

        Raises
        ------
        PeerError
            On a GPU the process is then ended: after an error of CUDA it is of no use.
        """
        worker = self.workers[name]
        worker.limit_seconds = self._answer_seconds()
        try:
            worker.begin()
            return worker.ask(method, *arguments)
        except PeerError:
            if self.kind == "cuda":
                worker.stop()
            raise

    def measure(self, cases: Sequence[Case], rounds: int, floor: Callable[[Case], float]) -> list[Measured]:
        """Check and time cases that have the same X and Y on every library; `floor` gives a case's least time."""
        entries = {(case, name): self._entry(case, name) for case in cases for name in self.names}
        free, first = self.device.free_bytes(), cases[0]
        needs = {name: needed_bytes(first, name) if self.kind == "cuda" else 0 for name in self.workers}
        for name in list(needs):
            reason = self._too_large(first, name, free)
            if reason is not None:
                del needs[name]
                for case in cases:
                    if entries[case, name].status == "not run":
                        entries[case, name] = Entry(name, "skipped", reason)
        batches = side_by_side(needs, free, MEMORY_SHARE[self.kind])
        right: dict[Any, Right] = {}  # the precision changes nothing in it
        others: dict[Case, float | None] = {}
        for batch in batches:
            for case in cases:
                if self.clock.left() > LEAST_SECONDS:
                    if case.batch_size not in right:
                        right[case.batch_size] = Right.of(case, self.device.xp)
                        self.device.forget_peak()  # the libraries need this memory
                    mine = {n: entries[case, n] for n in batch if entries[case, n].status == "not run"}
                    others[case] = self._measure(case, mine, right[case.batch_size], rounds)
            if len(batches) > 1:
                self._make_room(batch, free)
        return [
            Measured(
                case,
                [entries[case, name] for name in self.names if not case.only or name in case.only],
                floor(case),
                others.get(case),
            )
            for case in cases
        ]

    def _entry(self, case: Case, name: str) -> Entry:
        reason = self.reasons.get(name) or registry.cannot(name, case, self.kind)
        return Entry(name, "skipped", reason) if reason else Entry(name, "not run", "time")

    def _too_large(self, case: Case, name: str, free: int | None) -> str | None:
        """Why a library has not enough memory for a case."""
        if self.kind == "cpu" and name in OURS:
            return None
        need = needed_bytes(case, name) if self.kind == "cuda" else case.stored_bytes
        if free is None or need <= MEMORY_SHARE[self.kind] * free:
            return None
        return f"needs about {need / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"

    def _measure(self, case: Case, entries: dict[str, Entry], right: Right, rounds: int) -> float | None:
        """One case on some libraries; the number of cores that were busy with other processes meanwhile."""
        self._all(list(entries), lambda name: self._start(case, entries[name], right))
        pids = [pid for worker in self.workers.values() if (pid := worker.pid) is not None]
        load = Load(pids) if self.kind == "cpu" else None
        turning = [name for name, entry in entries.items() if entry.status == "ok"]
        for name in turning:
            self._settle(name)
        start = time.monotonic()
        for number in range(rounds):
            late = self.clock.left() < LEAST_SECONDS
            if (late and number) or (number >= FEWEST_ROUNDS and time.monotonic() - start > MOST_SECONDS[self.kind]):
                break
            shift = number % max(1, len(turning))
            for name in turning[shift:] + turning[:shift]:
                self._try(entries[name], self._turn)
        for name in turning:
            self._try(entries[name], self._finish)
        for entry in entries.values():
            if entry.status in ("wrong", "failed"):
                self.say(f"{entry.status}: {entry.peer} at {case}: {entry.reason}")
        return load.others_cores() if load else None

    def _start(self, case: Case, entry: Entry, right: Right) -> None:
        """First calls and the check: a result that is wrong is not timed."""
        head = case.checked

        def start(entry: Entry) -> None:
            started: Started = self.ask(entry.peer, "start", head)
            if started.reason:
                entry.status, entry.reason = "skipped", started.reason
                return
            entry.errors, entry.note = compare(head, self.kind, entry.peer, started.result, right)
            if head != case:
                started = self.ask(entry.peer, "start", case)
                check_whole_epoch(started.result, right)
            entry.engine, entry.first_seconds = started.engine, started.first_seconds

        entry.status, entry.reason = "ok", ""
        try:
            self._try(entry, start)
        except WrongResultError as error:
            entry.status, entry.reason = "wrong", str(error)
            self._try(Entry(entry.peer), lambda gone: self.ask(gone.peer, "finish"))

    def _turn(self, entry: Entry) -> None:
        entry.rounds.append(self.ask(entry.peer, "turn", TURN_SECONDS[self.kind]))
        self._settle(entry.peer)

    def _settle(self, name: str) -> None:
        if self.kind == "cpu":
            settle(self.workers[name].pid)

    def _finish(self, entry: Entry) -> None:
        entry.peak_bytes = self.ask(entry.peer, "finish")
        entry.seconds = statistics.median(entry.rounds)

    def _try(self, entry: Entry, what: Callable[[Entry], object]) -> None:
        """Do something for an entry without a fault so far; a failure is noted in the entry."""
        if entry.status != "ok":
            return
        try:
            what(entry)
        except PeerError as error:
            late = self.clock.left() <= 1
            entry.status, entry.reason = ("not run", "time") if late else ("failed", str(error))

    def _make_room(self, batch: list[str], free: int | None) -> None:
        """End the processes that keep memory of a GPU which the next ones need."""
        for name in reversed(batch):  # the package's own, which give everything back, come first
            now = self.device.free_bytes()
            if now is not None and free is not None and now < free - KEPT_BYTES:
                self.workers[name].stop()

    def _begin(self, name: str) -> str | None:
        """Why a library's process does not start."""
        try:
            self.workers[name].limit_seconds = self._answer_seconds()
            self.workers[name].begin()
        except PeerError as error:
            return str(error)
        return None

    def _answer_seconds(self) -> float:
        most = ANSWER_SECONDS if self.kind == "cuda" else LIMIT_SECONDS
        return max(1.0, min(most, self.clock.left()))

    def _all(self, names: list[str], what: Callable[[str], Any]) -> dict[str, Any]:
        """Do something for several libraries: at once on a GPU, where compiling and importing is work of the host."""
        if not names:
            return {}
        with ThreadPoolExecutor(len(names) if self.kind == "cuda" else 1) as pool:
            return dict(zip(names, pool.map(what, names), strict=True))
