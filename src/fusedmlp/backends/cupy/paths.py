"""The path that a network takes on a GPU: narrow, middle or composed, by the predicted time of a step."""

from __future__ import annotations

from typing import NamedTuple

from fusedmlp.backends.base import check_precision
from fusedmlp.backends.cupy import costs, cuda_tables, steps
from fusedmlp.backends.cupy.cards import Card
from fusedmlp.backends.cupy.costs import NOW, Launches, Operation
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS
from fusedmlp.backends.cupy.hidden_layer import WIDTHS, has_kernel
from fusedmlp.backends.cupy.narrow_step import Variant, variant_of, why_no_variant
from fusedmlp.backends.cupy.resident_costs import CAPTURED_STEP_SECONDS, step_seconds
from fusedmlp.backends.cupy.resident_plan import plan_of
from fusedmlp.backends.cupy.steps import Shape
from fusedmlp.checks import check_count
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Adam

PATHS = ("narrow", "middle", "composed")

LARGE = 2**22
"""Samples of a step beside which launches take no time."""


class Estimate(NamedTuple):
    """What a step is expected to take on a path.

    Attributes
    ----------
    path : {"resident", "narrow", "middle", "composed"}
    variant : Variant or None
        The kernel of the narrow path.
    operations : tuple of Operation
    seconds : float
    """

    path: str
    variant: Variant | None
    operations: tuple[Operation, ...]
    seconds: float

    @property
    def bytes(self) -> int:
        """The bytes read from and written to the GPU's memory."""
        return sum(operation.bytes for operation in self.operations)

    @property
    def flops(self) -> int:
        """The flops of the products and of all the rest."""
        return sum(operation.flops for operation in self.operations)

    @property
    def launches(self) -> int:
        """Kernels that are launched."""
        return sum(operation.launches for operation in self.operations)


class Choice(NamedTuple):
    """The path that a network takes, and those that it does not take.

    Attributes
    ----------
    estimate : Estimate
        For the path that is taken.
    why : str
    rejected : tuple of Estimate
        For the other paths that the network could take.
    excluded : tuple of (path, reason)
        The paths that it cannot take.
    """

    estimate: Estimate
    why: str
    rejected: tuple[Estimate, ...]
    excluded: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        """The path that is taken."""
        return self.estimate.path

    @property
    def variant(self) -> Variant | None:
        """The kernel of the narrow path."""
        return self.estimate.variant


def choose_path(
    architecture: Architecture, precision: str, card: Card, samples: int = LARGE, batch: int | None = None
) -> Choice:
    """The path of a network on a card, with what a step is expected to move, to compute and to take.

    Without `batch`, the time per sample of a large full batch decides between narrow and middle, whatever `samples` is:
    an engine is made before it is known, and only with few samples, where launches are what takes time, would the
    choice be another one. With `batch`, the time of a mini-batch step decides, which for small networks is that of its
    launches. Composed steps are started one operation after the other from Python; a network takes that path only
    where there are no kernels for it.

    Parameters
    ----------
    architecture : Architecture
    precision : {"strict", "high", "medium"}
    card : Card
    samples : int
        How many the training set has. The estimates are those of a step on all of them, or on a batch.
    batch : int, optional
        How many a batch has. None: all.

    Returns
    -------
    Choice

    Raises
    ------
    ValueError
        `precision` is another one, or `samples` or `batch` is not a whole number from 1 on.
    """
    precision = check_precision("precision", precision)
    check_count("samples", samples)
    if batch is not None:
        check_count("batch", batch)
    variant = _fastest_variant(architecture, precision, card, samples, batch)
    excluded = _excluded(architecture, card, variant)
    paths = [path for path in PATHS if path not in excluded]
    made = {path: estimate(path, architecture, precision, card, samples, batch, variant=variant) for path in paths}
    decisive = made
    if batch is None:
        decisive = {path: estimate(path, architecture, precision, card, LARGE, variant=variant) for path in paths}
    path = min(
        (path for path in paths if path != "composed"), key=lambda path: decisive[path].seconds, default="composed"
    )
    why = _why(path, decisive, excluded, batch)
    taken = made.pop(path)
    return Choice(taken, why, tuple(made.values()), tuple(excluded.items()))


