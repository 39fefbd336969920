"""The tests that need a GPU, and compute-sanitizer: in processes of their own, side by side, within a time limit."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.peers.worker import without_paths

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/cuda/test_on_gpu.py",
    "tests/conformance",
    "tests/test_network.py",
    "tests/files",
    "tests/data",
    "tests/estimators/test_same_numbers.py",
)
SELECTED = "cupy or test_on_gpu"
"""pytest's -k: the backend's parameter, and the tests that need a GPU."""
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
COUNTED = TOOLS[:3]
"""Errors of these tools are the package's. initcheck also reports libraries that read unwritten workspaces."""
TAIL_LINES = 15
MOST_FAILURES = 40
"""The most names of failed tests that are kept."""
ALONE = "no tool"
"""The name of the run of small_shapes.py without compute-sanitizer, which checks its numbers."""
START_SECONDS = 25.0
"""Time of a sanitizer's run that is left for imports, the context and the compiler."""


def tests_command(record: Path) -> list[str]:
    """The command that runs the tests on the device."""
    command = [sys.executable, "-m", "pytest", *TESTS, "-k", SELECTED, "-m", "not slow", "-q", "--tb=short"]
    if importlib.util.find_spec("pytest_benchmark") is None:  # which pyproject.toml has settings for
        command += ["-o", "addopts=", "-o", "filterwarnings="]
    # The packages of a GPU machine may be newer than those that the suite was written with.
    command += ["-W", "default::DeprecationWarning"]
    return [*command, "-p", "no:cacheprovider", f"--junitxml={record}"]


def run_tests(command: list[str], record: Path, log: Path, seconds: float) -> dict[str, Any]:
    """Run the tests.

    Parameters
    ----------
    command : list of str
        The result of `tests_command`.
    record : Path
        The XML file that pytest writes at its end.
    log : Path
        Takes the output.
    seconds : float
        The tests are stopped after this time.

    Returns
    -------
    dict
        status ("passed", "failed", "not finished"), passed, failed, skipped, failures (names), seconds, tail.
    """
    record.unlink(missing_ok=True)
    start = time.monotonic()
    code = run_limited(command, log, seconds, {"FUSEDMLP_REQUIRE_BACKENDS": "cupy"})
    tests = ElementTree.parse(record).getroot().iter("testcase") if record.exists() else []
    outcomes = [(f"{test.get('classname')}::{test.get('name')}", {part.tag for part in test}) for test in tests]
    failures = [name for name, tags in outcomes if tags & {"failure", "error"}]
    skipped = sum("skipped" in tags for _, tags in outcomes)
    status = {0: "passed", None: "not finished"}.get(code, "failed")  # no tests at all is a failure too
    return {
        "status": status,
        "passed": len(outcomes) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures[:MOST_FAILURES],
        "seconds": time.monotonic() - start,
        "tail": [] if status == "passed" else tail(log),
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
    command = [
        sys.executable,
        "-m",
        "bench.peers.small_shapes",
        "--seconds",
        f"{max(1.0, seconds - START_SECONDS):.0f}",
    ]
    if program is not None:
        command = [program, "--tool", tool, "--print-limit", "20", *command]
    code = run_limited(command, log, seconds, {})
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = error_count(text) if program is not None else None
    covered = re.findall(r"^covered (.*)$", text, re.MULTILINE)
    if "Device not supported" in text:
        status = "does not work here"
    elif code is None:
        status = "not finished"
    else:
        status = "failed" if code or errors or (program is not None and errors is None) else "passed"
    return {
        "status": status,
        "errors": errors,
        "counts": status == "failed" and (tool == ALONE or (bool(errors) and tool in COUNTED)),
        "covered": covered[-1] if covered else "",
        "seconds": time.monotonic() - start,
        "tail": [] if status == "passed" else tail(log),
    }


def error_count(text: str) -> int | None:
    """The number of errors, or of hazards, in compute-sanitizer's summary; None where there is no summary."""
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    return None if not found else max(int(a or b) for a, b in found)


def verify(folder: Path, seconds: float, tests: bool, sanitizers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the tests and compute-sanitizer, all at once: most of their work is on the host, and nothing is timed.

    Parameters
    ----------
    folder : Path
        For logs.
    seconds : float
        For all of it.
    tests, sanitizers : bool
        Whether to run them.
    say : callable
        Takes a line of progress.

    Returns
    -------
    dict
        tests, and sanitizer by tool.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = sanitizer() if sanitizers else None
    missing = "left out" if not sanitizers else "not installed" if program is None else ""
    found: dict[str, Any] = {"tests": {"status": "left out"}, "sanitizer": {}}
    with ThreadPoolExecutor(2 + len(TOOLS)) as pool:
        record, log = folder / "tests.xml", folder / "tests.log"
        running = pool.submit(run_tests, tests_command(record), record, log, seconds) if tests else None
        under = (
            {tool: pool.submit(run_shapes, folder / f"{tool}.log", seconds, program, tool) for tool in TOOLS}
            if program
            else {}
        )
        if sanitizers:
            under[ALONE] = pool.submit(run_shapes, folder / "small_shapes.log", seconds)
        if running is not None:
            found["tests"] = done = running.result()
            counts = ", ".join(f"{done[name]} {name}" for name in ("passed", "failed", "skipped"))
            say(f"tests: {done['status']}: {counts}")
        for tool in (ALONE, *TOOLS):
            found["sanitizer"][tool] = done = under[tool].result() if tool in under else {"status": missing}
            say(f"small shapes, {tool}: {done['status']} {done.get('covered', '')}".rstrip())
    return found


def run_limited(command: list[str], log: Path, seconds: float, environment: dict[str, str]) -> int | None:
    """Run a command in the checkout with its output in `log`; its exit status, None where its time ran out."""
    variables = {**os.environ, **environment}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()


def tail(log: Path) -> list[str]:
    """The last lines of an output, without folders."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [without_paths(line)[:300] for line in lines if line.strip()][-TAIL_LINES:]
