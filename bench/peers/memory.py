"""The peak of a process's memory in one step of our engine, beyond X and Y."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from time import perf_counter
from typing import Any

from bench.peers.cases import Case, problem
from bench.peers.fusedmlp_peer import Fused
from bench.peers.worker import status_bytes

CASE = Case("step", (64, 1024, 1), 4_000_000)
QUICK_CASE = replace(CASE, m=1_000_000)


def measure(case: Case) -> dict[str, Any]:
    """Run a step at `case`; to be called in a process that has done nothing else.

    Returns
    -------
    dict
        case, samples_bytes (of X and Y), peak_bytes (beyond what the process had with X and Y made and the engine
        compiled), seconds (of the step).
    """
    peer = Fused(0)
    peer.bind(problem(replace(case, m=2000))).call()  # compiles
    drawn = problem(case)
    bound = peer.bind(drawn)
    before = status_bytes("VmRSS") or _peak()
    start = perf_counter()
    bound.call()
    seconds = perf_counter() - start
    samples = drawn.X.nbytes + drawn.Y.nbytes
    return {"case": case.to_dict(), "samples_bytes": samples, "peak_bytes": _peak() - before, "seconds": seconds}


def _peak() -> int:
    """Bytes, from what the system counts in KiB, macOS in bytes.

    Linux hands the peak that `getrusage` gives on to child processes; VmHWM is the process's own.
    """
    own = status_bytes("VmHWM")
    if own is not None:
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
