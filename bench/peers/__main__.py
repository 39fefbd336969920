"""``python -m bench.peers --out DIR``: measure on the CPU, and write results.json, results.md and charts."""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from pathlib import Path

import click

from bench.machine import cpu_model
from bench.peers import charts, floor, memory, registry, report
from bench.peers import results as files
from bench.peers.cases import PARTS, cases_of
from bench.peers.device import Cpu
from bench.peers.load import Load
from bench.peers.measure import Field
from bench.peers.results import Results
from bench.peers.worker import PeerError, in_new_process
from bench.results import ResultsError
from fusedmlp.backends.numba_cpu.workers.threads import usable_cores

ROUNDS, QUICK_ROUNDS = 7, 3
PEERS = registry.names("cpu")


def write(results: Results, folder: Path) -> list[Path]:
    """results.json, results.md, time-m.png and time-n2.png in a folder."""
    json_file, markdown_file = folder / "results.json", folder / "results.md"
    files.save(results, json_file)
    saved = files.load(json_file)  # the numbers as they are kept: the same report can be written from the file again
    markdown_file.write_text(report.markdown(saved), encoding="utf-8")
    return [json_file, markdown_file, *charts.draw(saved, folder)]


def run(parts: list[str], peers: list[str], quick: bool, threads: int, rounds: int, folder: Path) -> Results:
    """Measure the parts, and save the results after each case."""
    start = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"[{time.monotonic() - start:5.0f} s] {line}")

    busy = Load()
    time.sleep(1)
    others = busy.others_cores()
    if (others or 0) > report.BUSY_CORES:
        say(f"WARNING: other processes keep {others:.1f} cores busy; these figures will not be worth much")
    rates = in_new_process(threads, floor.measure, threads)
    say(
        f"floor: products at {rates['flops_per_second'] / 1e9:.0f} GFLOP/s, "
        f"{rates['step_ns']['sigmoid']:.3f} ns a hidden value"
    )
    machine = {"device": cpu_model(), "threads": threads, "others_cores": others, "python": platform.python_version()}
    results = Results({**machine, "versions": {}}, rates)
    if "memory" in parts:
        case = memory.QUICK_CASE if quick else memory.CASE
        try:
            results.memory = in_new_process(threads, memory.measure, case)
            say(f"memory at {case}: {results.memory['peak_bytes'] / 1e6:.1f} MB beyond X and Y")
        except PeerError as error:
            results.memory = {"failed": str(error)}
            say(f"failed: memory at {case}: {error}")
    with Field(peers, Cpu(), say, threads) as field:
        results.machine["versions"] = field.versions
        for part in parts:
            for case in cases_of(part, quick):
                earlier = next((m for m in results.measured if m.case.same_work(case)), None)
                measured = earlier or field.measure([case], rounds, lambda case: floor.seconds(case, rates))[0]
                measured = replace(measured, case=case)
                results.measured.append(measured)
                files.save(results, folder / "results.json")
                times = (f"{e.peer} {e.seconds * 1e3:.3g}" for e in measured.entries if e.seconds is not None)
                say(f"{case.group}: {case}: {', '.join(times)} ms")
    say("done")
    return results


def _names(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    names = list(PEERS) if value is None else [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise click.BadParameter(f"expected some of {', '.join(PEERS)}; got {', '.join(unknown)}")
    return [name for name in PEERS if name in names]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    "folder",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of results.json, results.md, time-m.png and time-n2.png.",
)
@click.option("--quick", is_flag=True, help="Fewer shapes and rounds: three to six minutes.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this part; may be repeated.")
@click.option("--sweep", is_flag=True, help="Short for --part sweep.")
@click.option("--peers", metavar="NAMES", callback=_names, help=f"Some of {','.join(PEERS)}.")
@click.option("--threads", type=click.IntRange(1), help="For every library; all usable cores if not given.")
@click.option("--rounds", type=click.IntRange(1), help=f"Turns of every library; {ROUNDS}, or {QUICK_ROUNDS} if quick.")
@click.option(
    "--report",
    "source",
    metavar="RESULTS.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Measure nothing; write table and charts of an earlier run.",
)
def main(
    folder: Path,
    quick: bool,
    parts: tuple[str, ...],
    sweep: bool,
    peers: list[str],
    threads: int | None,
    rounds: int | None,
    source: Path | None,
) -> None:
    """Measure the numba-cpu engine against PyTorch, JAX and scikit-learn."""
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        try:
            results = files.load(source)
        except ResultsError as error:
            raise click.UsageError(str(error)) from None
    else:
        cores = usable_cores()
        threads = threads or cores
        if threads > cores:
            raise click.BadParameter(
                f"expected at most {cores}, the usable cores; got {threads}", param_hint="--threads"
            )
        chosen = [part for part in PARTS if part in parts or (sweep and part == "sweep")] or list(PARTS)
        results = run(chosen, peers, quick, threads, rounds or (QUICK_ROUNDS if quick else ROUNDS), folder)
    for path in write(results, folder):
        click.echo(f"wrote {path}")
    if any(e.status in ("wrong", "failed") for m in results.measured for e in m.entries) or "failed" in results.memory:
        raise click.ClickException("some libraries failed or were wrong; see results.md")


if __name__ == "__main__":
    main()
