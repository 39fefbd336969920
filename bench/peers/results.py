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
"""Whose times are compared with the others'."""


@dataclass
class Entry:
    """One library at one case.

    Attributes
    ----------
    status : {"ok", "wrong", "failed", "skipped"}
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
        Of memory while it was timed, beyond X and Y.
    """

    peer: str
    status: str = "ok"
    reason: str = ""
    seconds: float | None = None
    rounds: list[float] = field(default_factory=list)
    first_seconds: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None

    @property
    def gradient_error(self) -> float | None:
        """The largest error of a gradient; of an epoch that of the change, of a forward pass that of the output."""
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
        device, threads, others_cores at the start; a version line per library in `versions`.
    floor : dict
        What `floor.measure` found.
    measured : list of Measured
    memory : dict
        What `memory.measure` found.
    """

    machine: dict[str, Any]
    floor: dict[str, Any] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)

    def group(self, name: str) -> list[Measured]:
        return [m for m in self.measured if m.case.group == name]

    @property
    def peers(self) -> list[str]:
        """Those with a time or a reason, in the order of the registry."""
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
        line = {
            "case": m.case.to_dict(),
            "floor_seconds": m.floor_seconds,
            "others_cores": m.others_cores,
            "entries": entries,
        }
        lines.append(json.dumps(rounded(line), ensure_ascii=False))
    head = {"machine": results.machine, "floor": results.floor, "memory": results.memory}
    parts = [f"{json.dumps(key)}: {json.dumps(rounded(value), ensure_ascii=False)}" for key, value in head.items()]
    text = "{\n" + ",\n".join([*parts, '"measured": [\n' + ",\n".join(lines) + "\n]"]) + "\n}\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load(path: Path) -> Results:
    """Read what `save` wrote.

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
        return Results(read["machine"], read["floor"], measured, read["memory"])
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise ResultsError(f"{path}: expected the JSON of `python -m bench.peers`; got something else") from None
