"""``python -m bench.many --out DIR``: `fit_many` against other ways to train many networks; JSON, a table, a chart."""

from __future__ import annotations

import json
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

import fusedmlp
from bench.machine import cpu_model
from bench.many.cases import CASES
from bench.many.libraries import LIBRARIES, check, measure
from bench.peers.worker import in_new_process

COLORS = {"fit_many": "#D55E00", "one after the other": "#E69F00", "jax.vmap": "#CC79A7", "scikit-learn": "#666666"}


def row(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median seconds for a step of one network; libraries that trained something else are refused."""
    ours = np.array(runs["fit_many"][0]["losses"])
    for library, results in runs.items():
        check(ours, np.array(results[0]["losses"]), library)
    return {
        "case": name,
        "seconds": {library: statistics.median(run["seconds"] for run in results) for library, results in runs.items()},
    }


def markdown(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table."""
    libraries = list(rows[0]["seconds"])
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    where = f"{machine['backend']} on {machine['device']}, {machine['threads']} threads; {versions}"
    lines = [
        f"{where}. Microseconds for a step of one network: medians of {machine['rounds']} turns, each in a process of "
        "its own, after compilation. In brackets: how many times as long as fit_many.",
        "",
        "| networks | " + " | ".join(libraries) + " |",
        "|---|" + "--:|" * len(libraries),
    ]
    for r in rows:
        ours = r["seconds"]["fit_many"]
        cells = [
            shown(seconds) + ("" if library == "fit_many" else f" ({seconds / ours:.1f})")
            for library, seconds in r["seconds"].items()
        ]
        lines.append(f"| {r['case']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(seconds: float) -> str:
    """Microseconds: "1,210", "15.3" or "2"."""
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-4 else f"{seconds * 1e6:.3g}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of all cases, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    libraries = list(rows[0]["seconds"])
    width = 0.8 / len(libraries)
    for place, library in enumerate(libraries):
        at = np.arange(len(rows)) + (place - (len(libraries) - 1) / 2) * width
        seconds = [r["seconds"][library] for r in rows]
        bars = panel.bar(at, np.multiply(seconds, 1e6), width, color=COLORS[library], label=library)
        panel.bar_label(bars, [shown(each) for each in seconds], fontsize=7)
    panel.set_yscale("log")
    panel.set_ylabel("µs for a step of one network")
    panel.set_xticks(range(len(rows)), [r["case"] for r in rows])
    panel.legend()
    figure.savefig(path, dpi=150)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), help="Only this one; may be repeated.")
@click.option("--library", "libraries", multiple=True, type=click.Choice(list(LIBRARIES)), help="Beside fit_many.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Turns of each library; 5.")
@click.option("--threads", default=2, type=click.IntRange(1), help="Cores, and threads of each library; 2.")
@click.option("--backend", default="numba-cpu", type=click.Choice(["numba-cpu", "cupy"]), help="numba-cpu.")
def main(
    folder: Path, names: tuple[str, ...], libraries: tuple[str, ...], rounds: int, threads: int, backend: str
) -> None:
    """Time fit_many against other ways to train many networks.

    With --backend cupy, jax runs on the GPU too, and scikit-learn is left out unless it is named.
    """
    usual = [name for name in LIBRARIES if backend != "cupy" or name != "scikit-learn"]
    chosen = ["fit_many", *(name for name in LIBRARIES if name != "fit_many" and name in (libraries or usual))]
    versions = {"fusedmlp": fusedmlp.__version__}
    versions |= {each: version(each) for each in ("jax", "scikit-learn") if any(each in name for name in chosen)}
    device = cpu_model()
    if backend == "cupy":
        described = fusedmlp.get_backend(backend).describe()
        device, versions["cupy"] = described["device"], described["versions"].removeprefix("cupy ")
    machine = {"device": device, "backend": backend, "threads": threads, "rounds": rounds, "versions": versions}
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in names or CASES:
        runs: dict[str, list[dict[str, Any]]] = {library: [] for library in chosen}
        for turn in range(rounds):
            for library in chosen if turn % 2 == 0 else chosen[::-1]:
                runs[library].append(in_new_process(threads, measure, library, name, backend))
        rows.append(row(name, runs))
        click.echo(markdown(machine, rows).splitlines()[-1])
        (folder / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")
        (folder / "results.md").write_text(markdown(machine, rows), encoding="utf-8")
    draw(rows, folder / "many.png")


if __name__ == "__main__":
    main()
