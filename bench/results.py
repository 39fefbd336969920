"""The results of a run: what its JSON file keeps, and how it is read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATISTICS = ("min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "outliers", "ops", "rounds", "iterations")
"""The kept part of pytest-benchmark's statistics: all but the time of every round."""


OPERATIONS = ("matmul", "sigmoid", "fused_backward", "forward", "loss_and_gradients", "adam_step")
BACKENDS = ("numpy", "numba-cpu", "cupy")
"""The order of a report; others follow."""


class ResultsError(ValueError):
    """A file holds no results of these benchmarks."""


def strip(run: dict[str, Any]) -> None:
    """Take out of pytest-benchmark's JSON, in place, what a published file should not hold.

    That is the host's name, the commit and branch, and the time of every single round. What is left is small, and
    ``pytest-benchmark compare`` still reads it.
    """
    machine = run.get("machine_info", {})
    cpu = machine.get("cpu", {})
    run["machine_info"] = {
        "system": machine.get("system"),
        "machine": machine.get("machine"),
        "python_version": machine.get("python_version"),
        "cpu": {key: cpu[key] for key in ("arch", "brand_raw", "count") if key in cpu},
    }
    run["commit_info"] = {}
    for benchmark in run["benchmarks"]:
        benchmark["stats"] = {key: _rounded(benchmark["stats"][key]) for key in STATISTICS}
        for key in ("param", "params", "options"):
            benchmark[key] = None


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Result:
    """One benchmark.

    Attributes
    ----------
    seconds : float
        The median time of a call.
    rate : float
        Samples per second.
    """

    operation: str
    backend: str
    engine: str | None
    m: int
    n1: int
    n2: int
    n3: int
    dtype: str
    samples_per_call: int
    bytes_moved: int
    flops: int | None
    device: str
    threads: int | None
    versions: str
    seconds: float
    rounds: int

    @property
    def rate(self) -> float:
        return self.samples_per_call / self.seconds


@dataclass(frozen=True)
class Run:
    """The results of one run, and the JSON they were read from."""

    results: list[Result]
    json: dict[str, Any]

    @property
    def backends(self) -> list[str]:
        """In the order of a report."""
        return sorted({result.backend for result in self.results}, key=lambda name: (_place(name, BACKENDS), name))

    @property
    def operations(self) -> list[tuple[str, int]]:
        """(operation, n3), in the order of a report."""
        found = {(result.operation, result.n3) for result in self.results}
        return sorted(found, key=lambda pair: (_place(pair[0], OPERATIONS), pair))


def _place(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)


def load(path: str | Path) -> Run:
    """Read what ``pytest bench --benchmark-json`` or `save` wrote.

    Raises
    ------
    ResultsError
        The file is missing, is not JSON, or holds no results of these benchmarks.
    """
    try:
        run = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ResultsError(f"{path}: expected the JSON of a benchmark run; got something else") from None
    try:
        results = [
            Result(**b["extra_info"], seconds=b["stats"]["median"], rounds=b["stats"]["rounds"])
            for b in run["benchmarks"]
        ]
    except (KeyError, TypeError):
        raise ResultsError(f"{path}: expected the results of `pytest bench --benchmark-json`; got other JSON") from None
    if not results:
        raise ResultsError(f"{path}: expected at least one benchmark; got none")
    return Run(results, run)


def save(run: Run, path: str | Path) -> None:
    """Write the JSON with a line per benchmark."""
    strip(run.json)
    lines = [json.dumps(benchmark, ensure_ascii=False) for benchmark in run.json["benchmarks"]]
    head = json.dumps({**run.json, "benchmarks": []}, ensure_ascii=False)
    Path(path).write_text(
        head.replace('"benchmarks": []', '"benchmarks": [\n' + ",\n".join(lines) + "\n]") + "\n", encoding="utf-8"
    )
