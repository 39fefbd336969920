"""The peak of a process's memory in one step of our engine, beyond X and Y."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from bench.peers.cases import Case
from bench.peers.device import Cpu
from bench.peers.fusedmlp_peer import Fused
from bench.peers.problem import draw

CASE = Case("step", (64, 1024, 1), 4_000_000)
QUICK_CASE = replace(CASE, m=1_000_000)


def measure(case: Case) -> dict[str, Any]:
    """Run a step at `case`; to be called in a process that has done nothing else.

    Returns
    -------
    dict
        case; samples_bytes, of X and Y; peak_bytes, beyond the process's memory with X and Y made and the engine
        compiled; seconds of the step.
    """
    device = Cpu()
    peer = Fused(device, 0)
    peer.bind(draw(replace(case, m=2000), np)).call()  # compiles
    problem = draw(case, np)
    bound = peer.bind(problem)
    device.forget_peak()
    before = device.memory() or _peak()
    start = perf_counter()
    bound.call()
    seconds = perf_counter() - start
    samples = problem.X.nbytes + problem.Y.nbytes
    return {"case": case.to_dict(), "samples_bytes": samples, "peak_bytes": _peak() - before, "seconds": seconds}


def _peak() -> int:
    """Bytes. `getrusage` counts in KiB, on macOS in bytes; on Linux it also knows the peak of the parent process."""
    own = Cpu().peak()
    if own is not None:
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
