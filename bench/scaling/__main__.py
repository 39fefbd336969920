"""``python -m bench.scaling --out DIR``: steps of one and two processes, and the model's; JSON, tables, a chart.

Each time is measured in several turns, one and two processes in alternation, and the medians count. Epochs in which
other programs took a core away are left out, and where few remain, it measures again. Each process has one thread.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from bench.machine import cpu_model
from bench.scaling.model import StepModel, fitted
from bench.scaling.timing import ENOUGH

CASES = {"784-128-10": (128, 512, 2048), "784-512-512-10": (128, 512, 2048), "32-64-2": (256, 2048, 16384)}
DRAWN = {"short": 1 << 17, "long": 1 << 22}
"""Samples of an epoch, as those that are measured have, and as many ranks have: these do not fit into a cache."""
APART = "2, apart"
"""Two processes at the same time that do what two together do, but send their sums to themselves."""
RANKS = (2, 8, 64, 512, 4096)
TRIES, WAIT_SECONDS, QUIET = 4, 20.0, 0.93
"""How often a time that was disturbed is measured, and how long it waits for so much of the cores' time to be idle."""
COLORS = ("#0072B2", "#D55E00", "#009E73")


def run(ranks: int, *arguments: object) -> Any:
    """What a job prints as JSON."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=folders)
    if mpiexec is None:
        raise click.ClickException("mpiexec is missing: pip install 'fusedmlp[mpi]'")
    words = [mpiexec, "-n", str(ranks), sys.executable, "-m", *map(str, arguments)]
    environment = os.environ | {"FUSEDMLP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    text = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=True).stdout
    return json.loads(text.strip().splitlines()[-1])


def communication(folder: Path) -> dict[str, Any]:
    """What ``fusedmlp bench-comm`` measures between two processes."""
    path = folder / "comm.json"
    with suppress(json.JSONDecodeError):  # it prints a table
        run(2, "fusedmlp", "bench-comm", "--out", path)
    return json.loads(path.read_text(encoding="utf-8"))


def allreduce_at(comm: dict[str, Any], n_bytes: int) -> float:
    """Seconds of a sum of so many bytes between two processes, between the sizes that were measured."""
    import numpy as np

    sizes, seconds = ([time[key] for time in comm["times"]] for key in ("n_bytes", "seconds"))
    return float(np.exp(np.interp(np.log(n_bytes), np.log(sizes), np.log(seconds))))


def model_of(network: str, times: dict[str, dict[str, float]], comm: dict[str, Any], draw: float) -> StepModel:
    """The model of a network, from its times on one process and from what a message takes."""
    sizes = [int(n) for n in network.split("-")]
    n_bytes = 4 * sum((a + 1) * b for a, b in pairwise(sizes))
    batches = [int(batch) for batch in times]
    alone, shared = (fitted(batches, [times[str(batch)][kind] for batch in batches], draw) for kind in ("1", APART))
    latency = allreduce_at(comm, 32)
    byte = max(0.0, allreduce_at(comm, n_bytes) - latency) / n_bytes
    return StepModel(*alone, *shared, draw, latency, byte, n_bytes)


def idle_share(seconds: float = 0.5) -> float:
    """The share of all cores' time that is not used now; 1 where the system does not tell."""
    path = Path("/proc/stat")
    if not path.exists():
        return 1.0

    def ticks() -> list[int]:
        return [int(number) for number in path.read_text(encoding="ascii").splitlines()[0].split()[1:9]]

    before = ticks()
    time.sleep(seconds)
    spent = [after - earlier for after, earlier in zip(ticks(), before, strict=True)]
    return spent[3] / max(1, sum(spent))


def step_seconds(kind: str, network: str, batch: int) -> float:
    """A step's time of one process, of two `APART`, or of several together.

    It is measured when the machine is quiet: again where other programs have disturbed it, some times.
    """
    found = []
    for _ in range(TRIES):
        start = time.monotonic()
        while idle_share() < QUIET and time.monotonic() - start < WAIT_SECONDS:
            pass
        ranks, how = int(kind.split(",")[0]), {"1": "alone", APART: "apart"}.get(kind, "together")
        seconds, count = run(ranks, "bench.scaling.worker", network, batch, how)
        click.echo(f"{network}, batch {batch}, ranks {kind}: {seconds * 1e3:.3f} ms ({count})", err=True)
        found.append((count < ENOUGH, seconds))
        if count >= ENOUGH:
            break
    return min(found)[1]


