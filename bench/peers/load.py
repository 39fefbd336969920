"""How busy the processes of a machine are; only Linux says."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

LOOK_SECONDS, MOST_LOOKS = 0.03, 30
"""A process is idle when it has used no core for so long; after so many looks it counts as idle anyway."""
BLIND_SECONDS = 0.2
"""The wait where the system does not tell the load of a process."""


def settle(pid: int | None) -> None:
    """Wait until a process is idle: OpenBLAS's threads keep a core busy for some 90 ms after a product."""
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
    """Measures how many cores are busy with processes other than `pids` and this one, from its creation on."""

    def __init__(self, pids: Iterable[int] = ()) -> None:
        self._pids = (os.getpid(), *pids)
        self._before = self._read()

    def _read(self) -> tuple[float, float] | None:
        """(seconds that cores spent on others so far, the time)."""
        try:
            line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
            own = sum(_processor_ticks(pid) for pid in self._pids)
        except OSError:
            return None
        user, nice, system, _idle, _wait, irq, softirq, steal = (int(x) for x in line[:8])
        busy = user + nice + system + irq + softirq + steal
        return (busy - own) / os.sysconf("SC_CLK_TCK"), time.monotonic()

    def others_cores(self) -> float | None:
        """The average number of cores that were busy with others."""
        now = self._read()
        if now is None or self._before is None:
            return None
        return round(max(0.0, (now[0] - self._before[0]) / (now[1] - self._before[1])), 3)


def _processor_ticks(pid: int) -> int:
    """User and system time of a process, in ticks of the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
