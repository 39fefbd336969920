"""Measuring a case: first whether every library computes it rightly, then how long each takes, in turns."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from bench.measure import WrongResultError
from bench.peers import exact
from bench.peers.cases import Case, problem
from bench.peers.registry import missing, peer_class
from bench.peers.results import OURS_FIRST, Entry, Measured
from bench.peers.worker import PeerError, Worker

TOLERANCE = {
    # (task, whether it is our fused engine): the largest error, relative to the largest number of each part
    ("step", True): 1e-5,
    ("step", False): 1e-4,
    ("forward", True): 1e-5,
    ("forward", False): 1e-5,
    # The change of all parameters by an epoch, in the Euclidean norm. Adam divides by the gradient's size: where that
    # is near 0, rounding decides, and so does epsilon, which torch adds elsewhere than the others.
    ("epoch", True): 1e-4,
    ("epoch", False): 2e-2,
}
LOSS_TOLERANCE = {"step": 1e-5, "epoch": 1e-4}
"""Of J, by task; a tenth of it for our fused engine."""
MANY_SAMPLES, MANY_SAMPLES_TOLERANCE = 500_000, 1e-2
"""From so many samples on, the others' gradients may be off by this: torch and jax add up dW2 term by term in float32.

At 2-64-1 and m = 1,000,000 one unit is nearly the same for all samples, each addition is rounded the same way, and
their dW2 is off by 0.0034. A float32 sum in a loop gives that very number.
"""
TURN_SECONDS = 0.03
"""A turn is as many calls as fill this."""
LOOK_SECONDS, MOST_LOOKS = 0.03, 30
"""After a turn the next one waits until the process has used no core for so long, and looks so often at most."""
BLIND_SECONDS = 0.2
"""The wait where the system does not tell what a process uses."""
MOST_SECONDS = 60.0
"""Rounds of a case end after this, but not before FEWEST_ROUNDS of them."""
FEWEST_ROUNDS = 3
MEMORY_SHARE = 0.4
"""Of the memory that is free: a case for which a library would need more is not measured on it."""
STORES_NOTHING = ("fused", "composed", "numpy")
"""Those that need little memory beyond X and Y."""


def errors_of(case: Case, result: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """The relative error of each part; infinity where its shape is wrong or a number is not finite."""
    errors = {}
    for name, right in expected.items():
        got = result.get(name)
        if got is None or got.shape != right.shape or not np.isfinite(got).all():
            errors[name] = float("inf")
            continue
        difference, size = np.ravel(got - right).astype(np.float64), np.ravel(right)
        norm = np.linalg.norm if name == "change" else (lambda x: np.max(np.abs(x)))
        errors[name] = float(norm(difference) / norm(size))
    return errors


def tolerance(case: Case, ours: bool, name: str) -> float:
    """What is allowed of a part of the result."""
    if name == "J":
        return LOSS_TOLERANCE[case.task] / (10 if ours else 1)
    if case.task == "step" and case.m >= MANY_SAMPLES and not ours:
        return MANY_SAMPLES_TOLERANCE
    return TOLERANCE[case.task, ours]


def check(case: Case, peer: str, errors: dict[str, float]) -> None:
    """Compare the errors with what is allowed.

    Raises
    ------
    WrongResultError
    """
    for name, error in errors.items():
        allowed = tolerance(case, peer == OURS_FIRST, name)
        if not error <= allowed:
            raise WrongResultError(f"{name}: error {error:.2g} of the largest value; expected at most {allowed:g}")


def why_not(case: Case, peer: str, tasks: dict[str, tuple[str, ...]]) -> str | None:
    """Why a library does not take part in a case."""
    if case.only and peer not in case.only:
        return f"measured on {', '.join(case.only)} alone at this size"
    if case.task not in tasks[peer]:
        return f"no {case.task} of its own"
    free = _free_bytes()
    if peer not in STORES_NOTHING and free is not None and case.stored_bytes > MEMORY_SHARE * free:
        return f"needs about {case.stored_bytes / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
    return None


def _free_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        found = re.search(
            r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE
        )
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class Field:
    """The libraries of a run: those that are installed and start, the others with the reason.

    Parameters
    ----------
    names : sequence of str
        Keys of `registry.PEERS`.
    threads : int
    say : callable
        Takes a line of progress.
    """

    def __init__(self, names: list[str], threads: int, say: Callable[[str], None]) -> None:
        self.threads = threads
        self.say = say
        self.reasons: dict[str, str] = {}
        self.workers: dict[str, Worker] = {}
        self.tasks: dict[str, tuple[str, ...]] = {}
        for name in names:
            reason = missing(name)
            if reason is None:
                worker = Worker(name, threads)
                try:
                    worker.begin()
                    self.workers[name], self.tasks[name] = worker, peer_class(name).tasks
                    continue
                except PeerError as error:
                    reason = str(error)
            self.reasons[name] = reason
            say(f"skipped: {name}: {reason}")

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self.workers.values():
            worker.stop()

    def measure(self, case: Case, floor_seconds: float, rounds: int) -> Measured:
        """Check and time a case on every library."""
        entries = {name: Entry(name, "skipped", reason) for name, reason in self.reasons.items()}
        taking_part = []
        for name in self.workers:
            reason = why_not(case, name, self.tasks)
            if reason is None:
                taking_part.append(name)
            elif not case.only:
                entries[name] = Entry(name, "skipped", reason)
        expected = exact.expected(problem(case))
        for name in taking_part:
            entries[name] = self._start(case, self.workers[name], expected)
        load = Load(worker.pid for worker in self.workers.values() if worker.pid is not None)
        self._time(entries, rounds)
        others = load.others_cores()
        ordered = [entries[name] for name in (*self.workers, *self.reasons) if name in entries]
        for entry in ordered:
            if entry.status in ("wrong", "failed"):
                self.say(f"{entry.status}: {entry.peer} at {case}: {entry.reason}")
        return Measured(case, ordered, floor_seconds, others)

    def _start(self, case: Case, worker: Worker, expected: dict[str, np.ndarray]) -> Entry:
        entry = Entry(worker.name)
        try:
            worker.begin()
            result, entry.first_seconds = worker.ask("start", case)
            entry.errors = errors_of(case, result, expected)
            check(case, worker.name, entry.errors)
        except WrongResultError as error:
            entry.status, entry.reason = "wrong", str(error)
            worker.ask("finish")
        except PeerError as error:
            entry.status, entry.reason = "failed", str(error)
        return entry

    def _time(self, entries: dict[str, Entry], rounds: int) -> None:
        """Rounds in which every library has a turn, each round starting with another one."""
        turning = [name for name, entry in entries.items() if entry.status == "ok"]
        start = time.monotonic()
        for name in turning:
            settle(self.workers[name].pid)
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.monotonic() - start > MOST_SECONDS:
                break
            shift = number % max(1, len(turning))
            for name in turning[shift:] + turning[:shift]:
                entry = entries[name]
                if entry.status != "ok":
                    continue
                try:
                    entry.rounds.append(statistics.median(self.workers[name].ask("turn", TURN_SECONDS)))
                    settle(self.workers[name].pid)
                except PeerError as error:
                    entry.status, entry.reason = "failed", str(error)
        for name in turning:
            entry = entries[name]
            if entry.status == "ok":
                entry.seconds = statistics.median(entry.rounds)
                entry.peak_bytes = self.workers[name].ask("finish")


def settle(pid: int | None) -> None:
    """Wait until a process is idle: OpenBLAS's workers keep a core busy for some 90 ms after a product."""
    if pid is None:
        return
    before = -1
    for _ in range(MOST_LOOKS):
        try:
            now = _processor_ticks(pid)
        except OSError:
            time.sleep(BLIND_SECONDS)
            return
        if now == before:
            return
        before = now
        time.sleep(LOOK_SECONDS)


class Load:
    """How busy processes other than `pids` and this one keep the machine from here on; only Linux says."""

    def __init__(self, pids: Iterable[int] = ()) -> None:
        self._pids = (os.getpid(), *pids)
        self._before = self._read()

    def _read(self) -> tuple[float, float] | None:
        """(seconds that all cores were busy for others, the time)."""
        try:
            line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
            own = sum(_processor_ticks(pid) for pid in self._pids)
        except OSError:
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal = (int(x) for x in line[:8])
        busy = user + nice + system + irq + softirq + steal
        return (busy - own) / os.sysconf("SC_CLK_TCK"), time.monotonic()

    def others_cores(self) -> float | None:
        """How many cores were busy with others, on average."""
        now = self._read()
        if now is None or self._before is None:
            return None
        return round(max(0.0, (now[0] - self._before[0]) / (now[1] - self._before[1])), 3)


def _processor_ticks(pid: int) -> int:
    """Of user and system time."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
