"""Measuring groups of cases: first whether every library computes them rightly, then how long each takes, in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.gpu import exact, rates
from bench.gpu.cases import GpuCase, Group, draw
from bench.gpu.device import Device
from bench.gpu.libraries import LIBRARIES, cannot, missing
from bench.gpu.results import GpuEntry
from bench.gpu.session import DeviceWorker, Started
from bench.measure import WrongResultError
from bench.peers.measure import errors_of
from bench.peers.registry import OURS
from bench.peers.results import Measured
from bench.peers.worker import PeerError

TOLERANCE = {
    # (task, precision): the largest error of the package's engines and of the others, relative to the largest number
    # of each part; of an epoch that of the change of all parameters in the Euclidean norm (see bench.peers.measure)
    ("step", "strict"): (1e-4, 1e-3),
    ("step", "tf32"): (1e-2, 1e-2),
    ("epoch", "strict"): (1e-3, 2e-2),
}
MANY_SAMPLES, MANY_TIMES = 500_000, 10
"""From so many samples on, sums in float32 may be off by so many times as much without TF32."""
LOSS_TOLERANCE = {"strict": 1e-4, "tf32": 1e-3}
TURN_SECONDS = 0.05
ROUNDS, QUICK_ROUNDS = 7, 3
MEMORY_SHARE = 0.92
"""Of the free memory: libraries that do not fit into it side by side are measured one after the other."""
PROCESS_BYTES = 2**30
"""Of a process on a GPU beside its arrays: the context, kernels, a workspace of cuBLAS."""
KEPT_BYTES = 4 * PROCESS_BYTES
"""What all processes together may keep after a case: modules, workspaces."""
LEAST_SECONDS = 5.0
"""With less time left, nothing more is begun."""
MOST_SECONDS = 150.0
"""Of one answer of a library: a case's first calls, with what they compile."""
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else jax takes three quarters of the GPU's memory
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # processes of libraries have none of their own
}


class Clock:
    """The time a run may take."""

    def __init__(self, limit: float) -> None:
        self._start, self.limit = time.monotonic(), limit

    def spent(self) -> float:
        """Seconds."""
        return time.monotonic() - self._start

    def left(self) -> float:
        """Seconds, 0 at least."""
        return max(0.0, self.limit - self.spent())


def tolerance(case: GpuCase, own: bool, part: str) -> float:
    """What is allowed of a part of the result."""
    if part == "J":
        return LOSS_TOLERANCE[case.precision]
    many = case.task == "step" and case.precision == "strict" and case.m >= MANY_SAMPLES
    return TOLERANCE[case.task, case.precision][0 if own else 1] * (MANY_TIMES if many else 1)


def check(case: GpuCase, library: str, errors: dict[str, float]) -> None:
    """Compare the errors with what is allowed.

    Raises
    ------
    WrongResultError
    """
    for part, error in errors.items():
        allowed = tolerance(case, library in OURS, part)
        if not error <= allowed:
            raise WrongResultError(f"{part}: error {error:.2g} of the largest value; expected at most {allowed:g}")


def needed_bytes(case: GpuCase, library: str) -> int:
    """Memory that a library takes for a case, about, X and Y included."""
    arrays = case.sample_bytes + 2**31 if library in OURS else case.stored_bytes
    return arrays + PROCESS_BYTES


def side_by_side(needs: dict[str, int], free: int | None) -> list[list[str]]:
    """The libraries in batches that fit into `free` bytes together, in their order."""
    batches: list[list[str]] = []
    room = 0.0
    for name, need in needs.items():
        if not batches or (free is not None and need > room):
            batches.append([])
            room = MEMORY_SHARE * (free or 0)
        batches[-1].append(name)
        room -= need
    return batches


