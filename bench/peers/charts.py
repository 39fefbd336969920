"""Charts of the sweeps: time against m and against n2, a line per library, and the floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.peers.registry import OURS
from bench.peers.results import OURS_FIRST, Measured, Results

# Okabe and Ito's colours, which stay apart for colour-blind readers; markers for print without colour.
STYLES = {
    "fused": ("#D55E00", "s"),
    "composed": ("#E69F00", "v"),
    "numpy": ("#0072B2", "o"),
    "torch": ("#009E73", "^"),
    "torch.compile": ("#56B4E9", "D"),
    "jax": ("#CC79A7", "P"),
    "scikit-learn": ("#666666", "X"),
}
SYMBOL = {"m": "m, samples", "n2": "n2, hidden units"}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write time-m.png and time-n2.png; one with nothing to draw a line through is left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = []
    for axis in SYMBOL:
        measured = sorted(results.group(axis), key=lambda m: _size(m, axis))
        if len({_size(m, axis) for m in measured}) < 2:
            continue
        figure = Figure(figsize=(8.6, 5.4), layout="constrained")
        FigureCanvasAgg(figure)
        _draw_panel(figure.subplots(), measured, axis, results)
        path = folder / f"time-{axis}.png"
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths


def _size(m: Measured, axis: str) -> int:
    return m.case.m if axis == "m" else m.case.layer_sizes[1]


def _draw_panel(panel: Any, measured: list[Measured], axis: str, results: Results) -> None:
    for peer in results.peers:
        points = [(_size(m, axis), found.seconds) for m in measured if (found := m.entry(peer))]
        if points:
            color, marker = STYLES[peer]
            ours = peer == OURS_FIRST
            panel.plot(
                *zip(*points, strict=True),
                color=color,
                marker=marker,
                markersize=7 if ours else 6,
                linewidth=2.6 if ours else 1.5,
                zorder=3 if ours else 2,
                label=f"fusedmlp: {peer}" if peer in OURS else peer,
            )
    sizes = [_size(m, axis) for m in measured]
    panel.plot(sizes, [m.floor_seconds for m in measured], color="black", linestyle=":", linewidth=1.5, label="floor")
    _set_axes(panel, sorted(set(sizes)), axis)
    case = measured[0].case
    fixed = f"n2 = {case.layer_sizes[1]:,}" if axis == "m" else f"m = {case.m:,}"
    panel.set_title(
        f"Loss and all gradients   (n1 = {case.layer_sizes[0]}, {fixed}, n3 = {case.layer_sizes[-1]}, "
        f"{case.hidden_activation}, float32)\n{results.machine['device']}, {results.machine['threads']} threads",
        fontsize=11,
    )
    panel.figure.legend(loc="outside right center", frameon=False, fontsize=11)


def _set_axes(panel: Any, sizes: list[int], axis: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(sizes))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    low, high = panel.get_ylim()
    steps = (1.0, 2.0, 5.0) if high < 3000 * low else (1.0,)
    panel.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _duration(y)))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(SYMBOL[axis], fontsize=11)
    panel.set_ylabel("time of a step", fontsize=11)
    panel.tick_params(labelsize=10)
    panel.grid(True, which="major", color="0.88", linewidth=0.8)
    panel.set_axisbelow(True)


def _duration(seconds: float) -> str:
    """ "10 µs", "2 ms", "1 s"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.999 * size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e9:g} ns"
