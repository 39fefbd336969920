"""A run on a GPU: verification, then timings, in a process that its starter can stop at any time.

Whatever is known so far is in ``partial.json``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bench.peers import rates, verify
from bench.peers.cases import Case
from bench.peers.device import Cuda, Device
from bench.peers.gpu_cases import Group
from bench.peers.measure import Clock, Field
from bench.peers.processes import ROOT
from bench.peers.results import Results, save
from bench.peers.worker import PeerError

UNFINISHED = ROOT / "bench" / "out" / "gpu"
NO_GPU = 3
"""The exit status where there is no GPU."""
RESERVE_SECONDS = 12.0
"""Time that is kept for ending the libraries' processes and for the report."""
KERNELS, SHAPES, TESTS, SANITIZERS, TIMINGS = (
    "compiling kernels",
    "small shapes",
    "tests",
    "compute-sanitizer",
    "timings",
)


@dataclass(frozen=True)
class Work:
    """The work of a run.

    Attributes
    ----------
    groups : dict
        Some of `gpu_cases.GROUPS`.
    libraries : list of str
    limit : float
        Seconds for everything.
    rounds : int
    wanted : verify.Wanted
    limits : verify.Limits
    unfinished : Path
        The folder for logs, compiled kernels, and results while they are incomplete.
    """

    groups: dict[str, Group]
    libraries: list[str]
    limit: float
    rounds: int
    wanted: verify.Wanted = field(default_factory=verify.Wanted)
    limits: verify.Limits = field(default_factory=verify.Limits)
    unfinished: Path = UNFINISHED

    @property
    def partial(self) -> Path:
        """The file of incomplete results."""
        return self.unfinished / "partial.json"


def in_process(work: Work) -> None:
    """The whole run, in a process of its own; it ends with `NO_GPU` where no GPU can be used."""
    # All processes of the run share what NVRTC has made, by CuPy's own files: the name of a file is a hash of the
    # source, the options, the compiler's version and the architecture, and it is put in place whole.
    os.environ.setdefault("CUPY_CACHE_DIR", str(work.unfinished / "kernels"))
    reason = Cuda.unavailable_reason()
    if reason is not None:
        click.echo(f"no GPU can be used: {reason}", err=True)
        sys.exit(NO_GPU)
    clock, device = Clock(), Cuda()
    run(device, device.describe(), work, lambda line: click.echo(f"[{clock.spent():4.0f} s] {line}"))


def run(device: Device, machine: dict[str, str], work: Work, say: Callable[[str], None]) -> Results:
    """Verify and measure; `work.partial` is written after each part and each group of cases."""
    clock = Clock(work.limit - RESERVE_SECONDS)
    date = datetime.now(UTC).date().isoformat()
    results = Results({**machine, "versions": {}}, date=date, limit_seconds=work.limit)
    say(f"{machine['device']}: at most {work.limit:.0f} s")
    limits = work.limits.within(clock.left())
    wanted, names = work.wanted, (KERNELS, SHAPES, TESTS, SANITIZERS, TIMINGS)
    chosen = (wanted.kernels, wanted.shapes, wanted.tests, wanted.tools, work.groups)
    for name, limit, asked in zip(names, (*limits, clock.left()), chosen, strict=True):
        status = "running" if asked else "left out"
        results.parts.append({"name": name, "status": status, "limit": limit, "seconds": 0.0})
    save(results, work.partial)
    found = verify.verify(work.unfinished, limits, wanted, device.free_bytes(), say)
    results.tests, results.sanitizer, results.seconds = found["tests"], found["sanitizer"], clock.spent()
    _end_verification(results, found["kernels"])
    part = results.parts[-1]
    part["limit"] = clock.left()
    save(results, work.partial)
    if work.groups:
        _time(results, device, work, clock, say)
        part["seconds"] = part["limit"] - clock.left()
        late = sorted({str(m.case) for m in results.measured for e in m.entries if e.status == "not run"})
        part["status"] = "not finished" if late else "finished"
        if late:
            part["reason"] = f"its time was over before {len(late)} cases: {'; '.join(late)}"
    results.seconds = clock.spent()
    save(results, work.partial)
    return results


def _end_verification(results: Results, kernels: dict[str, Any]) -> None:
    """Say of each part of the verification whether it came to its end."""
    tools = {tool: run for tool, run in results.sanitizer.items() if tool != verify.ALONE}
    runs = {
        KERNELS: {KERNELS: kernels},
        SHAPES: {SHAPES: results.sanitizer[verify.ALONE]},
        TESTS: {TESTS: results.tests},
        SANITIZERS: tools,
    }
    for part in results.parts:
        mine: dict[str, dict[str, Any]] = runs.get(part["name"], {})
        if part["status"] != "running" or not mine:
            continue
        part["seconds"] = max(run.get("seconds", 0.0) for run in mine.values())
        late = [name for name, run in mine.items() if run["status"] == "not finished"]
        absent = all(run["status"] in ("not installed", "left out", "does not work here") for run in mine.values())
        part["status"] = "not finished" if late else "left out" if absent else "finished"
        if late:
            part["reason"] = f"after {part['seconds']:.0f} s of {part['limit']:.0f}: {', '.join(late)}"
            if part["name"] == KERNELS and kernels["tail"]:
                part["reason"] += f": {kernels['tail'][-1]}"


def _time(results: Results, device: Device, work: Work, clock: Clock, say: Callable[[str], None]) -> None:
    """The rates of the device, and every group of cases on all libraries."""
    with Field(work.libraries, device, say, clock=clock) as libraries:
        results.machine["versions"] = {"python": sys.version.split()[0], **libraries.versions}
        if "fused" in libraries.workers:
            _measure_rates(libraries, results, say)

        def floor(case: Case) -> float:
            return rates.least_seconds(case, results.rates, "narrow") or 0.0

        for group in work.groups.values():
            for measured in libraries.measure(group.cases, work.rounds, floor):
                results.measured.append(measured)
                times = [f"{e.peer} {e.seconds * 1e3:.3g}" for e in measured.entries if e.seconds is not None]
                say(f"{measured.case}: {', '.join(times) + ' ms' if times else 'not run'}")
            results.seconds = clock.spent()
            save(results, work.partial)


def _measure_rates(libraries: Field, results: Results, say: Callable[[str], None]) -> None:
    """The rates of the device and the primitives, in the process of the fused engine."""
    try:
        results.rates = libraries.ask("fused", "rates")
    except PeerError as error:
        say(f"no rates: {error}")
        return
    try:
        results.primitives = libraries.ask("fused", "primitives", results.rates["bytes_per_second"])
    except PeerError as error:
        results.primitives = {"wrong": {"reason": str(error)}}
        say(f"primitives: {error}")
