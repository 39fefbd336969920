"""Verification on a GPU, each part within a limit: kernels, small shapes, the tests, compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers import device_tests
from bench.peers.processes import run_limited, tail

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
QUICK_TOOLS = TOOLS[:1]
COUNTED = TOOLS[:3]
"""Errors of these tools are the package's. initcheck also reports libraries that read unwritten workspaces."""
ALONE = "no tool"
"""The name of the run of small_shapes.py without compute-sanitizer, which checks its numbers."""

START_SECONDS = 25.0
"""Time of a run over the small shapes that is left for imports, the context and the last shape."""


class Limits(NamedTuple):
    """The most seconds of each part."""

    kernels: float = 80.0
    shapes: float = 120.0
    tests: float = 170.0
    sanitizers: float = 150.0

    def within(self, seconds: float) -> Limits:
        """The same, none longer than the seconds that are left."""
        return Limits(*(min(limit, seconds) for limit in self))


class Wanted(NamedTuple):
    """What to run.

    Attributes
    ----------
    tests : tuple of str
        Files and folders of tests; empty: none.
    tools : tuple of str
        Some of `TOOLS`.
    shapes : bool
        Small shapes without a tool.
    kernels : bool
        Compile what the tests need first.
    """

    tests: tuple[str, ...] = device_tests.TESTS
    tools: tuple[str, ...] = TOOLS
    shapes: bool = True
    kernels: bool = True


def compile_kernels(log: Path, seconds: float, processes: int) -> dict[str, Any]:
    """Run `warm_up`, so that the tests and the sanitizers find their kernels compiled.

    Returns
    -------
    dict
        status ("finished", "not finished"), seconds, processes, tail.
    """
    start = time.monotonic()
    command = [sys.executable, "-m", "bench.peers.warm_up", "--processes", str(processes)]
    code = run_limited(command, log, seconds, {})
    return {
        "status": "finished" if code == 0 else "not finished",
        "seconds": time.monotonic() - start,
        "processes": processes,
        "tail": [] if code == 0 else tail(log),
    }


def sanitizer(environment: Mapping[str, str] = os.environ) -> str | None:
    """The path of compute-sanitizer; None where there is none."""
    folders = [environment.get("PATH", ""), "/usr/local/cuda/bin"]
    folders += [f"{environment[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def run_shapes(log: Path, seconds: float, program: str | None = None, tool: str = ALONE) -> dict[str, Any]:
    """Run small_shapes.py, alone or under a tool of compute-sanitizer.

    Returns
    -------
    dict
        status ("passed", "failed", "not finished", "does not work here"), errors (of the tool; None: it did not say),
        counts (whether that is a mistake of the package), covered (how many shapes), seconds, tail.
    """
    start = time.monotonic()
    shapes_seconds = max(1.0, seconds - START_SECONDS)
    command = [sys.executable, "-m", "bench.peers.small_shapes", "--seconds", f"{shapes_seconds:.0f}"]
    if program is not None:
        command = [program, "--tool", tool, "--print-limit", "20", *command, "--kernels"]
    code = run_limited(command, log, seconds, {})
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = error_count(text) if program is not None else None
    covered = re.findall(r"^covered (\d+) of (\d+) shapes$", text, re.MULTILINE)
    done, wanted = covered[-1] if covered else ("0", "")
    if "Device not supported" in text:
        status = "does not work here"
    elif code is None or (program is not None and errors is None):
        status = "not finished"
    elif code or errors:
        status = "failed"
    else:
        status = "passed" if done == wanted else "not finished"
    return {
        "status": status,
        "errors": errors,
        "counts": status == "failed" and (tool == ALONE or tool in COUNTED),
        "covered": f"{done} of {wanted} shapes" if wanted else f"{done} shapes",
        "seconds": time.monotonic() - start,
        "tail": [] if status == "passed" else tail(log),
    }


def error_count(text: str) -> int | None:
    """The number of errors, or of hazards, in compute-sanitizer's summary; None where there is no summary."""
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    return None if not found else max(int(a or b) for a, b in found)


def verify(
    folder: Path, limits: Limits, wanted: Wanted, free_bytes: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """First the kernels; then small shapes, the tests and compute-sanitizer side by side: nothing is timed.

    Parameters
    ----------
    folder : Path
        For logs.
    limits : Limits
    wanted : Wanted
    free_bytes : int, optional
        Free memory of the GPU, which bounds the number of processes of tests.
    say : callable
        Takes a line of progress.

    Returns
    -------
    dict
        kernels, tests, and sanitizer by tool, with `ALONE` for the small shapes without one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = device_tests.processes_for(free_bytes)
    program = sanitizer() if wanted.tools else None
    found: dict[str, Any] = {"kernels": {"status": "left out"}, "tests": {"status": "left out"}, "sanitizer": {}}
    if wanted.kernels:
        found["kernels"] = done = compile_kernels(folder / "warm_up.log", limits.kernels, processes)
        say(f"kernels: {done['status']}, {done['seconds']:.0f} s in {processes} processes")
    for tool in (ALONE, *TOOLS):
        chosen = wanted.shapes if tool == ALONE else tool in wanted.tools
        found["sanitizer"][tool] = {"status": "not installed" if chosen and tool != ALONE else "left out"}

    def shapes(tool: str) -> None:
        limit = limits.shapes if tool == ALONE else limits.sanitizers
        log = folder / f"{'small_shapes' if tool == ALONE else tool}.log"
        done = run_shapes(log, limit, None if tool == ALONE else program, tool)
        found["sanitizer"][tool] = done
        say(f"small shapes, {tool}: {done['status']}, {done['covered']}, {done['seconds']:.0f} s")

    def tests() -> None:
        words = device_tests.command(wanted.tests)
        found["tests"] = done = device_tests.run(words, folder, limits.tests, processes, say)
        counts = ", ".join(f"{done[name]} {name}" for name in ("collected", "passed", "failed", "skipped"))
        say(f"tests: {done['status']}: {counts}, {done['seconds']:.0f} s in {done['processes']} processes")

    work: list[Callable[[], None]] = []
    if wanted.shapes:
        work.append(lambda: shapes(ALONE))
    if wanted.tests:
        work.append(tests)
    if program is not None:
        work += [lambda tool=tool: shapes(tool) for tool in wanted.tools]  # type: ignore[misc]
    with ThreadPoolExecutor(max(1, len(work))) as pool:
        for running in [pool.submit(part) for part in work]:
            running.result()
    return found
