"""What a library's process does when it is told to, and the process seen from outside."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from bench.gpu import rates
from bench.gpu.cases import GpuCase, draw
from bench.gpu.device import DEVICES
from bench.gpu.libraries import LIBRARIES, NotHereError
from bench.peers.worker import Worker

WARM_UP_CALLS = 4
"""Before anything is timed: CUDA graphs are captured in the second call or the third."""
MOST_CALLS = 5000
"""Of a turn."""


class Started(NamedTuple):
    """What came of a case's first calls.

    Attributes
    ----------
    result : dict
        As `exact.expected` names it; empty where the library has none.
    engine : str
        What ran.
    reason : str
        Why there is no result.
    """

    result: dict[str, np.ndarray]
    engine: str = ""
    reason: str = ""


class Session:
    """In the process of a library.

    Parameters
    ----------
    name : str
        A key of `LIBRARIES`.
    kind : str
        A key of `DEVICES`.
    """

    def __init__(self, name: str, kind: str) -> None:
        self.device = DEVICES[kind]()
        self.library = LIBRARIES[name](self.device)
        self.versions = self.library.versions()
        self._bound: Any = None
        self._seconds_per_call = 1.0

    def start(self, case: GpuCase) -> Started:
        """Make the numbers, call until everything is compiled and warm, and return the result.

        That of an epoch is the first epoch's, as each goes on from the one before; of a step it is the last call's.
        """
        problem = draw(case, self.device.xp)
        self.device.synchronize()
        self.device.free_bytes()  # what the numbers were made with is not the library's
        self.library.start_counting()
        try:
            self._bound = bound = self.library.bind(problem, case.precision == "tf32")
        except NotHereError as error:
            return Started({}, reason=str(error))
        self.library.seconds(bound, 1)
        result = bound.result() if case.task == "epoch" else {}
        self._seconds_per_call = min(self.library.seconds(bound, 1) for _ in range(WARM_UP_CALLS))
        return Started(result or bound.result(), self.library.engine())

    def turn(self, seconds: float) -> float:
        """Seconds of a call, over as many in a row as fill about `seconds`, after one that is not timed."""
        calls = max(1, min(MOST_CALLS, int(seconds / self._seconds_per_call)))
        self.library.seconds(self._bound, 1)
        return self.library.seconds(self._bound, calls) / calls

    def finish(self) -> int | None:
        """Let go of everything; the peak of device memory beyond X and Y, bytes."""
        peak = self.library.peak_bytes()
        self._bound = None
        gc.collect()
        self.library.start_counting()
        self.device.free_bytes()
        return peak

    def rates(self) -> dict[str, float]:
        """See `rates.measure`."""
        return rates.measure(self.device)

    def primitives(self, bytes_per_second: float) -> dict[str, dict[str, Any]]:
        """See `rates.primitives`."""
        return rates.primitives(self.device, bytes_per_second)


class DeviceWorker(Worker):
    """A library's process on a device.

    Parameters
    ----------
    name : str
    kind : str
        A key of `DEVICES`.
    """

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name, threads=0)
        self.kind = kind

    def surroundings(self) -> AbstractContextManager[None]:
        """The process has all cores and the environment of this one."""
        return nullcontext()

    def session(self) -> Callable[[], Session]:
        return partial(Session, self.name, self.kind)
