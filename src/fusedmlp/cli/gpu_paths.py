"""``fusedmlp info --shape``: which path a network takes on a GPU, and what a training step is expected to take."""

from __future__ import annotations

import click

from fusedmlp.backends.base import PRECISIONS, check_precision
from fusedmlp.backends.cupy.backend import CupyBackend
from fusedmlp.backends.cupy.cards import Card, card_named
from fusedmlp.backends.cupy.paths import Choice, Estimate, choose_path, resident_step
from fusedmlp.backends.selection import get_backend, unavailable_reason
from fusedmlp.model.architecture import Architecture

SAMPLES = 2**20
"""Samples of a step, where the user does not say how many."""

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def describe_paths(
    architecture: Architecture, precision: str | None, samples: int, batch_size: int | None, card: str | None
) -> None:
    """Print the choice for each precision.

    Parameters
    ----------
    architecture : Architecture
    precision : {"strict", "high", "medium"}, optional
        None: each of them that this GPU treats in a way of its own.
    samples : int
        Of the training set.
    batch_size : int, optional
        None: a full batch.
    card : str, optional
        A name from `cards.CARDS`. None: the current GPU, else an H200.
    """
    gpu, note = (card_named(card), "") if card is not None else _current_card()
    batch = None if batch_size is None else min(batch_size, samples)
    sizes = "-".join(map(str, architecture.layer_sizes))
    bias = "biases" if architecture.bias else "no biases"
    activation = f"{architecture.hidden_activation}, " if len(architecture.layer_sizes) > 2 else ""
    click.echo(f"network: {sizes}, {activation}{architecture.loss}, {architecture.dtype}, {bias}")
    click.echo(f"card:    {_card_text(gpu)}{note}")
    step = f"all {samples:,} samples" if batch is None else f"a batch of {batch:,} of {samples:,} samples, with Adam"
    click.echo(f"step:    {step}; what follows is predicted, not measured")
    asked: tuple[str, ...] = PRECISIONS if precision is None else (check_precision("precision", precision),)
    if precision is None:
        asked = tuple(one for one in asked if one == "strict" or _why_strict(one, architecture, gpu) is None)
    for one in asked:
        if (why := _why_strict(one, architecture, gpu)) is not None:
            click.echo(f"{one}:{' ' * (8 - len(one))}products are strict, because {why}")
        resident = None if batch is None else resident_step(architecture, one, gpu, batch)
        _print_choice(one, choose_path(architecture, one, gpu, samples, batch), resident)


def _why_strict(precision: str, architecture: Architecture, gpu: Card) -> str | None:
    """Why all products are strict at a precision that allows more; None where they need not be."""
    if precision == "strict":
        return None
    if architecture.dtype == "float64":
        return "the precisions are for float32 alone"
    if not gpu.has_tf32:
        return f"TF32 is not on the {gpu.name}"
    if precision == "high" and not gpu.splits_pay:
        return f"three products in TF32 take longer than one in float32 on the {gpu.name}"
    return None


def _current_card() -> tuple[Card, str]:
    """(the current GPU, ""), or (an H200, why)."""
    reason = unavailable_reason("cupy")
    if reason is not None:
        return card_named(
            "h200"
        ), "\n         taken because this machine has no GPU that can be used; --card names another"
    backend = get_backend("cupy")
    assert isinstance(backend, CupyBackend)
    return backend.launcher.card(), ""


def _card_text(card: Card) -> str:
    tf32 = f", with TF32 {card.tf32 / 1e12:.0f}" if card.has_tf32 else ""
    source = "measured" if card.measured else "from its properties, not measured"
    return f"{card.name}: {card.copy / 1e9:,.0f} GB/s, {card.strict / 1e12:.3g} TFLOP/s strict{tf32} ({source})"


def _print_choice(precision: str, choice: Choice, resident: Estimate | None) -> None:
    path, why = choice.path, choice.why
    if resident is not None:
        path, why = resident.path, "the network stays in the shared memory of a block, and a step has no launches"
    click.echo(f"\n{precision}: {path}")
    click.echo(f"  {why}")
    click.echo(f"  {'path':<10}{'time':>10}{'bytes':>10}{'flops':>10}{'launches':>10}")
    for estimate in (*([] if resident is None else [resident]), choice.estimate, *choice.rejected):
        click.echo("  " + _row(estimate))
    for path, reason in choice.excluded:
        click.echo(f"  {path:<10}not possible: {reason}")


def _row(estimate: Estimate) -> str:
    seconds = estimate.seconds
    time = f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"
    moved, flops = _with_prefix(estimate.bytes, "B"), _with_prefix(estimate.flops, "")
    return f"{estimate.path:<10}{time:>10}{moved:>10}{flops:>10}{estimate.launches:>10}"


def _with_prefix(number: float, unit: str) -> str:
    """Three digits and a prefix: "1.23 GB", or "456 M" of a number without a unit."""
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if number >= size), (1.0, ""))
    digits = f"{number / size:.3g}"
    return f"{digits} {prefix}{unit}".rstrip()
