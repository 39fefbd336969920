"""A run on a GPU as Markdown."""

from __future__ import annotations

from bench.peers import rates
from bench.peers.gpu_cases import group_of
from bench.peers.report import details, left_out, rounds, table
from bench.peers.results import Measured, Results
from bench.table import significant

GROUPS = {
    "step": "Full-batch step: loss and all gradients of m samples",
    "epoch": "Training with Adam: a step, from whole epochs",
}


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [_conditions(results), *filter(None, (_parts(results), _verification(results), _test_groups(results)))]
    for task, heading in GROUPS.items():
        measured = [m for m in results.measured if m.case.task == task]
        if measured:
            tables = _times(measured), _notes(measured), details(measured)
            parts.append("\n\n".join([f"### {heading}", *filter(None, tables)]))
    parts += filter(None, [_roofline(results), _primitives(results), left_out(results)])
    return "\n\n".join(parts) + "\n"


def _conditions(results: Results) -> str:
    device = results.machine
    facts = {
        "device": device["device"],
        "compute capability": device.get("compute_capability"),
        "memory": device.get("memory"),
        "driver": device.get("driver"),
        "CUDA runtime": device.get("cuda_runtime"),
        "date": results.date,
        "time": f"{results.seconds:.0f} of {results.limit_seconds:.0f} s",
        **{f"`{name}`": versions for name, versions in device["versions"].items()},
    }
    rows = [[name, str(value)] for name, value in facts.items() if value]
    return (
        f"## {device['device']}\n\n{table(['', ''], rows)}\n\n"
        "float32, sigmoid hidden layers, sigmoid outputs with binary cross-entropy, biases, where not said otherwise. "
        "TF32: allowed to every library; else products are in strict float32.\n\n"
        "Each library has a process of its own; every result is compared with float64 before it is timed. Times are "
        f"medians of {rounds(results)} rounds in which all have a turn, one library after the other where memory does "
        "not hold them side by side, in milliseconds, with the fastest and the slowest round; by the device's events, "
        "jax's by the clock over many steps. In brackets: how many times as fast `fused` is."
    )


def _parts(results: Results) -> str:
    """The parts of the run, with their time; nothing for a run of before there were parts."""
    if not results.parts:
        return ""
    rows = [
        [
            part["name"],
            f"**{part['status']}**" if part["status"] == "not finished" else part["status"],
            *(f"{part[key]:.0f}" for key in ("seconds", "limit")),
            part.get("reason", ""),
        ]
        for part in results.parts
    ]
    return (
        "### Parts\n\nSmall shapes, tests and compute-sanitizer run side by side, because nothing is timed.\n\n"
        + table(["", "", "s", "at most, s", ""], rows)
    )


def _test_groups(results: Results) -> str:
    """Seconds of every file of tests."""
    groups = results.tests.get("groups")
    if not groups:
        return ""
    rows = [
        [name, *(f"{group[key]:,.0f}" for key in ("tests", "seconds", "compile_seconds"))]
        for name, group in groups.items()
    ]
    total = [f"{sum(group[key] for group in groups.values()):,.0f}" for key in ("tests", "seconds", "compile_seconds")]
    return (
        f"Seconds of the tests, summed over {results.tests['processes']} processes, and those of NVRTC among them:\n\n"
        + table(["", "tests", "s", "NVRTC, s"], [*rows, ["all", *total]])
    )


def _verification(results: Results) -> str:
    tests, lines = results.tests, ["### Verification", ""]
    status = tests.get("status", "left out")
    if "passed" in tests:
        counts = ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped"))
        if "collected" in tests:
            counts = f"{tests['collected']} collected, {counts}"
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


def _times(measured: list[Measured]) -> str:
    names = list(dict.fromkeys(e.peer for m in measured for e in m.entries if e.status != "skipped"))
    rows = []
    for m in measured:
        group = group_of(m.case)
        against = group.against if group else "best peer"
        theirs = m.best_peer if against == "best peer" else m.entry(against)
        ratio = m.ratio(theirs.peer) if theirs else None
        rows.append(
            [
                str(m.case),
                *(_time(m, name) for name in names),
                f"{theirs.peer} {significant(ratio)}×" if theirs and ratio else "",
                f"{significant(group.target, 2)}×, {against}" if group else "",
            ]
        )
    return table(["", *names, "against", "target"], rows)


def _notes(measured: list[Measured]) -> str:
    """What explains a difference from the common reference, once for each text."""
    found: dict[str, list[str]] = {}
    for m in measured:
        for e in m.entries:
            if e.note:
                found.setdefault(f"{e.peer} {e.note}", []).append(str(m.case))
    return "\n".join(f"- {note} ({'; '.join(cases)})." for note, cases in found.items())


def _time(m: Measured, name: str) -> str:
    """ "12.3 [12.1, 12.9] (4.5×)", or why there is no time."""
    found = m.any_entry(name)
    if found is None:
        return ""
    if found.seconds is None:
        return "–" if found.status == "skipped" else f"**{found.status}**"
    steps = m.case.steps or 1
    times = [significant(t / steps * 1e3) for t in (found.seconds, min(found.rounds), max(found.rounds))]
    ratio = None if name == "fused" else m.ratio(name)
    return f"{times[0]} [{times[1]}, {times[2]}]" + ("" if ratio is None else f" ({significant(ratio, 2)}×)")


def _roofline(results: Results) -> str:
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
    return "\n".join(lines) + "\n" + table(["", "fused, ms", "4H + 2X, ms", "X, ms"], rows)


def _primitives(results: Results) -> str:
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
    return "### Primitives\n\n" + table(["", "n2 × m", "ms", "GB/s", "of the copy", "target"], rows)
