"""The results of a run, and their JSON."""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.cases import Case
from bench.peers.registry import OURS
from bench.results import ResultsError

OURS_FIRST = "fused"
"""The engine whose times are compared with the others'."""


@dataclass
class Entry:
    """One library at one case.

    Attributes
    ----------
    status : {"ok", "wrong", "failed", "skipped", "not run"}
    reason : str
        Why it has no time.
    seconds : float, optional
        The median over the rounds.
    rounds : list of float
        The median call of each round, seconds.
    first_seconds : float, optional
        Binding and the first call: copies, compilation.
    errors : dict
        The largest error of each part of the result, relative to its largest number.
    peak_bytes : int, optional
        Memory while it was timed, beyond X and Y.
    engine : str
        The engine that ran, where the library has a name for it.
    note : str
        Why its result differs from the common reference by more than rounding, where that is explained.
    """

    peer: str
    status: str = "ok"
    reason: str = ""
    seconds: float | None = None
    rounds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    engine: str = ""
    note: str = ""

    @property
    def gradient_error(self) -> float | None:
        """The largest error of a part other than J: of a gradient, of an epoch's change, of an output."""
        return max((error for name, error in self.errors.items() if name != "J"), default=None)


@dataclass
class Measured:
    """A case with an entry per library.

    Attributes
    ----------
    others_cores : float, optional
        How many cores were busy with other processes meanwhile.
    """

    case: Case
    entries: list[Entry]
    floor_seconds: float
    others_cores: float | None = None

    def entry(self, peer: str) -> Entry | None:
        """A library's entry, where it has a time."""
        return next((e for e in self.entries if e.peer == peer and e.seconds is not None), None)

    def any_entry(self, peer: str) -> Entry | None:
        """A library's entry, with or without a time."""
        return next((e for e in self.entries if e.peer == peer), None)

    @property
    def best_peer(self) -> Entry | None:
        """The fastest of the other libraries."""
        others = [e for e in self.entries if e.peer not in OURS and e.seconds is not None]
        return min(others, key=lambda e: e.seconds or 0.0, default=None)

    def ratio(self, peer: str) -> float | None:
        """How many times as fast as a library our fused engine is."""
        ours, theirs = self.entry(OURS_FIRST), self.entry(peer)
        if ours is None or theirs is None:
            return None
        return (theirs.seconds or 0.0) / (ours.seconds or 1.0)


@dataclass
class Results:
    """A whole run.

    Attributes
    ----------
    machine : dict
        The device; a line of versions per library in `versions`. On a CPU: threads, and `others_cores` at the start.
        On a GPU: compute_capability, memory, driver, cuda_runtime.
    floor : dict
        The result of `floor.measure`, on a CPU.
    memory : dict
        The result of `memory.measure`, on a CPU.
    date : str
        The day, UTC, ISO 8601.
    limit_seconds, seconds : float
        The time that was allowed on a GPU, and the time that was taken.
    parts : list of dict
        The parts of a run on a GPU, in their order: name, status ("running", "finished", "not finished", "left out"),
        limit and seconds, and a reason where it did not come to its end.
    tests, sanitizer : dict
        The results of `verify.verify`, on a GPU.
    rates, primitives : dict
        The results of `rates.measure` and `rates.primitives`, on a GPU.
    measured : list of Measured
    """

    machine: dict[str, Any]
    floor: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    limit_seconds: float = 0.0
    seconds: float = 0.0
    parts: list[dict[str, Any]] = field(default_factory=list)
    tests: dict[str, Any] = field(default_factory=dict)
    sanitizer: dict[str, dict[str, Any]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    primitives: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)

    def mistakes(self) -> list[str]:
        """The faults of the package, a line each. Peers that failed on a GPU are not among them."""
        found = [
            f"{part['name']}: did not come to its end: {part['reason']}"
            for part in self.parts
            if part["status"] == "not finished"
        ]
        if self.tests.get("status") == "failed":
            found.append(f"tests: {self.tests['failed']} failed")
        for tool, run in self.sanitizer.items():
            if run.get("counts"):
                errors = "" if run["errors"] is None else f", {run['errors']} errors"
                found.append(f"small shapes, {tool}: {run['status']}{errors}")
        if "wrong" in self.primitives:
            found.append(f"primitives: {self.primitives['wrong']['reason']}")
        for m in self.measured:
            for e in m.entries:
                absent = e.peer == OURS_FIRST and e.status == "skipped" and m.case.precision == "strict"
                if absent or (e.peer in OURS and e.status in ("wrong", "failed")):
                    found.append(f"{e.peer} at {m.case}: {e.status}: {e.reason}")
        return found

    def not_verified(self) -> list[str]:
        """Why the package's results on this GPU are not verified, a line each; such results are not published."""
        found = []
        if self.tests.get("status") != "passed":
            found.append(f"tests: {self.tests.get('status', 'left out')}")
        for tool, run in self.sanitizer.items():
            wanted = tool == "no tool" or run["status"] not in ("not installed", "left out", "does not work here")
            if wanted and (run.get("counts") or run["status"] in ("not finished", "left out")):
                found.append(f"small shapes, {tool}: {run['status']}")
        if "wrong" in self.primitives:
            found.append("primitives: wrong")
        wrong = [m for m in self.measured for e in m.entries if e.peer in OURS and e.status == "wrong"]
        return found + [f"wrong at {m.case}" for m in wrong]

    def group(self, name: str) -> list[Measured]:
        return [m for m in self.measured if m.case.group == name]

    @property
    def peers(self) -> list[str]:
        """The libraries with a time or a reason, in the order of the registry."""
        return list(dict.fromkeys(e.peer for m in self.measured for e in m.entries))

    def exponent(self, group: str, smallest: int) -> dict[str, Any] | None:
        """p of time = c · sizeᵖ for our engine over a sweep from `smallest` on, by least squares of the logarithms."""
        points = []
        for m in self.group(group):
            size = m.case.m if group == "m" else m.case.layer_sizes[1]
            ours = m.entry(OURS_FIRST)
            if ours is not None and size >= smallest:
                points.append((size, ours.seconds))
        if len({size for size, _ in points}) < 2:
            return None
        x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
        slope = statistics.linear_regression(x, y).slope
        return {"exponent": round(slope, 4), "from": min(points)[0], "to": max(points)[0]}


def rounded(value: Any) -> Any:
    """Four significant digits of every float inside."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def save(results: Results, path: Path) -> None:
    """Write the JSON, a line per case, and put it in place whole."""
    lines = []
    for m in results.measured:
        entries = [{k: v for k, v in asdict(e).items() if v not in (None, "", [], {})} for e in m.entries]
        numbers = {"floor_seconds": m.floor_seconds, "others_cores": m.others_cores}
        lines.append(rounded({"case": m.case.to_dict(), **numbers, "entries": entries}))
    head = {name: rounded(value) for name, value in vars(results).items() if name != "measured" and value}
    parts = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    measured = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    write_whole(path, "{\n" + ",\n".join([*parts, f'"measured": [\n{measured}\n]']) + "\n}\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load(path: Path) -> Results:
    """Read a file that `save` wrote.

    Raises
    ------
    ResultsError
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        measured = [
            Measured(
                Case.from_dict(line["case"]),
                [Entry(**entry) for entry in line["entries"]],
                line["floor_seconds"],
                line["others_cores"],
            )
            for line in read["measured"]
        ]
        return Results(**{**read, "measured": measured})
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise ResultsError(f"{path}: expected the JSON of `python -m bench.peers`; got something else") from None
