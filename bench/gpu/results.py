"""The results of a run on a GPU, and their JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu.cases import GROUPS, GpuCase
from bench.peers.registry import OURS
from bench.peers.results import Entry, Measured, rounded
from bench.results import ResultsError


@dataclass
class GpuEntry(Entry):
    """One library at one case; `status` may also be "not run".

    Attributes
    ----------
    engine : str
        What ran: the kind and the path of the package's engine.
    """

    engine: str = ""


@dataclass
class GpuResults:
    """A whole run.

    Attributes
    ----------
    device : dict
        name, compute_capability, driver, cuda_runtime, memory.
    versions : dict
        A line per library.
    date : str
        ISO 8601, the day, UTC.
    quick : bool
    limit_seconds, seconds : float
        The time that was allowed and that it took.
    tests, sanitizer : dict
        What `verify` found.
    rates, primitives : dict
        What `rates.measure` and `rates.primitives` found.
    measured : list of Measured
        The floor of each is the least time of the narrow path, 0 where there is none.
    """

    device: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    quick: bool = False
    limit_seconds: float = 0.0
    seconds: float = 0.0
    tests: dict[str, Any] = field(default_factory=dict)
    sanitizer: dict[str, dict[str, Any]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    primitives: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)

    def mistakes(self) -> list[str]:
        """What is wrong with the package, in a line each; peers that failed are not among it."""
        found = []
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
                absent = e.peer == "fused" and e.status == "skipped" and m.case.precision == "strict"
                if absent or (e.peer in OURS and e.status in ("wrong", "failed")):
                    found.append(f"{e.peer} at {m.case}: {e.status}: {e.reason}")
        return found

    def summary(self) -> list[dict[str, Any]]:
        """A case, its time on the fused engine, and how many times as fast that is as the one it is measured by."""
        lines = []
        for m in self.measured:
            ours, group = m.entry("fused"), group_of(m.case)
            if ours is None:
                continue
            steps = m.case.steps or 1
            line: dict[str, Any] = {"case": str(m.case), "step_seconds": (ours.seconds or 0.0) / steps}
            theirs = m.entry(group[1]) if group[1] != "best peer" else m.best_peer
            if theirs is not None:
                line |= {"against": theirs.peer, "ratio": m.ratio(theirs.peer)}
            lines.append(line | {"target": group[0]})
        return lines


def group_of(case: Any) -> tuple[float | None, str]:
    """(target, against what) of a case."""
    for group in GROUPS.values():
        if group.cases[0].layer_sizes == case.layer_sizes:
            return group.target, group.against
    return None, "best peer"


def save(results: GpuResults, path: Path) -> None:
    """Write the JSON, a line per case, and put it in place whole."""
    head = {name: rounded(value) for name, value in vars(results).items() if name != "measured"}
    lines = []
    for m in results.measured:
        entries = [{k: v for k, v in asdict(e).items() if v not in (None, "", [], {})} for e in m.entries]
        lines.append(rounded({"case": m.case.to_dict(), "floor_seconds": m.floor_seconds, "entries": entries}))
    # From the numbers as they are kept, so that it agrees with every report that is written from the file.
    head["summary"] = GpuResults(**head, measured=_measured(lines)).summary()
    parts = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    measured = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    write_whole(path, "{\n" + ",\n".join([*parts, f'"measured": [\n{measured}\n]']) + "\n}\n")


def _measured(lines: list[dict[str, Any]]) -> list[Measured]:
    return [
        Measured(
            GpuCase.from_dict(line["case"]), [GpuEntry(**entry) for entry in line["entries"]], line["floor_seconds"]
        )
        for line in lines
    ]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load(path: Path) -> GpuResults:
    """Read what `save` wrote.

    Raises
    ------
    ResultsError
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        del read["summary"]
        return GpuResults(**{**read, "measured": _measured(read["measured"])})
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise ResultsError(f"{path}: expected the JSON of `python -m bench.gpu`; got something else") from None