def measured(turns: int) -> dict[str, dict[str, dict[str, float]]]:
    """Network -> batch of a process -> number of processes -> median seconds of a step."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for turn in range(turns):
        for network, batches in CASES.items():
            for batch in batches:
                for kind in ("1", APART, "2") if turn % 2 else ("2", APART, "1"):
                    seconds = step_seconds(kind, network, batch)
                    found.setdefault(network, {}).setdefault(str(batch), {}).setdefault(kind, []).append(seconds)
    return {
        network: {batch: {n: statistics.median(s) for n, s in by.items()} for batch, by in batches.items()}
        for network, batches in found.items()
    }


def markdown(results: dict[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    lines = [
        "| network | batch of a rank | 1 rank, ms | predicted | 2 ranks, ms | predicted | samples/s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    models = {}
    comm = results["comm"]
    for network, times in results["seconds"].items():
        model = model_of(network, times, comm, results["short draw"])
        models[network] = model_of(network, times, comm, results["long draw"])
        for batch, by in times.items():
            cells = [f"{by[n] * 1e3:.3g} | {model.step(int(n), int(batch)) / by[n] - 1:+.0%}" for n in ("1", "2")]
            lines.append(f"| {network} | {batch} | {cells[0]} | {cells[1]} | {2 * by['1'] / by['2']:.2f}x |")
    lines += ["", "| network | efficiency | " + " | ".join(f"{n:,} ranks" for n in RANKS) + " |"]
    lines.append("|---|--:|" + "--:|" * len(RANKS))
    for network, model in models.items():
        for efficiency in (0.9, 0.5):
            batches = [model.batch_for(n, efficiency) for n in RANKS]
            cells = " | ".join("none" if math.isinf(batch) else f"{math.ceil(batch):,}" for batch in batches)
            lines.append(f"| {network} | {efficiency:.0%} | {cells} |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Efficiency against the number of ranks: a line per network and batch, points where it was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ranks = [2**k for k in range(13)]
    panels = figure.subplots(1, len(results["seconds"]), sharey=True)
    for panel, (network, times) in zip(panels, results["seconds"].items(), strict=True):
        model = model_of(network, times, results["comm"], results["long draw"])
        for color, (batch, by) in zip(COLORS, times.items(), strict=False):
            panel.plot(ranks, [model.efficiency(n, int(batch)) for n in ranks], color=color, label=f"batch {batch}")
            panel.plot([1, 2], [1, by["1"] / by["2"]], "o", color=color, markerfacecolor="none")
        for level in (0.5, 0.9):
            panel.axhline(level, color="#999999", linewidth=0.7)
        panel.set(xscale="log", title=network, ylim=(0, 1.1), xlabel="ranks")
        panel.legend(frameon=False, loc="lower left")
    panels[0].set_ylabel("efficiency")
    figure.suptitle(f"Predicted efficiency (lines) and measured (circles); {results['device']}, 1 thread a rank")
    figure.savefig(path, dpi=130)


@click.command(help=__doc__)
@click.option("--out", default="bench/out/scaling", show_default=True, help="Folder of the results.")
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="Turns; medians count.")
@click.option("--again", is_flag=True, help="Measure nothing: tables and chart of the results in the folder.")
def main(out: str, turns: int, again: bool) -> None:
    """Measure, and write scaling.json, scaling.md and scaling.png."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scaling.json"
    if not again:
        results = {"device": cpu_model(), "turns": turns, "comm": communication(folder)}
        for length, samples in DRAWN.items():
            results[f"{length} draw"] = run(1, "bench.scaling.worker", "draw", samples)
        results["seconds"] = measured(turns)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    (folder / "scaling.md").write_text(markdown(results), encoding="utf-8")
    draw(results, folder / "scaling.png")
    click.echo(markdown(results))


if __name__ == "__main__":
    main()
