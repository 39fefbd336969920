"""A plug-in of pytest: a line of JSON per test, there even if the run is stopped half-way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--record-to", metavar="FILE", help="Write a line of JSON per finished test.")


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Recorder(Path(config.getoption("--record-to"))))


class Recorder:
    """Writes {"test", "outcome"}, the outcome one of passed, failed, skipped.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        # A test passes in its call, and may be skipped or fail before and after it.
        if report.when == "call" or report.outcome != "passed":
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"test": report.nodeid, "outcome": report.outcome}) + "\n")