class Field:
    """The libraries of a run: those that are installed and start, the others with the reason.

    Parameters
    ----------
    names : list of str
        Keys of `LIBRARIES`.
    device : Device
    clock : Clock
    say : callable
        Takes a line of progress.
    rounds : int
    """

    def __init__(
        self, names: list[str], device: Device, clock: Clock, say: Callable[[str], None], rounds: int = ROUNDS
    ) -> None:
        self.device, self.clock, self.say, self.rounds = device, clock, say, rounds
        self.reasons = {name: reason for name in names if (reason := missing(name)) is not None}
        self.workers = {name: DeviceWorker(name, device.kind) for name in names if name not in self.reasons}
        os.environ.update(ENVIRONMENT)
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
        """By library."""
        return {name: worker.versions for name, worker in self.workers.items()}

    def ask(self, name: str, method: str, *arguments: Any) -> Any:
        """What a method of a library's `Session` returns; its process is started where it is gone.

        Raises
        ------
        PeerError
            Its process is then ended: after an error of CUDA it is good for nothing more.
        """
        worker = self.workers[name]
        worker.limit_seconds = max(1.0, min(MOST_SECONDS, self.clock.left()))
        try:
            worker.begin()
            return worker.ask(method, *arguments)
        except PeerError:
            worker.stop()
            raise

    def measure(self, group: Group, measured_rates: dict[str, float]) -> list[Measured]:
        """Check and time the cases of a group on every library."""
        entries: dict[tuple[GpuCase, str], GpuEntry] = {}
        for case in group.cases:
            for name in LIBRARIES:
                reason = self.reasons.get(name) or cannot(name, case)
                if name in self.reasons or name in self.workers:
                    status = "skipped" if reason else "not run"
                    entries[case, name] = GpuEntry(name, status, reason or "time")
        expected = self._expected(group) if self.clock.left() > LEAST_SECONDS else {}
        free, first = self.device.free_bytes(), group.cases[0]
        needs = {name: needed_bytes(first, name) for name in self.workers}
        for name, need in list(needs.items()):
            if free is not None and need > MEMORY_SHARE * free:
                del needs[name]
                reason = f"needs about {need / 2**30:.0f} GiB; {free / 2**30:.0f} GiB are free"
                for case in group.cases:
                    entries[case, name] = GpuEntry(name, "skipped", reason)
        batches = side_by_side(needs, free)
        for batch in batches:
            for case in group.cases:
                if self.clock.left() > LEAST_SECONDS:
                    self._measure(case, batch, entries, expected[case])
            if len(batches) > 1:
                self._make_room(batch, free)
        return [self._measured(case, entries, measured_rates) for case in group.cases]

    def _expected(self, group: Group) -> dict[GpuCase, dict[str, np.ndarray]]:
        """Cases that differ only in their precision have the same."""
        found: dict[Any, dict[str, np.ndarray]] = {}
        for case in group.cases:
            if case.batch_size not in found:
                found[case.batch_size] = exact.expected(draw(case, self.device.xp), self.device.xp)
        self.device.free_bytes()
        return {case: found[case.batch_size] for case in group.cases}

    def _measure(
        self,
        case: GpuCase,
        names: list[str],
        entries: dict[tuple[GpuCase, str], GpuEntry],
        expected: dict[str, np.ndarray],
    ) -> None:
        """One case on the libraries of a batch."""
        mine = {name: entries[case, name] for name in names if entries[case, name].status == "not run"}
        self._all(list(mine), lambda name: self._start(case, mine[name], expected))
        turning = [name for name, entry in mine.items() if entry.status == "ok"]
        for number in range(self.rounds):
            if self.clock.left() < LEAST_SECONDS and number:
                break
            shift = number % max(1, len(turning))
            for name in turning[shift:] + turning[:shift]:
                self._try(mine[name], lambda entry: entry.rounds.append(self.ask(entry.peer, "turn", TURN_SECONDS)))
        for name, entry in mine.items():
            if name in turning:
                self._try(entry, self._finish)
            if entry.status in ("wrong", "failed"):
                self.say(f"{entry.status}: {name} at {case}: {entry.reason}")

    def _start(self, case: GpuCase, entry: GpuEntry, expected: dict[str, np.ndarray]) -> None:
        def start(entry: GpuEntry) -> None:
            started: Started = self.ask(entry.peer, "start", case)
            if started.reason:
                entry.status, entry.reason = "skipped", started.reason
                return
            entry.engine, entry.errors = started.engine, errors_of(case, started.result, expected)
            check(case, entry.peer, entry.errors)

        entry.status, entry.reason = "ok", ""
        try:
            self._try(entry, start)
        except WrongResultError as error:
            entry.status, entry.reason = "wrong", str(error)
            self._try(GpuEntry(entry.peer), lambda gone: self.ask(gone.peer, "finish"))

    def _finish(self, entry: GpuEntry) -> None:
        entry.peak_bytes = self.ask(entry.peer, "finish")
        entry.seconds = statistics.median(entry.rounds)

    def _try(self, entry: GpuEntry, what: Callable[[GpuEntry], object]) -> None:
        """Do something for an entry that is well so far; where it fails, say so in the entry."""
        if entry.status != "ok":
            return
        try:
            what(entry)
        except PeerError as error:
            late = self.clock.left() <= 1
            entry.status, entry.reason = ("not run", "time") if late else ("failed", str(error))

    def _make_room(self, names: list[str], free: int | None) -> None:
        """End the processes that keep memory which the next ones need."""
        for name in reversed(names):  # the package's own, which give everything back, are first
            now = self.device.free_bytes()
            if now is not None and free is not None and now < free - KEPT_BYTES:
                self.workers[name].stop()

    def _measured(
        self, case: GpuCase, entries: dict[tuple[GpuCase, str], GpuEntry], measured_rates: dict[str, float]
    ) -> Measured:
        mine: list[Any] = [entries[case, name] for name in LIBRARIES if (case, name) in entries]
        return Measured(case, mine, rates.least_seconds(case, measured_rates, "narrow") or 0.0)

    def _begin(self, name: str) -> str | None:
        """Why a library's process does not start."""
        try:
            self.workers[name].limit_seconds = max(1.0, min(MOST_SECONDS, self.clock.left()))
            self.workers[name].begin()
        except PeerError as error:
            return str(error)
        return None

    def _all(self, names: list[str], what: Callable[[str], Any]) -> dict[str, Any]:
        """The same for several libraries at once; compiling and importing are work of the host."""
        if not names:
            return {}
        with ThreadPoolExecutor(len(names)) as pool:
            return dict(zip(names, pool.map(what, names), strict=True))
