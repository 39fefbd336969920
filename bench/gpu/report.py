"""A run on a GPU as Markdown: ``python -m bench.gpu.report gpu.json``; and the newest one in docs/performance.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.gpu import rates
from bench.gpu.results import GpuEntry, GpuResults, group_of, load, write_whole
from bench.peers.results import Measured
from bench.results import ResultsError
from bench.table import significant

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "bench" / "results"
MARKS = "<!-- gpu results: written by python -m bench.gpu.report --docs -->", "<!-- end of gpu results -->"
NOTHING = "Nothing has been measured on a GPU so far."
GROUPS = {
    "step": "Full-batch step: loss and all gradients of m samples",
    "epoch": "Training with Adam: a step, from whole epochs",
}


def markdown(results: GpuResults) -> str:
    """The whole report."""
    parts = [_conditions(results), _verification(results)]
    for task, heading in GROUPS.items():
        measured = [m for m in results.measured if m.case.task == task]
        if measured:
            parts.append("\n\n".join([f"### {heading}", *filter(None, (_times(measured), _details(measured)))]))
    parts += filter(None, [_roofline(results), _primitives(results), _left_out(results)])
    return "\n\n".join(parts) + "\n"


def summary(results: GpuResults) -> str:
    """A table of the main figures."""
    device = results.device
    rows = [
        [
            line["case"],
            f"{significant(line['step_seconds'] * 1e3)} ms",
            f"{significant(line['ratio'])}× {line['against']}" if "ratio" in line else "",
            f"{significant(line['target'], 2)}×" if line["target"] else "",
        ]
        for line in results.summary()
    ]
    table = _table(["", "a step on `fused`", "as fast as", "target"], rows)
    return f"{device['name']}, {results.date}{', quick run' if results.quick else ''}:\n\n{table}"


def _conditions(results: GpuResults) -> str:
    device = results.device
    facts = {
        "device": device["name"],
        "compute capability": device.get("compute_capability"),
        "memory": device.get("memory"),
        "driver": device.get("driver"),
        "CUDA runtime": device.get("cuda_runtime"),
        "date": results.date,
        "time": f"{results.seconds:.0f} of {results.limit_seconds:.0f} s{', quick' if results.quick else ''}",
        **{f"`{name}`": versions for name, versions in results.versions.items()},
    }
    rows = [[name, str(value)] for name, value in facts.items() if value]
    return (
        f"## {device['name']}\n\n{_table(['', ''], rows)}\n\n"
        "float32, sigmoid hidden layer, one sigmoid output with binary cross-entropy, biases. TF32: allowed to every "
        "library; else products are in strict float32.\n\n"
        "Each library has a process of its own; every result is compared with float64 before it is timed. Times are "
        f"medians of {_rounds(results)} rounds in which all have a turn, one library after the other where memory does "
        "not hold them side by side, in milliseconds, with the fastest and the slowest round; by the device's events, "
        "jax's by the clock over many steps. In brackets: how many times as fast `fused` is."
    )


def _rounds(results: GpuResults) -> str:
    counts = [len(e.rounds) for m in results.measured for e in m.entries if e.rounds] or [0]
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _verification(results: GpuResults) -> str:
    tests, lines = results.tests, ["### Verification", ""]
    status = tests.get("status", "left out")
    if "passed" in tests:
        counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped"))
        status = f"{status}: {counts}, {tests['seconds']:.0f} s"
    lines.append(f"- Tests on the device: {status}.")
    lines += [f"  - {name}" for name in tests.get("failures", [])]
    for tool, run in results.sanitizer.items():
        text = run["status"]
        if "covered" in run:
            errors = "" if run.get("errors") is None else f", {run['errors']} errors"
            text += f"{errors}, {run['covered'] or 'nothing'} covered, {run['seconds']:.0f} s"
        name = "Small odd shapes against float64" if tool == "no tool" else f"compute-sanitizer {tool}"
        lines.append(f"- {name}: {text}.")
    tails = [("tests", tests), *results.sanitizer.items()]
    for name, run in tails:
        if run.get("tail"):
            lines += ["", f"The end of the output of {name}:", "", *(f"    {line}" for line in run["tail"])]
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _times(measured: list[Measured]) -> str:
    names = list(dict.fromkeys(e.peer for m in measured for e in m.entries if e.status != "skipped"))
    rows = []
    for m in measured:
        target, against = group_of(m.case)
        theirs = m.best_peer if against == "best peer" else m.entry(against)
        ratio = m.ratio(theirs.peer) if theirs else None
        rows.append(
            [
                str(m.case),
                *(_time(m, name) for name in names),
                f"{theirs.peer} {significant(ratio)}×" if theirs and ratio else "",
                "" if target is None else f"{significant(target, 2)}×, {against}",
            ]
        )
    return _table(["", *names, "against", "target"], rows)


def _entry(m: Measured, name: str) -> Any:
    return next((e for e in m.entries if e.peer == name), None)


def _time(m: Measured, name: str) -> str:
    """ "12.3 [12.1, 12.9] (4.5×)", or why there is no time."""
    found = _entry(m, name)
    if found is None:
        return ""
    if found.seconds is None:
        return "–" if found.status == "skipped" else f"**{found.status}**"
    steps = m.case.steps or 1
    times = [significant(t / steps * 1e3) for t in (found.seconds, min(found.rounds), max(found.rounds))]
    ratio = None if name == "fused" else m.ratio(name)
    return f"{times[0]} [{times[1]}, {times[2]}]" + ("" if ratio is None else f" ({significant(ratio, 2)}×)")


def _details(measured: list[Measured]) -> str:
    """Tables: what ran, peak of memory, the largest error."""
    tables = []
    for title, text in (
        ("Engine", lambda e: e.engine),
        ("Peak of device memory beyond X and Y, MB", lambda e: _megabytes(e.peak_bytes)),
        ("Largest error of a result other than J", lambda e: _scientific(e.gradient_error)),
    ):
        names = list(dict.fromkeys(e.peer for m in measured for e in m.entries if text(e)))
        rows = [[str(m.case), *(_of(m, name, text) for name in names)] for m in measured]
        if names:
            tables.append(f"{title}:\n\n{_table(['', *names], rows)}")
    return "\n\n".join(tables)


def _of(m: Measured, name: str, text: Callable[[GpuEntry], str]) -> str:
    found = _entry(m, name)
    return "" if found is None else text(found)


def _megabytes(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1e6:,.0f}"


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _roofline(results: GpuResults) -> str:
    found = results.rates
    if not found:
        return ""
    tf32 = found.get("tf32_flops_per_second")
    lines = [
        "### Roofline",
        "",
        f"Measured here: a copy at {found['bytes_per_second'] / 1e9:,.0f} GB/s (read and written), products of large "
        f"square matrices at {found['strict_flops_per_second'] / 1e12:.1f} TFLOP/s in strict float32"
        + (f" and {tf32 / 1e12:.1f} with TF32" if tf32 else "")
        + ". The least time is the longer of the bytes at that bandwidth and the products at that rate. Bytes: four "
        "times the hidden activations and twice the samples with one fused kernel between two products (4H + 2X); the "
        "samples once where activations never leave the chip (X).",
        "",
    ]
    rows = []
    for m in results.measured:
        ours = m.entry("fused")
        least = [rates.least_seconds(m.case, found, path) for path in ("middle", "narrow")]  # type: ignore[arg-type]
        if ours is None or ours.seconds is None or None in least:
            continue
        cells = [f"{significant(t * 1e3)} ({t / ours.seconds:.0%} reached)" for t in least if t is not None]
        rows.append([str(m.case), significant(ours.seconds * 1e3), *cells])
    if not rows:
        return "\n".join(lines).rstrip()
    return "\n".join(lines) + "\n" + _table(["", "fused, ms", "4H + 2X, ms", "X, ms"], rows)


def _primitives(results: GpuResults) -> str:
    if "wrong" in results.primitives:
        return f"### Primitives\n\n**wrong**: {results.primitives['wrong']['reason']}"
    rows = [
        [
            name,
            f"{p['n']:,} × {p['m']:,}",
            significant(p["seconds"] * 1e3),
            f"{p['bytes'] / p['seconds'] / 1e9:,.0f}",
            f"{p['share_of_copy']:.0%}",
            f"{p['target']:.0%}",
        ]
        for name, p in results.primitives.items()
    ]
    if not rows:
        return ""
    return "### Primitives\n\n" + _table(["", "n2 × m", "ms", "GB/s", "of the copy", "target"], rows)


def _left_out(results: GpuResults) -> str:
    """What has no time, a line per library and reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for m in results.measured:
        for e in m.entries:
            if e.status != "ok":
                found.setdefault((e.peer, e.status, e.reason), []).append(str(m.case))
    lines = [f"- {peer}, {status}: {why} ({'; '.join(cases)})" for (peer, status, why), cases in found.items()]
    return "" if not lines else "### Not measured\n\n" + "\n".join(lines)


