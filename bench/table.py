"""Results as Markdown: a table per operation, a row per shape, columns per backend."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bench.results import Result, Run

BASELINE = "numpy"

FORMULAS = {
    "matmul": "Z1 = W1ᵀ X",
    "sigmoid": "A1 = σ(Z1)",
    "fused_backward": "dZ1 = W2 dZ2 ⊙ A1 (1 − A1)",
    "forward": "A2, by the network's engine",
    "loss_and_gradients": "J, dW1, db1, dW2, db2 of all m samples, by the network's engine",
    "adam_step": "loss and gradients, and the update of the parameters by Adam",
}
BOUND_BY_MEMORY = ("sigmoid", "fused_backward")
"""Operations that do so little with a number that GB/s says more about them than GFLOP/s."""


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.{digits}g}")
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def with_prefix(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits and k, M or G: "1.23 M"."""
    value = float(f"{value:.{digits}g}")
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{significant(value / size, digits)} {prefix}"
    return significant(value, digits)


def markdown(run: Run) -> str:
    """The whole report."""
    parts = [_conditions(run)]
    for operation, n3 in run.operations:
        results = [r for r in run.results if (r.operation, r.n3) == (operation, n3)]
        parts.append(f"### {title(operation, n3)}\n\n{FORMULAS.get(operation, '')}\n\n{_table(results, run.backends)}")
    return "\n\n".join(parts) + "\n"


def title(operation: str, n3: int) -> str:
    """An operation's heading: `fused_backward` is measured with two values of n3."""
    return f"{operation}, n3 = {n3}" if operation == "fused_backward" else operation


def _conditions(run: Run) -> str:
    first = run.results[0]
    n3 = _joined(sorted({r.n3 for r in run.results if r.operation != "fused_backward"}) or [first.n3])
    lines = [
        f"n1 = {_joined(sorted({r.n1 for r in run.results}))} inputs, n2 hidden units, n3 = {n3} output where not said "
        f"otherwise; m samples per call; {_joined(sorted({r.dtype for r in run.results}))}.",
        f"ms is the median time of a call over {_rounds(run)} rounds, with operands and results where the "
        "backend computes; samples/s is m / time. "
        "GFLOP/s counts additions and multiplications, those of the matrix products alone for forward, "
        "loss_and_gradients and adam_step. GB/s counts every operand and result once; small ones stay in cache. "
        f"× {BASELINE} is how many times faster than {BASELINE}.",
        "",
        "| backend | device | threads | versions |",
        "|---|---|---|---|",
    ]
    for backend in run.backends:
        r = next(r for r in run.results if r.backend == backend)
        lines.append(f"| {backend} | {r.device} | {r.threads or ''} | {r.versions} |")
    return "\n".join(lines)


def _rounds(run: Run) -> str:
    fewest, most = min(r.rounds for r in run.results), max(r.rounds for r in run.results)
    return str(fewest) if fewest == most else f"{fewest} to {most}"


def _table(results: list[Result], backends: list[str]) -> str:
    unit = "GB/s" if results[0].operation in BOUND_BY_MEMORY else "GFLOP/s"
    cells = {(r.m, r.n2, r.backend): r for r in results}
    backends = [b for b in backends if any(r.backend == b for r in results)]
    header, rule = ["m", "n2"], ["--:", "--:"]
    for backend in backends:
        kinds = {r.engine for r in results if r.backend == backend and r.engine}
        columns = [f"{backend}{f' ({_joined(sorted(kinds))})' if kinds else ''}: ms", "samples/s", unit]
        if _compared(backend, backends):
            columns.append(f"× {BASELINE}")
        header += columns
        rule += ["--:"] * len(columns)
    rows = [header, rule]
    for m, n2 in _in_sweeps({(r.m, r.n2) for r in results}):
        row = [str(m), str(n2)]
        for backend in backends:
            row += _cells(cells.get((m, n2, backend)), cells.get((m, n2, BASELINE)), unit, _compared(backend, backends))
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _compared(backend: str, backends: list[str]) -> bool:
    return backend != BASELINE and BASELINE in backends


def _cells(result: Result | None, baseline: Result | None, unit: str, compared: bool) -> list[str]:
    if result is None:
        return [""] * (4 if compared else 3)
    work = result.bytes_moved if unit == "GB/s" else result.flops or math.nan
    cells = [significant(result.seconds * 1e3), with_prefix(result.rate), significant(work / result.seconds / 1e9)]
    if compared:
        cells.append("" if baseline is None else significant(baseline.seconds / result.seconds, 2))
    return cells


def _in_sweeps(shapes: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Shapes by n2, then m; the n2 with the most shapes first, so that a sweep over m is not torn apart."""
    n2s = [n2 for _, n2 in shapes]
    return sorted(shapes, key=lambda shape: (-n2s.count(shape[1]), shape[1], shape[0]))


def _joined(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
