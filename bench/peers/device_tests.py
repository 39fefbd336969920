"""The tests that need a GPU, in as many processes as there are cores, within a time limit."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.processes import run_limited, tail
from bench.peers.pytest_record import LIMIT, RECORD

TESTS = (
    "tests/cuda/test_on_gpu.py",
    "tests/conformance",
    "tests/test_network.py",
    "tests/files",
    "tests/data",
    "tests/estimators/test_same_numbers.py",
)
QUICK_TESTS = TESTS[:1]
SELECTED = "cupy or test_on_gpu"
"""pytest's -k: the backend's parameter, and the tests that need a GPU."""
TEST_SECONDS = 90.0
"""A test that takes longer ends its process."""
ALONE_SECONDS = 25.0
"""The part of the time that is kept for the tests that run alone."""
POOL_BYTES, CONTEXT_BYTES = 4 * 2**30, 2**30
"""Memory of a GPU for a process of tests: the limit of CuPy's pool, and the context with kernels and cuBLAS."""
MEMORY_SHARE = 0.9
"""The part of the free memory that all processes of tests may take."""
MOST_FAILURES = 40
"""The most names of failed tests that are kept."""
INSTALL = "pytest-xdist is not installed: pip install pytest-xdist"


def processes_for(free_bytes: int | None) -> int:
    """As many processes as cores that this one may use, or as many as the GPU's memory has room for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if free_bytes is None:
        return cores
    return max(1, min(cores, int(MEMORY_SHARE * free_bytes / (POOL_BYTES + CONTEXT_BYTES))))


def command(tests: tuple[str, ...], selected: str = SELECTED) -> list[str]:
    """What both runs of pytest have in common."""
    words = [sys.executable, "-m", "pytest", *tests, "-k", selected, "-q", "--tb=short", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("pytest_benchmark") is None:  # which pyproject.toml has settings for
        words += ["-o", "addopts=", "-o", "filterwarnings="]
    # The packages of a GPU machine may be newer than those that the suite was written with.
    return [*words, "-W", "default::DeprecationWarning", "-p", "bench.peers.pytest_record"]


def run(words: list[str], folder: Path, seconds: float, processes: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the tests: first those that can run side by side, then, in one process, those marked ``alone``.

    Parameters
    ----------
    words : list of str
        The result of `command`.
    folder : Path
        For the record and the logs.
    seconds : float
        For all of it.
    processes : int
    say : callable
        Takes a line of progress.

    Returns
    -------
    dict
        status ("passed", "failed", "not finished"), collected, passed, failed, skipped, failures (names), groups (by
        file: tests, seconds and compile_seconds, summed over the processes), processes, seconds, tail.
    """
    start, record = time.monotonic(), folder / "tests.jsonl"
    record.unlink(missing_ok=True)
    if processes > 1 and importlib.util.find_spec("xdist") is None:
        say(f"the tests run in one process, which takes many times as long: {INSTALL}")
        processes = 1
    spread = ["-n", str(processes), "--dist=load", "--maxschedchunk=1"] if processes > 1 else []
    environment = {
        "FUSEDMLP_REQUIRE_BACKENDS": "cupy",
        RECORD: str(record),
        LIMIT: f"{TEST_SECONDS:g}",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    }
    logs = [folder / "tests.log", folder / "tests-alone.log"]
    limited = {**environment, "CUPY_GPU_MEMORY_LIMIT": str(POOL_BYTES)} if processes > 1 else environment
    together = max(1.0, seconds - ALONE_SECONDS)
    codes = [run_limited([*words, "-m", "not alone", *spread], logs[0], together, limited)]
    left = max(1.0, seconds - (time.monotonic() - start))
    codes.append(run_limited([*words, "-m", "alone", "-p", "no:xdist"], logs[1], left, environment))
    found = summary(record.read_text(encoding="utf-8").splitlines() if record.exists() else [])
    ended = found["passed"] + found["failed"] + found["skipped"]
    if None in codes or ended < found["collected"]:
        found["status"] = "not finished"
    else:
        found["status"] = "passed" if codes == [0, 0] and ended else "failed"
    last = [] if found["status"] == "passed" else [line for log in logs for line in tail(log)]
    return {**found, "processes": processes, "seconds": time.monotonic() - start, "tail": last}


def summary(lines: list[str]) -> dict[str, Any]:
    """The counts and the groups of a record that `pytest_record` wrote; the last line may be cut."""
    collected, tests = dict[int, int](), dict[str, dict[str, Any]]()
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "collected" in line:  # each process of a run says the same number
            collected[line["run"]] = line["collected"]
            continue
        test = tests.setdefault(line["test"], {"outcomes": set(), "ended": False, "seconds": 0.0, "compile_seconds": 0})
        test["outcomes"].add(line["outcome"])
        test["ended"] |= line["when"] in ("teardown", "???")  # ??? is a test whose process died
        for name in ("seconds", "compile_seconds"):
            test[name] += line[name]
    ended = {name: test for name, test in tests.items() if test["ended"]}
    failures = [name for name, test in ended.items() if "failed" in test["outcomes"]]
    skipped = sum("skipped" in test["outcomes"] for name, test in ended.items() if name not in failures)
    groups: dict[str, dict[str, Any]] = {}
    for name, test in ended.items():
        group = groups.setdefault(name.partition("::")[0], {"tests": 0, "seconds": 0.0, "compile_seconds": 0.0})
        group["tests"] += 1
        for key in ("seconds", "compile_seconds"):
            group[key] += test[key]
    return {
        "collected": sum(collected.values()),
        "passed": len(ended) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures[:MOST_FAILURES],
        "groups": groups,
    }
