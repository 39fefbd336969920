"""Processes with a time limit: what they have started ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.peers.worker import without_paths

ROOT = Path(__file__).resolve().parents[2]
TAIL_LINES = 15


def run_limited(command: list[str], log: Path, seconds: float, environment: dict[str, str]) -> int | None:
    """Run a command in the checkout with its output in `log`; its exit status, None where its time ran out."""
    variables = {**os.environ, **environment}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                kill(process.pid)
                process.wait()


def call_limited(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> int | None:
    """Call a module's function in a process of its own; the process's exit status, None where its time ran out."""
    process = get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        assert process.pid is not None
        kill(process.pid)
        process.join()
        return None
    return process.exitcode


def kill(pid: int) -> None:
    """End a process with all that descend from it."""
    family = [pid, *descendants(pid)]
    for member in family:  # none of them starts another one meanwhile
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGSTOP)
    for member in {*family, *descendants(pid)}:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that descend from one, by Linux's table of processes; none elsewhere."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            parent = int(text.rpartition(")")[2].split()[1])  # the name before it may contain anything
            children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (own := children.get(waiting.pop(), []))
        found += own
    return found


def tail(log: Path) -> list[str]:
    """The last lines of an output, without folders."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [without_paths(line)[:300] for line in lines if line.strip()][-TAIL_LINES:]
