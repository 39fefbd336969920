"""Where a resident network lies in a block's shared memory, and whether it fits there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fusedmlp.backends.cupy.cuda_tables import LAYER, PLAN
from fusedmlp.backends.cupy.launch import PACK_BYTES, THREADS
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer

# The constants of resident_layers.cuh.
_ROWS, _COLUMNS, _DEPTH, _NARROW = 32, 16, 8, 4
_SCRATCH_BYTES = 8 * (3 * THREADS // 32 + 4)  # `Scratch` in the source
_MOST_SAMPLES = 256  # of a tile: larger ones save nothing


class ResidentPlan(NamedTuple):
    """The ints that the kernel is given, the samples of a tile, and the bytes of shared memory."""

    ints: np.ndarray
    samples: int
    shared_bytes: int


def moments_of(optimizer: Optimizer) -> int:
    """The vectors that an optimizer's rule keeps between steps."""
    return 0 if optimizer.rule == "sgd" else len(optimizer.moments)


def plan_of(
    architecture: Architecture, optimizer: Optimizer, batch_size: int, most_shared_bytes: int
) -> ResidentPlan | None:
    """The plan with the largest tile that fits, up to a whole batch; None where no tile fits.

    With two tiles of X the next one is copied while this one is worked on; with one only where two do not fit.

    Parameters
    ----------
    architecture : Architecture
    optimizer : Optimizer
        Of a rule that has CUDA functions.
    batch_size : int
        The samples of a batch, at most.
    most_shared_bytes : int
        The most shared memory that a block can use.
    """
    largest = min(_MOST_SAMPLES, _up(batch_size, _ROWS))
    for tiles_of_X in (2, 1):
        for samples in range(largest, 0, -_ROWS):
            plan = _lay_out(architecture, moments_of(optimizer), samples, tiles_of_X)
            if plan.shared_bytes <= most_shared_bytes:
                return plan
    return None


def _lay_out(architecture: Architecture, moments: int, samples: int, tiles_of_X: int) -> ResidentPlan:
    item, n_in, n_out = architecture.itemsize, architecture.n_inputs, architecture.n_outputs
    place = _Places()
    layers = _layers(architecture, place)
    length = place.end
    plan = {"layers": len(layers), "n_in": n_in, "n_out": n_out, "samples": samples, "x_pitch": layers[0]["a_pitch"]}
    plan |= {"first": place.take(length) if moments else -1, "second": place.take(length) if moments > 1 else -1}
    plan["gradient"] = place.take(length)
    # A product reads a warp's tile of columns, of which the last ones may lie beyond the matrix.
    x_size = _up(samples * plan["x_pitch"] + _ROWS, 4)
    plan |= {"X": place.take(tiles_of_X * x_size), "x_size": x_size if tiles_of_X > 1 else 0}
    for layer in layers:
        layer["Z"] = place.take(samples * layer["z_pitch"] + _ROWS)
    plan["dz"] = place.take(samples * layers[-1]["z_pitch"] + _ROWS)
    plan |= {"Y": place.take(2 * samples * n_out), "weights": place.take(2 * samples)}
    plan |= {"rows": place.take(2 * samples * 8 // item), "scratch": place.take(_SCRATCH_BYTES // item)}
    plan["begin"] = _up(4 * (len(PLAN) + len(LAYER) * len(layers)), PACK_BYTES)
    ints = [plan[name] for name in PLAN] + [layer[name] for layer in layers for name in LAYER]
    return ResidentPlan(np.array(ints, np.int32), samples, plan["begin"] + place.end * item)


def _layers(architecture: Architecture, place: _Places) -> list[dict[str, int]]:
    """The fields of every `LAYER` but Z, with places for the parameters."""
    pad = PACK_BYTES // architecture.itemsize
    layers: list[dict[str, int]] = []
    a_pitch = _up(architecture.n_inputs, _DEPTH) + pad
    shapes = architecture.weight_shapes
    for number, ((k, n), (flat_W, flat_b)) in enumerate(zip(shapes, architecture.weight_ranges, strict=True)):
        narrow = number == len(shapes) - 1 and n <= _NARROW
        rows = _up(k, _COLUMNS if number else _DEPTH)
        columns = n if narrow else _up(n, _COLUMNS)
        pitch = columns if narrow else columns + pad
        layer = {"n_in": k, "n_out": n, "rows": rows, "columns": columns, "narrow": int(narrow), "a_pitch": a_pitch}
        layer |= {"W": place.take(rows * pitch), "b": place.take(columns) if architecture.bias else -1}
        # b begins where W ends.
        layer |= {"flat_W": flat_W, "flat_b": flat_b if architecture.bias else -1, "pitch": pitch, "z_pitch": pitch}
        layers.append(layer)
        a_pitch = pitch
    return layers


class _Places:
    """Hands out places of numbers, each from a multiple of 4 on: 16 bytes in float32, 32 in float64."""

    def __init__(self) -> None:
        self.end = 0

    def take(self, numbers: int) -> int:
        start = self.end
        self.end += _up(numbers, 4)
        return start


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
