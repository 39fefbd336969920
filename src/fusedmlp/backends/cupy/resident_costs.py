"""How long a step of a resident network takes, by a count of what bounds it: accesses of shared memory, and waiting.

A multiprocessor's shared memory answers one warp's access of 4 bytes a lane in a cycle, and one of 16 bytes in four.
That count explains `narrow_step` on an H200: 48 % of the FMA rate with shared memory 74 % busy. Nothing here was
measured on `resident.cu` itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from fusedmlp.backends.cupy.cards import Card
from fusedmlp.backends.cupy.costs import multiplications_of_a_cycle, split_slots
from fusedmlp.backends.cupy.cuda_tables import LAYER, PLAN
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.resident_plan import ResidentPlan
from fusedmlp.model.architecture import Architecture

_CLOCK_HZ = 1.7e9
_WARPS = 8
_BARRIER_CYCLES = 60
_EXCHANGE_CYCLES = 1500  # of the blocks of a cluster, for a tile
_STEP_CYCLES = 1500  # reading what was copied, exp and log of the loss, the rate of the step
CAPTURED_STEP_SECONDS = 16e-6
"""A captured step of a small network: its launches alone (measured on an H200 at 30-64-1 and 13-50-1)."""


def stays_resident(plan: ResidentPlan, architecture: Architecture, batch_size: int, backend: GpuPrimitives) -> bool:
    """Whether a training on the GPU by itself is faster in one block than by captured steps of all multiprocessors."""
    return (
        step_seconds(plan, architecture, batch_size, backend.precision, backend.launcher.card()) < CAPTURED_STEP_SECONDS
    )


def fastest_arithmetic(plan: ResidentPlan, architecture: Architecture, precision: str, card: Card) -> str:
    """What products compute in: "float32", "tf32", "tf32x3" or "float64", of those that the precision allows."""
    arithmetics = card.arithmetics(precision, architecture.dtype)
    return min(arithmetics, key=lambda arithmetic: _tile_cycles(plan, architecture, arithmetic, card))


def step_seconds(plan: ResidentPlan, architecture: Architecture, batch_size: int, precision: str, card: Card) -> float:
    """Seconds of a step, where every block of the network has a multiprocessor to itself."""
    tiles = -(-batch_size // plan.samples)
    parameters = sum(int(layer["rows"]) * int(layer["pitch"]) for layer in _layers(plan))
    phases = 3 * int(plan.ints[0, PLAN.index("layers")]) + 3
    update = parameters * architecture.itemsize // 4 * 20 // 128
    tile = _tile_cycles(plan, architecture, fastest_arithmetic(plan, architecture, precision, card), card)
    tile += phases * _BARRIER_CYCLES + (_EXCHANGE_CYCLES if plan.blocks > 1 else 0)
    return (tiles * tile + update + _STEP_CYCLES) / _CLOCK_HZ


def _tile_cycles(plan: ResidentPlan, architecture: Architecture, arithmetic: str, card: Card) -> float:
    layers = enumerate(_layers(plan))
    return sum(_layer_cycles(layer, number, plan.samples, arithmetic, card) for number, layer in layers)


def _layers(plan: ResidentPlan) -> Iterator[dict[str, int]]:
    for numbers in plan.ints[0, len(PLAN) :].reshape(-1, len(LAYER)):
        yield dict(zip(LAYER, numbers.tolist(), strict=True))


def _layer_cycles(layer: dict[str, int], number: int, samples: int, arithmetic: str, card: Card) -> float:
    """Forward, gradients, errors of the layer below: the accesses, or the longest warp where few have a tile."""
    rows, columns = layer["rows"], layer["columns"]
    activations = samples * columns * 25 / 128
    if layer["narrow"]:
        return 3 * samples * rows * columns * 4 / 128 + activations
    # Of a warp's tile of 32 x 16: cycles of shared memory and of issue, for one step of the depth.
    accesses, issue = {"float32": (8.0, 16.0), "float64": (16.0, 32.0), "tf32": (1.5, 2.0)}.get(arithmetic, (1.5, 0.0))
    if arithmetic == "tf32x3":
        busy = 32 * 16 / multiplications_of_a_cycle(card, arithmetic)
        accesses, issue = max(accesses, busy), split_slots(4, 4) / 8
    products = [(samples // 32 * (columns // 16), rows), (-(-rows // 32) * (columns // 16), samples)]
    if number:
        products.append((samples // 32 * (rows // 16), columns))
    return activations + sum(
        max(tiles * depth * accesses, -(-tiles // _WARPS) * depth * (issue + 8)) for tiles, depth in products
    )
