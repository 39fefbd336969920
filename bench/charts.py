"""Two charts: throughput against m and against n2, a panel per operation, a line per backend."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from bench.grid import FIXED_M, FIXED_N2
from bench.results import Result, Run
from bench.table import title, with_prefix

# Okabe and Ito's colours, which stay apart for colour-blind readers; markers for print without colour.
STYLES = {"numpy": ("#0072B2", "o"), "numba-cpu": ("#D55E00", "s"), "cupy": ("#009E73", "^")}
OTHER_STYLES = (("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
SYMBOL = {"m": "m, samples per call", "n2": "n2, hidden units"}
COLUMNS = 4


def draw(run: Run, folder: str | Path) -> list[Path]:
    """Write throughput-m.png and throughput-n2.png; one with nothing to draw a line through is left out."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for axis, fixed, preferred in (("m", "n2", FIXED_N2), ("n2", "m", FIXED_M)):
        value = _longest_sweep(run.results, fixed, preferred)
        if value is None:
            continue
        results = [r for r in run.results if getattr(r, fixed) == value]
        path = Path(folder) / f"throughput-{axis}.png"
        _draw(Run(results, run.json), axis, f"{fixed} = {value}", path)
        paths.append(path)
    return paths


def _longest_sweep(results: list[Result], fixed: str, preferred: int) -> int | None:
    """The value of `fixed` with the most shapes, of equals the preferred one; None where no value has two shapes."""
    counts = Counter(getattr(r, fixed) for r in {(r.m, r.n2): r for r in results}.values())
    value = max(counts, key=lambda value: (counts[value], value == preferred))
    return value if counts[value] > 1 else None


def _style(backend: str, backends: list[str]) -> tuple[str, str]:
    others = [b for b in backends if b not in STYLES]
    return STYLES.get(backend) or OTHER_STYLES[others.index(backend) % len(OTHER_STYLES)]


def _draw(run: Run, axis: str, fixed: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil((len(run.operations) + 1) / COLUMNS)  # a panel is left for the legend
    figure = Figure(figsize=(11, 1.1 + 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for panel, operation in zip(panels, run.operations, strict=False):
        _draw_panel(panel, run, operation, axis)
    for panel in panels[len(run.operations) :]:
        panel.set_axis_off()
    _draw_legend(panels[len(run.operations)], run.backends)
    figure.suptitle(_heading(run, axis, fixed), fontsize=13)
    figure.supylabel("samples per second", fontsize=12)
    figure.supxlabel(SYMBOL[axis], fontsize=12)
    figure.savefig(path, dpi=150)


def _heading(run: Run, axis: str, fixed: str) -> str:
    first, n3 = run.results[0], min(r.n3 for r in run.results)
    devices: dict[str, list[str]] = {}
    for backend in run.backends:
        r = next(r for r in run.results if r.backend == backend)
        devices.setdefault(r.device + (f", {r.threads} threads" if r.threads else ""), []).append(backend)
    machine = (
        next(iter(devices))
        if len(devices) == 1
        else ";  ".join(f"{', '.join(backends)}: {device}" for device, backends in devices.items())
    )
    sizes = f"n1 = {first.n1}, {fixed}, n3 = {n3} where not stated, {first.dtype}"
    return f"Throughput against {axis}   ({sizes})\n{machine}"


def _draw_panel(panel: Any, run: Run, operation: tuple[str, int], axis: str) -> None:
    ticks: set[int] = set()
    for backend in run.backends:
        points = sorted(
            (getattr(r, axis), r.rate) for r in run.results if (r.operation, r.n3, r.backend) == (*operation, backend)
        )
        if points:
            _plot(panel, backend, run.backends, *zip(*points, strict=True))
        ticks |= {x for x, _ in points}
    panel.set_title(title(*operation), fontsize=12)
    _set_axes(panel, sorted(ticks), axis)


def _set_axes(panel: Any, sizes: list[int], axis: str) -> None:
    """Both axes logarithmic: the sizes along x, at least a factor of 10 along y, so that noise does not look large."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(sizes[:: math.ceil(len(sizes) / 6)]))
    panel.xaxis.set_minor_locator(NullLocator())
    if axis == "n2":
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    low, high = panel.get_ylim()
    if high < 10 * low:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(10), middle * math.sqrt(10)
        panel.set_ylim(low, high)
    # Labels at 1, 2, 5 where there are few powers of ten.
    steps = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    panel.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: with_prefix(y, 1)))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=10)
    panel.grid(True, which="major", color="0.87", linewidth=0.8)
    panel.set_axisbelow(True)


def _draw_legend(panel: Any, backends: list[str]) -> None:
    for backend in backends:
        _plot(panel, backend, backends, [], [], label=f"fusedmlp: {backend}")
    panel.legend(loc="center", fontsize=13, frameon=False, handlelength=3, labelspacing=0.8)


def _plot(panel: Any, backend: str, backends: list[str], x: Any, y: Any, **kwargs: Any) -> None:
    color, marker = _style(backend, backends)
    panel.plot(x, y, color=color, marker=marker, markersize=6, linewidth=1.8, **kwargs)
