"""A pytest plugin that writes a line of JSON when a test has ended, so that a run that is stopped leaves what it knew.

``-p bench.peers.pytest_record`` loads it, here and in the processes of pytest-xdist. `RECORD` names the file, which is
appended to; `LIMIT` is the most seconds of a test. A test that takes longer ends its process, which fails the test:
pytest-xdist then starts another process for the rest.
"""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

RECORD, LIMIT = "FUSEDMLP_TEST_RECORD", "FUSEDMLP_TEST_SECONDS"


def pytest_configure(config: pytest.Config) -> None:
    """Record in the process that reports; watch in those that run tests, which may be the same."""
    path = Path(os.environ[RECORD])
    in_worker, starts_workers = hasattr(config, "workerinput"), bool(getattr(config.option, "numprocesses", None))
    if not in_worker:
        config.pluginmanager.register(Recorder(path), "fusedmlp-recorder")
    if in_worker or not starts_workers:
        config.pluginmanager.register(Watch(path, float(os.environ[LIMIT])), "fusedmlp-watch")


class Recorder:
    """Writes lines: the number of collected tests with the process, and one for every phase of a test.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _collected(self, count: int) -> None:
        self._write({"collected": count, "run": os.getpid()})

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self._collected(len(ids))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:  # pytest-xdist's first process has none
            self._collected(len(session.items))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(
            {
                "test": report.nodeid,
                "when": report.when,
                "outcome": report.outcome,
                "seconds": getattr(report, "duration", 0.0),
                "compile_seconds": getattr(report, "compile_seconds", 0.0),
            }
        )


class Watch:
    """Ends a process whose test hangs, and measures the time in CUDA's compiler.

    Parameters
    ----------
    path : Path
        Beside it a file takes the stack of a test that hangs.
    limit : float
        The most seconds of a test.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self._stacks: TextIO = path.with_suffix(f".{os.getpid()}.stacks").open("w", encoding="utf-8")
        self._limit, self._compiled, self._reported = limit, 0.0, 0.0
        self._measure_compiler()

    def pytest_unconfigure(self) -> None:
        self._stacks.close()
        path = Path(self._stacks.name)
        if not path.stat().st_size:
            path.unlink()

    def _measure_compiler(self) -> None:
        try:
            from cupy.cuda import compiler
        except ImportError:  # the tests say what is missing
            return
        real = compiler.nvrtc.compileProgram

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return real(*arguments)
            finally:
                self._compiled += time.perf_counter() - start

        compiler.nvrtc.compileProgram = timed

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._stacks)
        yield
        faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        outcome: Any = yield
        report = outcome.get_result()
        report.compile_seconds = self._compiled - self._reported
        self._reported = self._compiled
