"""The work of a library's process, at the measuring process's request."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import numpy as np

from bench.peers import rates
from bench.peers.cases import Case
from bench.peers.device import DEVICES
from bench.peers.peer import NotHereError
from bench.peers.problem import draw
from bench.peers.registry import PEERS, peer_class

WARM_UP_CALLS, WARM_UP_SECONDS = 4, 1.0
"""Calls on a GPU before anything is timed, fewer where they take so long: engines capture steps in the first calls."""
MOST_CALLS = {"cpu": 2000, "cuda": 5000}
"""The most calls of a turn."""
SLOW_CALL_SECONDS = 0.2
"""On a CPU, faster calls are preceded by one that is not timed, which wakes the library's threads."""


class Started(NamedTuple):
    """The outcome of a case's first calls.

    Attributes
    ----------
    result : dict
        As `check.expected` names it; empty where the library has none.
    first_seconds : float
        The time of binding and of the first call: copies, compilation.
    engine : str
        The engine that ran.
    reason : str
        Why there is no result.
    """

    result: dict[str, np.ndarray]
    first_seconds: float = 0.0
    engine: str = ""
    reason: str = ""


class Session:
    """A library on a device, in the library's process.

    Parameters
    ----------
    name : str
        A key of `registry.PEERS`.
    kind : str
        A key of `DEVICES`.
    threads : int
    """

    def __init__(self, name: str, kind: str, threads: int) -> None:
        self.device = DEVICES[kind]()
        self.peer = peer_class(name)(self.device, threads)
        self.versions = self.peer.versions()
        self._bound: Any = None
        self._before: int | None = None
        self._seconds_per_call = 1.0
        if kind == "cpu":  # what a library loads or starts in its first call is not counted in any case
            for task in PEERS[name].devices[kind]:
                self.start(Case(task, (2, 2, 1), 8, batch_size=4 if task == "epoch" else None))

    def start(self, case: Case) -> Started:
        """Make the numbers, call until everything is compiled, and return the result.

        The result of an epoch is that of the first call, because each epoch continues from the one before. The result
        of any other task is that of the last call.
        """
        self._bound = None
        problem = draw(case, self.device.xp)
        self.device.synchronize()
        self.peer.forget_peak()
        self._before = self.peer.memory()
        found: list[Any] = []

        def first() -> None:
            found.append(self.peer.bind(problem))
            found[0].call()

        try:
            first_seconds = self.device.seconds(first)
        except NotHereError as error:
            return Started({}, reason=str(error))
        self._bound = bound = found[0]
        result = bound.result() if case.task == "epoch" or self.device.kind == "cpu" else {}
        if self.device.kind == "cuda":
            times = [self.peer.seconds(bound, 1)]
            while len(times) < WARM_UP_CALLS and sum(times) < WARM_UP_SECONDS:
                times.append(self.peer.seconds(bound, 1))
            self._seconds_per_call = min(times)
        result = result or bound.result()
        self.peer.forget_peak()
        return Started(result, first_seconds, self.peer.engine())

    def turn(self, seconds: float) -> float:
        """The time of a call, from as many calls as fill `seconds`.

        On a CPU it is the median of the calls, on a GPU the average of calls that follow each other without a wait.
        """
        most = MOST_CALLS[self.device.kind]
        if self.device.kind == "cuda":
            calls = max(1, min(most, int(seconds / self._seconds_per_call)))
            if calls > 1:
                self.peer.seconds(self._bound, 1)
            return self.peer.seconds(self._bound, calls) / calls
        first = self.peer.seconds(self._bound, 1)
        times = [first] if first > SLOW_CALL_SECONDS else []
        while sum(times) < seconds and len(times) < most:
            times.append(self.peer.seconds(self._bound, 1))
        return statistics.median(times)

    def finish(self) -> int | None:
        """Release everything; the peak of memory during the turns beyond X and Y, bytes."""
        peak, before = self.peer.peak(), self._before
        self._bound = None
        self.peer.forget_peak()
        return None if peak is None or before is None else max(0, peak - before)

    def rates(self) -> dict[str, float]:
        """See `rates.measure`."""
        return rates.measure(self.device)

    def primitives(self, bytes_per_second: float) -> dict[str, dict[str, Any]]:
        """See `rates.primitives`."""
        return rates.primitives(self.device, bytes_per_second)
