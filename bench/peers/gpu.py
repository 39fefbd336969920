"""``python -m bench.peers.gpu``: verify the cupy backend on this machine's GPU, and measure it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from bench.peers import gpu_report, gpu_run, registry, verify
from bench.peers.device_tests import QUICK_TESTS, TESTS
from bench.peers.gpu_cases import GROUPS, QUICK
from bench.peers.gpu_run import NO_GPU, Work
from bench.peers.processes import ROOT, call_limited
from bench.peers.results import Results, load, save, write_whole
from bench.results import ResultsError

LIMIT_SECONDS, QUICK_LIMIT_SECONDS = 480.0, 180.0
ROUNDS, QUICK_ROUNDS = 5, 3
QUICK_LIMITS = verify.Limits(60.0, 60.0, 80.0, 60.0)
REPORT_SECONDS = 5.0
"""Time that is kept for the report of a run that had to be stopped."""
PUBLISHED = ROOT / "bench" / "results"


def end(results: Results, code: int | None) -> None:
    """Mark the parts that were running when the measuring process ended.

    Parameters
    ----------
    results : Results
        What it had written.
    code : int, optional
        Its exit status; None where it was stopped because the time was over.
    """
    why = "the time of the run was over" if code is None else f"its process ended with exit status {code}"
    running = [part for part in results.parts if part["status"] == "running"]
    for part in running or (results.parts[-1:] if code != 0 else []):
        done = f", with {len(results.measured)} cases measured" if part["name"] == gpu_run.TIMINGS else ""
        part.update(status="not finished", reason=why + done)


def write(results: Results, folder: Path) -> list[Path]:
    """Write gpu.json and gpu.md into a folder; the report is made of the saved numbers."""
    json_file, markdown_file = folder / "gpu.json", folder / "gpu.md"
    save(results, json_file)
    write_whole(markdown_file, gpu_report.markdown(load(json_file)))
    return [json_file, markdown_file]


def place(results: Results, folder: Path | None, whole: bool, unfinished: Path) -> tuple[Path, list[str]]:
    """Where the results belong, and what forbids their publication: only verified ones of a whole run are published.

    Parameters
    ----------
    results : Results
    folder : Path, optional
        The folder that was asked for.
    whole : bool
        Whether all cases were to be measured.
    unfinished : Path
        The folder of results that are not published.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", results.machine["device"].lower()).strip("-")  # such as nvidia-h100-80gb-hbm3
    faults = results.not_verified()
    return (folder or (PUBLISHED if whole and not faults else unfinished)) / slug, faults


def _chosen(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise click.BadParameter(f"expected some of {', '.join(GROUPS)}; got {', '.join(unknown)}")
    return [name for name in GROUPS if name in names]


def _report(context: click.Context, parameter: click.Parameter, source: Path | None) -> None:
    """Print the report of a file, and end."""
    if source is None:
        return
    try:
        click.echo(gpu_report.markdown(load(source)), nl=False)
    except ResultsError as error:
        raise click.UsageError(str(error)) from None
    context.exit()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="DEVICE/gpu.json and gpu.md go there: bench/results; bench/out/gpu where verification failed, with --quick or "
    "--cases.",
)
@click.option("--limit", type=click.FloatRange(30), help=f"Seconds for everything; {LIMIT_SECONDS:.0f}, 180 if quick.")
@click.option("--quick", is_flag=True, help="Three minutes: fewer tests, tools, cases and rounds.")
@click.option("--cases", metavar="NAMES", callback=_chosen, help=f"Some of {','.join(GROUPS)}.")
@click.option("--skip-tests", is_flag=True, help="Leave the tests out.")
@click.option("--skip-sanitizer", is_flag=True, help="Leave compute-sanitizer and its shapes out.")
@click.option("--skip-timings", is_flag=True, help="Verify alone.")
@click.option(
    "--report",
    metavar="gpu.json",
    callback=_report,
    expose_value=False,
    is_eager=True,
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
    skip_timings: bool,
) -> None:
    """Verify the cupy backend on this machine's GPU, and measure it against PyTorch and JAX.

    The exit status is 1 where a test failed, a result of the package was wrong or a part did not come to its end, 3
    where no GPU can be used.
    """
    wanted = verify.Wanted(
        () if skip_tests else QUICK_TESTS if quick else TESTS,
        () if skip_sanitizer else verify.QUICK_TOOLS if quick else verify.TOOLS,
        not skip_sanitizer,
        not (skip_tests and skip_sanitizer),
    )
    names = [] if skip_timings else cases or list(QUICK if quick else GROUPS)
    work = Work(
        {name: GROUPS[name] for name in names},
        registry.names("cuda"),
        limit or (QUICK_LIMIT_SECONDS if quick else LIMIT_SECONDS),
        QUICK_ROUNDS if quick else ROUNDS,
        wanted,
        QUICK_LIMITS if quick else verify.Limits(),
    )
    work.unfinished.mkdir(parents=True, exist_ok=True)
    work.partial.unlink(missing_ok=True)
    code = call_limited(gpu_run.in_process, (work,), work.limit - REPORT_SECONDS)
    if code == NO_GPU:
        sys.exit(NO_GPU)
    if not work.partial.exists():
        ended = "did not begin in time" if code is None else f"ended with status {code}"
        click.echo(f"wrong: the measuring process {ended}, without results", err=True)
        sys.exit(1)
    results = load(work.partial)
    end(results, code)
    target, faults = place(results, folder, not (quick or cases or skip_timings), work.unfinished)
    for path in write(results, target):
        click.echo(f"wrote {path}")
    for fault in faults:
        click.echo(f"not verified: {fault}", err=True)
    mistakes = results.mistakes()
    for mistake in mistakes:
        click.echo(f"wrong: {mistake}", err=True)
    sys.exit(1 if mistakes else 0)


if __name__ == "__main__":
    main()
