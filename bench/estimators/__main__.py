"""``python -m bench.estimators --out DIR``: time the estimators against scikit-learn's; results.json and results.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
import sklearn

import fusedmlp
from bench.estimators.cases import CASES
from bench.estimators.measure import measure
from bench.machine import cpu_model
from bench.peers.worker import in_new_process
from fusedmlp.backends.numba_cpu.workers.threads import usable_cores

LIBRARIES = ("fusedmlp", "scikit-learn")


def row(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of a case, and how far the results of the libraries are apart."""
    seconds = {library: statistics.median(run["seconds"] for run in runs[library]) for library in LIBRARIES}
    ours, theirs = (runs[library][0] for library in LIBRARIES)
    apart = None
    if "weights" in ours:
        apart = float(np.abs(np.subtract(ours["weights"], theirs["weights"])).max())
    scores = {library: runs[library][0]["score"] for library in LIBRARIES}
    epochs = {library: runs[library][0].get("n_iter") for library in LIBRARIES}
    return {"case": name, "seconds": seconds, "scores": scores, "n_iter": epochs, "weights_apart": apart}


def markdown(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"{machine['device']}, {machine['threads']} threads; fusedmlp {machine['fusedmlp']} on numba-cpu, scikit-learn "
        f"{machine['scikit-learn']}. Medians of {machine['rounds']} turns, each in a process of its own, after "
        "compilation.",
        "",
        "| case | fusedmlp | scikit-learn | times as fast | target | score | scikit-learn's | epochs | weights apart |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        ours, theirs = (r["seconds"][library] for library in LIBRARIES)
        scores, epochs = (tuple(r[key][library] for library in LIBRARIES) for key in ("scores", "n_iter"))
        apart = "" if r["weights_apart"] is None else f"{r['weights_apart']:.1g}"
        counts = "" if epochs[0] is None else f"{epochs[0]}" if epochs[0] == epochs[1] else f"{epochs[0]}, {epochs[1]}"
        lines.append(
            f"| {r['case']} | {shown(ours)} | {shown(theirs)} | {theirs / ours:.1f} | {CASES[r['case']].target:g} | "
            f"{scores[0]:.4f} | {scores[1]:.4f} | {counts} | {apart} |"
        )
    return "\n".join(lines) + "\n"


def shown(seconds: float) -> str:
    """ "1.23 s", "45.6 ms" or "789 µs"."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), help="Only this one; may be repeated.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="Turns of each library; 3.")
def main(folder: Path, names: tuple[str, ...], rounds: int) -> None:
    """Time the estimators against scikit-learn's, with the same data and the same parameters."""
    threads = usable_cores()
    machine = {
        "device": cpu_model(),
        "threads": threads,
        "rounds": rounds,
        "fusedmlp": fusedmlp.__version__,
        "scikit-learn": sklearn.__version__,
    }
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in names or CASES:
        runs: dict[str, list[dict[str, Any]]] = {library: [] for library in LIBRARIES}
        for turn in range(rounds):
            for library in LIBRARIES if turn % 2 == 0 else LIBRARIES[::-1]:
                runs[library].append(in_new_process(threads, measure, library, name))
        rows.append(row(name, runs))
        click.echo(markdown(machine, rows[-1:]).splitlines()[-1])
        (folder / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")
        (folder / "results.md").write_text(markdown(machine, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
