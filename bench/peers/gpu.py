"""``python -m bench.peers.gpu``: verify the cupy backend on this machine's GPU, and measure it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from bench.peers import gpu_report, rates, registry, verify
from bench.peers.cases import GROUPS, QUICK, Case, Group
from bench.peers.device import Cuda, Device
from bench.peers.measure import Clock, Field
from bench.peers.results import Results, load, save, write_whole
from bench.peers.worker import PeerError
from bench.results import ResultsError

LIMIT_SECONDS, QUICK_LIMIT_SECONDS = 480.0, 120.0
ROUNDS, QUICK_ROUNDS = 7, 3
VERIFICATION_SHARE = 0.4
"""The part of the time for tests and compute-sanitizer."""
NO_GPU = 3
"""The exit status where there is no GPU."""
PUBLISHED, UNFINISHED = verify.ROOT / "bench" / "results", verify.ROOT / "bench" / "out" / "gpu"


@dataclass(frozen=True)
class Work:
    """The work of a run.

    Attributes
    ----------
    groups : dict
        Some of `cases.GROUPS`.
    libraries : list of str
    limit : float
        Seconds.
    rounds : int
    tests, sanitizers : bool
    unfinished : Path
        The folder for logs, and for results while they are incomplete.
    """

    groups: dict[str, Group]
    libraries: list[str]
    limit: float = LIMIT_SECONDS
    rounds: int = ROUNDS
    tests: bool = True
    sanitizers: bool = True
    unfinished: Path = UNFINISHED


def run(device: Device, machine: dict[str, str], work: Work, say: Callable[[str], None]) -> Results:
    """Verify and measure. Incomplete results are in ``work.unfinished / "partial.json"``."""
    clock, partial = Clock(work.limit), work.unfinished / "partial.json"
    date = datetime.now(UTC).date().isoformat()
    results = Results({**machine, "versions": {}}, date=date, limit_seconds=work.limit)
    say(f"{machine['device']}: at most {work.limit:.0f} s")
    seconds = VERIFICATION_SHARE * clock.left()
    found = verify.verify(work.unfinished, seconds, work.tests, work.sanitizers, say)
    results.tests, results.sanitizer = found["tests"], found["sanitizer"]
    save(results, partial)
    with Field(work.libraries, device, say, clock=clock) as field:
        results.machine["versions"] = {"python": sys.version.split()[0], **field.versions}
        if "fused" in field.workers:
            _measure_rates(field, results, say)

        def floor(case: Case) -> float:
            return rates.least_seconds(case, results.rates, "narrow") or 0.0

        for group in work.groups.values():
            for measured in field.measure(group.cases, work.rounds, floor):
                results.measured.append(measured)
                times = [f"{e.peer} {e.seconds * 1e3:.3g}" for e in measured.entries if e.seconds is not None]
                say(f"{measured.case}: {', '.join(times) + ' ms' if times else 'not run'}")
            results.seconds = clock.spent()
            save(results, partial)
    return results


def _measure_rates(field: Field, results: Results, say: Callable[[str], None]) -> None:
    """The rates of the device and the primitives, in the process of the fused engine."""
    try:
        results.rates = field.ask("fused", "rates")
    except PeerError as error:
        say(f"no rates: {error}")
        return
    try:
        results.primitives = field.ask("fused", "primitives", results.rates["bytes_per_second"])
    except PeerError as error:
        results.primitives = {"wrong": {"reason": str(error)}}
        say(f"primitives: {error}")


def write(results: Results, folder: Path) -> list[Path]:
    """Write gpu.json and gpu.md into a folder; the report is made of the saved numbers."""
    json_file, markdown_file = folder / "gpu.json", folder / "gpu.md"
    save(results, json_file)
    write_whole(markdown_file, gpu_report.markdown(load(json_file)))
    return [json_file, markdown_file]


def _chosen(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise click.BadParameter(f"expected some of {', '.join(GROUPS)}; got {', '.join(unknown)}")
    return [name for name in GROUPS if name in names]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="DEVICE/gpu.json and gpu.md go there: bench/results; bench/out/gpu with --quick or --cases.",
)
@click.option("--limit", type=click.FloatRange(10), help=f"Seconds for everything; {LIMIT_SECONDS:.0f}, 120 if quick.")
@click.option("--quick", is_flag=True, help="Two minutes: fewer cases and rounds.")
@click.option("--cases", metavar="NAMES", callback=_chosen, help=f"Some of {','.join(GROUPS)}.")
@click.option("--skip-tests", is_flag=True, help="Leave the tests out.")
@click.option("--skip-sanitizer", is_flag=True, help="Leave compute-sanitizer and its shapes out.")
@click.option(
    "--report",
    "source",
    metavar="gpu.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Measure nothing; print the report of an earlier run.",
)
def main(
    folder: Path | None,
    limit: float | None,
    quick: bool,
    cases: list[str] | None,
    skip_tests: bool,
    skip_sanitizer: bool,
    source: Path | None,
) -> None:
    """Verify the cupy backend on this machine's GPU, and measure it against PyTorch and JAX.

    The exit status is 1 where a test failed or a result of the package was wrong, 3 where no GPU can be used.
    """
    if source is not None:
        try:
            click.echo(gpu_report.markdown(load(source)), nl=False)
        except ResultsError as error:
            raise click.UsageError(str(error)) from None
        return
    reason = Cuda.unavailable_reason()
    if reason is not None:
        click.echo(f"no GPU can be used: {reason}", err=True)
        sys.exit(NO_GPU)
    work = Work(
        {name: GROUPS[name] for name in cases or (QUICK if quick else GROUPS)},
        registry.names("cuda"),
        limit or (QUICK_LIMIT_SECONDS if quick else LIMIT_SECONDS),
        QUICK_ROUNDS if quick else ROUNDS,
        not skip_tests,
        not skip_sanitizer,
    )
    clock, device = Clock(), Cuda()
    machine = device.describe()
    results = run(device, machine, work, lambda line: click.echo(f"[{clock.spent():4.0f} s] {line}"))
    folder = folder or (UNFINISHED if quick or cases else PUBLISHED)
    slug = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")  # such as nvidia-h100-80gb-hbm3
    for path in write(results, folder / slug):
        click.echo(f"wrote {path}")
    mistakes = results.mistakes()
    for mistake in mistakes:
        click.echo(f"wrong: {mistake}", err=True)
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
