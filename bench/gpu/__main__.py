"""``python -m bench.gpu``: verify and measure on the GPU of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from bench.gpu import report, verify
from bench.gpu.cases import GROUPS, QUICK, Group
from bench.gpu.device import Cuda, Device, slug
from bench.gpu.libraries import LIBRARIES
from bench.gpu.measure import QUICK_ROUNDS, ROUNDS, Clock, Field
from bench.gpu.results import GpuResults, load, save, write_whole
from bench.peers.worker import PeerError

LIMIT_SECONDS, QUICK_LIMIT_SECONDS = 480.0, 120.0
VERIFICATION_SHARE = 0.4
"""Of the time, for tests and compute-sanitizer."""
NO_GPU = 3
"""The exit status where there is none."""
PUBLISHED, UNFINISHED = verify.ROOT / "bench" / "results", verify.ROOT / "bench" / "out" / "gpu"


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes
    ----------
    groups : dict
        Of `cases.GROUPS`.
    libraries : tuple of str
    limit : float
        Seconds.
    tests, sanitizers, quick : bool
    unfinished : Path
        The folder for logs and for results while they are incomplete.
    """

    groups: dict[str, Group]
    libraries: tuple[str, ...] = tuple(LIBRARIES)
    limit: float = LIMIT_SECONDS
    tests: bool = True
    sanitizers: bool = True
    quick: bool = False
    unfinished: Path = UNFINISHED


def run(device: Device, plan: Plan, say: Callable[[str], None]) -> GpuResults:
    """Verify and measure; what there is so far is in ``plan.unfinished / "partial.json"``."""
    clock, today = Clock(plan.limit), datetime.now(UTC).date().isoformat()
    results = GpuResults(device.describe(), date=today, quick=plan.quick, limit_seconds=plan.limit)
    partial = plan.unfinished / "partial.json"
    say(f"{results.device['name']}: at most {plan.limit:.0f} s")
    found = verify.verify(plan.unfinished, VERIFICATION_SHARE * clock.left(), plan.tests, plan.sanitizers, say)
    results.tests, results.sanitizer = found["tests"], found["sanitizer"]
    save(results, partial)
    with Field(list(plan.libraries), device, clock, say, QUICK_ROUNDS if plan.quick else ROUNDS) as field:
        results.versions = {"python": sys.version.split()[0], **field.versions}
        if "fused" in field.workers:
            _measure_rates(field, results, say)
        for group in plan.groups.values():
            for measured in field.measure(group, results.rates):
                results.measured.append(measured)
                times = [f"{e.peer} {e.seconds * 1e3:.3g}" for e in measured.entries if e.seconds is not None]
                say(f"{measured.case}: {', '.join(times) + ' ms' if times else 'not run'}")
            results.seconds = clock.spent()
            save(results, partial)
    return results


def _measure_rates(field: Field, results: GpuResults, say: Callable[[str], None]) -> None:
    """The device's rates and the primitives, in the process of the fused engine."""
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


def write(results: GpuResults, folder: Path) -> list[Path]:
    """gpu.json and gpu.md in the device's folder below `folder`; the report is written from the saved numbers."""
    json_file = folder / slug(results.device["name"]) / "gpu.json"
    save(results, json_file)
    markdown_file = json_file.with_suffix(".md")
    write_whole(markdown_file, report.markdown(load(json_file)))
    return [json_file, markdown_file]


def _chosen(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    known = list(GROUPS if parameter.name == "cases" else LIBRARIES)
    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(f"expected some of {'; '.join(known)}; got {', '.join(unknown)}")
    return [name for name in known if name in names]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where DEVICE/gpu.json and gpu.md go: bench/results; bench/out/gpu with --quick or --cases.",
)
@click.option("--limit", type=click.FloatRange(10), help=f"Seconds for everything; {LIMIT_SECONDS:.0f}, 120 if quick.")
@click.option("--quick", is_flag=True, help="Two minutes: fewer cases and rounds.")
@click.option("--cases", metavar="NAMES", callback=_chosen, help=f"Some of {','.join(GROUPS)}.")
@click.option("--skip-tests", is_flag=True, help="Leave the tests out.")
@click.option("--skip-sanitizer", is_flag=True, help="Leave compute-sanitizer and its shapes out.")
def main(
    folder: Path | None,
    limit: float | None,
    quick: bool,
    cases: list[str] | None,
    skip_tests: bool,
    skip_sanitizer: bool,
) -> None:
    """Verify the cupy backend on this machine's GPU, and measure it against PyTorch and JAX.

    The exit status is 1 where a test failed or a result of the package was wrong, 3 where no GPU can be used.
    """
    reason = Cuda.unavailable_reason()
    if reason is not None:
        click.echo(f"no GPU can be used: {reason}", err=True)
        sys.exit(NO_GPU)
    wanted = cases or list(QUICK if quick else GROUPS)
    plan = Plan(
        {name: GROUPS[name] for name in wanted},
        limit=limit or (QUICK_LIMIT_SECONDS if quick else LIMIT_SECONDS),
        tests=not skip_tests,
        sanitizers=not skip_sanitizer,
        quick=quick,
    )
    clock = Clock(plan.limit)
    results = run(Cuda(), plan, lambda line: click.echo(f"[{clock.spent():4.0f} s] {line}"))
    for path in write(results, folder or (UNFINISHED if quick or cases else PUBLISHED)):
        click.echo(f"wrote {path}")
    mistakes = results.mistakes()
    for mistake in mistakes:
        click.echo(f"wrong: {mistake}", err=True)
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