def estimate(
    path: str,
    architecture: Architecture,
    precision: str,
    card: Card,
    samples: int,
    batch: int | None = None,
    *,
    variant: Variant | None = None,
    launches: Launches = NOW,
) -> Estimate:
    """What a step on one path is expected to take.

    Parameters
    ----------
    path : {"narrow", "middle", "composed"}
        One that the network can take.
    architecture, precision, card, samples, batch
        As in `choose_path`.
    variant : Variant, optional
        The kernel of the narrow path.
    launches : Launches
        How many blocks run, where it is not as the kernels are launched now.
    """
    m = samples if batch is None else min(batch, samples)
    precision = check_precision("precision", precision)
    shape = Shape(card, architecture, card.cublas_arithmetic(precision, architecture.dtype), m)
    operations = _operations(path, shape, variant, launches, batch is not None)
    count = sum(operation.launches for operation in operations)
    seconds = sum(operation.seconds for operation in operations) + count * costs.LAUNCH
    if batch is None or path == "composed":
        seconds = max(seconds, count * costs.PYTHON_OPERATION)
    else:
        seconds += costs.EPOCH / -(-samples // batch)
    return Estimate(path, variant if path == "narrow" else None, tuple(operations), seconds)


def resident_step(architecture: Architecture, precision: str, card: Card, batch: int) -> Estimate | None:
    """A step on a batch, with Adam, where the network stays in the shared memory of a block or a cluster; None where
    it does not.

    ``kernels/resident.cu`` has no launches in an epoch, so that where it can, it comes before narrow and middle.

    Parameters
    ----------
    architecture, precision, card
        As in `choose_path`.
    batch : int
    """
    precision = check_precision("precision", precision)
    if not cuda_tables.covers(architecture):
        return None
    plan = plan_of(architecture, Adam(), batch, card.shared_bytes, card.has_clusters)
    if plan is None or (seconds := step_seconds(plan, architecture, batch, precision, card)) >= CAPTURED_STEP_SECONDS:
        return None
    n_bytes = architecture.itemsize * (architecture.n_inputs + architecture.n_outputs) * batch
    products = [2 * n_in * n_out * batch for n_in, n_out in architecture.weight_shapes]
    flops = 3 * sum(products) - products[0] + 14 * architecture.n_parameters
    return Estimate("resident", None, (Operation("resident", n_bytes, flops, seconds, launches=0),), seconds)


def _fastest_variant(
    architecture: Architecture, precision: str, card: Card, samples: int, batch: int | None
) -> Variant | None:
    """The kernel of the narrow path: of the arithmetics that the precision allows, the fastest one's."""
    if not cuda_tables.covers(architecture):
        return None
    arithmetics = card.arithmetics(precision, architecture.dtype)
    variants = [variant_of(architecture, name, card.shared_bytes, card.has_clusters) for name in arithmetics]

    def seconds(variant: Variant) -> float:
        m = LARGE if batch is None else samples
        return estimate("narrow", architecture, precision, card, m, batch, variant=variant).seconds

    return min((variant for variant in variants if variant is not None), key=seconds, default=None)


def _operations(
    path: str, shape: Shape, variant: Variant | None, launches: Launches, in_batches: bool
) -> list[Operation]:
    if path == "composed":
        operations = steps.composed_pass(shape)
        return steps.composed_step(shape, operations) if in_batches else operations
    if path == "narrow":
        assert variant is not None
        operations = steps.narrow_pass(shape, variant, launches)
    else:
        operations = steps.middle_pass(shape, launches)
    return steps.captured_step(shape, operations) if in_batches else steps.with_losses(shape, operations)


def _excluded(architecture: Architecture, card: Card, variant: Variant | None) -> dict[str, str]:
    """Why the network cannot take a path, by path."""
    if not cuda_tables.covers(architecture):
        activation = architecture.hidden_activation
        what = f"activation {activation}" if activation not in CUDA_ACTIVATIONS else f"loss {architecture.loss}"
        return dict.fromkeys(("narrow", "middle"), f"there is no CUDA function for the {what}")
    excluded = {}
    if variant is None:
        excluded["narrow"] = why_no_variant(architecture, card.shared_bytes)
    if not has_kernel(architecture):
        hidden = len(architecture.layer_sizes) > 2
        excluded["middle"] = (
            f"its kernels have at most {WIDTHS[-1]} outputs; the network has {architecture.n_outputs}"
            if hidden
            else "it needs a hidden layer; the network has none"
        )
    return excluded


def _why(path: str, estimates: dict[str, Estimate], excluded: dict[str, str], batch: int | None) -> str:
    if path == "composed":
        return "; ".join(f"not {other}: {reason}" for other, reason in excluded.items())
    other = "middle" if path == "narrow" else "narrow"
    if other in excluded:
        return f"not {other}: {excluded[other]}"
    times = [estimates[name].seconds for name in (path, other)]
    if batch is None:
        mine, others = (f"{1e9 * seconds / LARGE:.3g} µs" for seconds in times)
        return f"1,000 samples of a large batch take {mine}, on the {other} path {others}"
    mine, others = (f"{1e6 * seconds:.3g} µs" for seconds in times)
    return f"a step on a batch of {batch:,} takes {mine}, on the {other} path {others}"
