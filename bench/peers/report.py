"""A run on a CPU as Markdown. The tables are shared with the report of a GPU."""

from __future__ import annotations

from bench.peers.cases import Case
from bench.peers.registry import OURS
from bench.peers.results import OURS_FIRST, Measured, Results
from bench.table import significant

GROUPS = {
    "step": "Full-batch step: loss and all gradients of m samples",
    "epoch": "Epoch of Adam in shuffled batches",
    "forward": "Prediction",
    "m": "Sweep over m",
    "n2": "Sweep over n2",
}
BUSY_CORES = 0.1
"""A case is marked where other processes kept more cores busy than this."""
SWEEP_FROM = {"m": 16_384, "n2": 64}
"""The exponent of a sweep is fitted from these sizes on: below them, fixed costs count."""


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [_conditions(results)]
    for name, heading in GROUPS.items():
        measured = results.group(name)
        if measured:
            body = [_times(measured, results.peers), _exponent(results, name), details(measured)]
            parts.append("\n\n".join([f"### {heading}", *filter(None, body)]))
    if results.memory:
        parts.append(_memory(results))
    parts += filter(None, [left_out(results), _noise(results)])
    return "\n\n".join(parts) + "\n"


def _conditions(results: Results) -> str:
    machine, floor = results.machine, results.floor
    lines = [
        f"{machine['device']}, {machine['threads']} threads for every library. float32, sigmoid hidden layers and one "
        "sigmoid output with binary cross-entropy from the logits, where not said otherwise; X is a table with a row "
        "per sample. Layer sizes are n1-n2-...-nL.",
        "",
        f"Each library has a process of its own. Times are medians of {rounds(results)} rounds in which all have a "
        "turn, in milliseconds; compilation and the first call are not in them. Before it is timed, every result is "
        "compared with a float64 computation. In brackets: how many times as fast `fused` is. The best peer is the "
        f"fastest of those that are not the package's own ({', '.join(OURS)}).",
        "",
    ]
    if floor:
        ns = floor["step_ns"]
        rates = ", ".join(f"{library} {rate / 1e9:.0f}" for library, rate in floor["product_rates"].items())
        lines += [
            f"The floor is the products at the highest of these rates, GFLOP/s: {rates} (a large sgemm; for fused its "
            "own products, operands in cache), plus per hidden "
            f"value {ns['sigmoid']:.3f} ns (tanh {ns['tanh']:.3f}, relu {ns['relu']:.3f}; forward alone "
            f"{floor['forward_ns']['sigmoid']:.3f}) for its element-wise work in cache, plus per parameter and Adam "
            f"step {floor['adam_ns']:.3f} ns, all measured in this run with as many threads. Of the floor: floor / "
            "time.",
            "",
        ]
    lines += ["| | versions |", "|---|---|"]
    lines += [f"| {name} | {versions} |" for name, versions in machine["versions"].items()]
    return "\n".join(lines)


def rounds(results: Results) -> str:
    """The number of rounds: "7", or "3 to 7"."""
    counts = [len(e.rounds) for m in results.measured for e in m.entries if e.rounds] or [0]
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with numbers to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else significant(seconds * 1e3)


def _times(measured: list[Measured], peers: list[str]) -> str:
    shown = {e.peer for m in measured for e in m.entries if e.status != "skipped"}
    others = [peer for peer in peers if peer != OURS_FIRST and peer in shown]
    rows = []
    for m in measured:
        ours, best = m.entry(OURS_FIRST), m.best_peer
        busy = "*" if (m.others_cores or 0) > BUSY_CORES else ""
        ratio = m.ratio(best.peer) if best else None
        rows.append(
            [
                f"{m.case}{busy}",
                _milliseconds(m.floor_seconds),
                _cell(m, OURS_FIRST),
                "" if ours is None else f"{m.floor_seconds / (ours.seconds or 1):.0%}",
                *(_cell(m, peer) for peer in others),
                "" if ratio is None else f"{best.peer if best else ''} {significant(ratio)}×",
            ]
        )
    return table(["", "floor", OURS_FIRST, "of the floor", *others, "against the best peer"], rows)


def _cell(m: Measured, peer: str) -> str:
    """ "12.3 (4.5×)", or why there is no time."""
    found = m.any_entry(peer)
    if found is None:
        return ""
    if found.seconds is None:
        return "–" if found.status == "skipped" else f"**{found.status}**"
    ratio = None if peer == OURS_FIRST else m.ratio(peer)
    return _milliseconds(found.seconds) + ("" if ratio is None else f" ({significant(ratio, 2)}×)")


def details(measured: list[Measured]) -> str:
    """Tables: the engine, the peak of memory, the largest error, the first call; each only where it has numbers."""
    tables = []
    for title, text in (
        ("Engine", lambda e: e.engine),
        ("Peak of memory beyond X and Y, MB", lambda e: "" if e.peak_bytes is None else f"{e.peak_bytes / 1e6:,.0f}"),
        ("Largest error of a result other than J", lambda e: _scientific(e.gradient_error)),
        ("First call with what it compiles, s", lambda e: "" if not e.first_seconds else f"{e.first_seconds:.2f}"),
    ):
        peers = list(dict.fromkeys(e.peer for m in measured for e in m.entries if text(e)))
        rows = [[str(m.case), *("" if (e := m.any_entry(p)) is None else text(e) for p in peers)] for m in measured]
        if peers:
            tables.append(f"{title}:\n\n{table(['', *peers], rows)}")
    return "\n\n".join(tables)


def _scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _exponent(results: Results, group: str) -> str:
    if group not in SWEEP_FROM:
        return ""
    fit = results.exponent(group, SWEEP_FROM[group])
    if fit is None:
        return ""
    return f"Time of `{OURS_FIRST}` ∝ {group}^{fit['exponent']:.3f} from {group} = {fit['from']:,} to {fit['to']:,}."


def _memory(results: Results) -> str:
    memory = results.memory
    if "failed" in memory:
        return f"### Memory\n\n**failed**: {memory['failed']}"
    samples, peak = (memory[key] / 1e6 for key in ("samples_bytes", "peak_bytes"))
    return (
        f"### Memory\n\nA step of `{OURS_FIRST}` at {Case.from_dict(memory['case'])}, in a new process: X and Y take "
        f"{samples:,.0f} MB, the process's peak is {peak:.1f} MB beyond what it had with them. "
        f"The step took {memory['seconds']:.2f} s."
    )


def left_out(results: Results) -> str:
    """Every skip and failure with its reason, once."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for m in results.measured:
        for e in m.entries:
            if e.status != "ok":
                reasons.setdefault((e.peer, e.status, e.reason), []).append(str(m.case))
    lines = [
        f"- {peer}, {status}: {reason} ({cases[0]}{f' and {len(cases) - 1} more' if len(cases) > 1 else ''})"
        for (peer, status, reason), cases in reasons.items()
    ]
    return "### Not measured\n\n" + "\n".join(lines) if lines else ""


def _noise(results: Results) -> str:
    busy = [m.others_cores or 0 for m in results.measured if (m.others_cores or 0) > BUSY_CORES]
    if not busy:
        return ""
    return (
        f"\\* Other processes kept up to {max(busy):.1f} cores busy meanwhile. A library whose threads wait for each "
        "other then takes several times as long: do not compare."
    )