def newest(folder: Path = RESULTS) -> tuple[GpuResults, Path] | None:
    """The results with the latest date under a folder of devices, and their file."""
    found = [(load(path), path) for path in sorted(folder.glob("*/gpu.json"))]
    return max(found, key=lambda pair: pair[0].date, default=None)


def section(folder: Path = RESULTS) -> str:
    """What docs/performance.md says between the marks."""
    latest = newest(folder)
    if latest is None:
        return NOTHING
    results, path = latest
    link = f"../bench/results/{path.parent.name}/gpu.md"
    return f"{summary(results)}\n\nThe whole run: [{path.parent.name}/gpu.md]({link})."


def with_section(page: str, text: str) -> str:
    """The page with `text` between the marks."""
    start, end = map(re.escape, MARKS)
    new, count = re.subn(f"({start}\n).*?(\n{end})", lambda found: found[1] + text + found[2], page, flags=re.DOTALL)
    if count != 1:
        raise ResultsError(f"expected one {MARKS[0]!r} ... {MARKS[1]!r} in the page; got {count}")
    return new


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="[gpu.json]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--markdown", "target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--docs", is_flag=True, help="Put the newest of bench/results into docs/performance.md.")
def main(path: Path | None, target: Path | None, docs: bool) -> None:
    """Write a run's report; to standard output without --markdown."""
    if path is None and not docs:
        raise click.UsageError("expected a gpu.json, or --docs")
    try:
        if path is not None:
            text = markdown(load(path))
            click.echo(text, nl=False) if target is None else write_whole(target, text)
        if docs:
            write_whole(PAGE, with_section(PAGE.read_text(encoding="utf-8"), section()))
    except ResultsError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
