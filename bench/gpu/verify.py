"""The tests that need a GPU, and compute-sanitizer: in processes of their own, side by side, within a time limit."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.peers.worker import without_paths

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/cuda/test_on_gpu.py",
    "tests/conformance",
    "tests/test_network.py",
    "tests/test_checkpoint.py",
    "tests/test_predictor.py",
)
SELECTED = "cupy or test_on_gpu"
"""pytest's -k: the backend's parameter, and what only a GPU can show."""
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
COUNTED = TOOLS[:3]
"""Those whose errors are the package's: initcheck also sees what libraries leave unwritten in their workspaces."""
TAIL_LINES = 15
MOST_FAILURES = 40
"""Names of failed tests that are kept."""
ALONE = "no tool"
"""small_shapes.py on its own: whether its numbers are right."""
START_SECONDS = 25.0
"""Of a sanitizer's time, for what is not the work on shapes: imports, the context, the compiler."""


def tests_command(record: Path) -> list[str]:
    """What runs the tests on the device."""
    command = [sys.executable, "-m", "pytest", *TESTS, "-k", SELECTED, "-m", "not slow", "-q", "--tb=short"]
    if importlib.util.find_spec("pytest_benchmark") is None:  # which pyproject.toml has settings for
        command += ["-o", "addopts=", "-o", "filterwarnings="]
    # The packages of a GPU machine may be newer than those that the suite was written with.
    command += ["-W", "default::DeprecationWarning"]
    return [*command, "-p", "no:cacheprovider", "-p", "bench.gpu.pytest_record", f"--record-to={record}"]


def run_tests(command: list[str], record: Path, log: Path, seconds: float) -> dict[str, Any]:
    """Run the tests.

    Parameters
    ----------
    command : list of str
        Of `tests_command`.
    record : Path
        Where the plug-in writes a line per test.
    log : Path
        Where the output goes.
    seconds : float
        After which they are stopped.

    Returns
    -------
    dict
        status ("passed", "failed", "not finished"), passed, failed, skipped, failures (names), seconds, tail.
    """
    record.unlink(missing_ok=True)
    start = time.monotonic()
    code = run_limited(command, log, seconds, {"FUSEDMLP_REQUIRE_BACKENDS": "cupy"})
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    tests = [json.loads(line) for line in lines if line.endswith("}")]
    counts = Counter(test["outcome"] for test in tests)
    status = {0: "passed", None: "not finished"}.get(code, "failed")  # no tests at all is a failure too
    if counts["failed"]:
        status = "failed"
    return {
        "status": status,
        **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "failures": [test["test"] for test in tests if test["outcome"] == "failed"][:MOST_FAILURES],
        "seconds": time.monotonic() - start,
        "tail": [] if status == "passed" else tail(log),
    }


def sanitizer(environment: Mapping[str, str] = os.environ) -> str | None:
    """Where compute-sanitizer is, if anywhere."""
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
    command = [sys.executable, "-m", "bench.gpu.small_shapes", "--seconds", f"{max(1.0, seconds - START_SECONDS):.0f}"]
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
    """The errors that compute-sanitizer's summary names; for racecheck its hazards. None where there is no summary."""
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    return None if not found else max(int(a or b) for a, b in found)


def verify(folder: Path, seconds: float, tests: bool, sanitizers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything at once: the processes compile and compare on the host most of the time, and nothing is timed.

    Parameters
    ----------
    folder : Path
        For logs.
    seconds : float
        For all of it.
    tests, sanitizers : bool
        What to run.
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
        record, log = folder / "tests.jsonl", folder / "tests.log"
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
