"""Where a resident network lies in the shared memory of its blocks, and whether it fits there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fusedmlp.backends.cupy.cuda_tables import LAYER, PLAN, RECORD
from fusedmlp.backends.cupy.launch import PACK_BYTES, THREADS
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Optimizer

# The constants of resident_layers.cuh.
_ROWS, _COLUMNS, _DEPTH, _NARROW = 32, 16, 8, 4
_SCRATCH_BYTES = 8 * (3 * THREADS // 32 + 4 + len(RECORD))  # `Scratch` in the source
_MOST_SAMPLES = 256  # of a tile: larger ones save nothing
_MOST_BLOCKS = 8  # of a cluster on every GPU that has clusters
_ROOMS_BYTES = 8 * (4 + 2 * _MOST_BLOCKS)  # `Rooms` in the source


class ResidentPlan(NamedTuple):
    """The ints that the kernel is given, a row for each block of a network, and the sizes of the launch.

    Attributes
    ----------
    ints : numpy.ndarray of int32, shape (blocks, ints)
    samples : int
        Of a tile.
    shared_bytes : int
        Of a block.
    """

    ints: np.ndarray
    samples: int
    shared_bytes: int

    @property
    def blocks(self) -> int:
        """The blocks that a network has; several form a cluster."""
        return len(self.ints)


def moments_of(optimizer: Optimizer) -> int:
    """The vectors that an optimizer's rule keeps between steps."""
    return 0 if optimizer.rule == "sgd" else len(optimizer.moments)


def plan_of(
    architecture: Architecture, optimizer: Optimizer, batch_size: int, most_shared_bytes: int, clusters: bool = False
) -> ResidentPlan | None:
    """The plan with the fewest blocks, and then the largest tile, up to a whole batch; None where nothing fits.

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
    clusters : bool
        Whether the GPU has clusters; they take networks with one hidden layer.
    """
    largest = min(_MOST_SAMPLES, _up(batch_size, _ROWS))
    divisible = clusters and len(architecture.layer_sizes) == 3
    for blocks in range(1, (_MOST_BLOCKS if divisible else 1) + 1):
        if blocks > 1 and _units(architecture, blocks) * (blocks - 1) >= architecture.layer_sizes[1]:
            continue  # the last block would have no unit
        for tiles_of_X in (2, 1):
            for samples in range(largest, 0, -_ROWS):
                layout = _Layout(architecture, moments_of(optimizer), samples, tiles_of_X, blocks)
                if layout.shared_bytes <= most_shared_bytes:
                    return ResidentPlan(layout.ints(), samples, layout.shared_bytes)
    return None


def _units(architecture: Architecture, blocks: int) -> int:
    """The hidden units of a block, but perhaps the last one."""
    return _up(-(-architecture.layer_sizes[1] // blocks), _COLUMNS)


class _Layout:
    """Places for everything, the same in all blocks of a network. Blocks differ in their share of the hidden units.

    Parameters
    ----------
    architecture : Architecture
    moments : int
    samples : int
        Of a tile.
    tiles_of_X : {1, 2}
    blocks : int
    """

    def __init__(self, architecture: Architecture, moments: int, samples: int, tiles_of_X: int, blocks: int) -> None:
        self._architecture, self._blocks = architecture, blocks
        item, n_in, n_out = architecture.itemsize, architecture.n_inputs, architecture.n_outputs
        place = _Places()
        self._layers = self._place_parameters(place)
        length = place.end
        plan = {"layers": len(self._layers), "n_in": n_in, "n_out": n_out, "samples": samples}
        plan |= {"first": place.take(length) if moments else -1, "second": place.take(length) if moments > 1 else -1}
        plan |= {"gradient": place.take(length), "x_pitch": self._layers[0]["a_pitch"]}
        # A product reads a warp's tile of columns, of which the last ones may lie beyond the matrix.
        x_size = _up(samples * plan["x_pitch"] + _ROWS, 4)
        plan |= {"X": place.take(tiles_of_X * x_size), "x_size": x_size if tiles_of_X > 1 else 0}
        for layer in self._layers:
            layer["Z"] = place.take(samples * layer["z_pitch"] + _ROWS)
        plan["dz"] = place.take(samples * self._layers[-1]["z_pitch"] + _ROWS)
        plan |= {"Y": place.take(2 * samples * n_out), "weights": place.take(2 * samples)}
        plan |= {"rows": place.take(2 * samples * 8 // item), "parts": place.end, "rooms": place.end}
        if blocks > 1:
            plan["parts"] = place.take(2 * blocks * samples * n_out)
            plan["rooms"] = place.take(_ROOMS_BYTES // item)
        plan["scratch"] = place.take(_SCRATCH_BYTES // item)
        plan["begin"] = _up(4 * (len(PLAN) + len(LAYER) * len(self._layers)), PACK_BYTES)
        self._plan, self.shared_bytes = plan, plan["begin"] + place.end * item

    def ints(self) -> np.ndarray:
        """A row for each block."""
        header = [self._plan[name] for name in PLAN]
        rows = [[*header, *(x for layer in self._share(i) for x in layer)] for i in range(self._blocks)]
        return np.array(rows, np.int32)

    def _place_parameters(self, place: _Places) -> list[dict[str, int]]:
        """The fields of every `LAYER` of the first block but Z, with places for W and b."""
        a = self._architecture
        pad = PACK_BYTES // a.itemsize
        layers: list[dict[str, int]] = []
        a_pitch = _up(a.n_inputs, _DEPTH) + pad
        for number, ((k, n), (flat_W, flat_b)) in enumerate(zip(a.weight_shapes, a.weight_ranges, strict=True)):
            flat_pitch = n
            if self._blocks > 1:
                k, n = (_units(a, self._blocks), n) if number else (k, _units(a, self._blocks))
            narrow = number == len(a.weight_shapes) - 1 and n <= _NARROW
            rows = _up(k, _COLUMNS if number else _DEPTH)
            columns = n if narrow else _up(n, _COLUMNS)
            pitch = columns if narrow else columns + pad
            layer = {"n_in": k, "n_out": n, "rows": rows, "columns": columns, "narrow": int(narrow)}
            layer |= {"W": place.take(rows * pitch), "b": place.take(columns) if a.bias else -1}
            layer |= {"flat_W": flat_W, "flat_pitch": flat_pitch, "flat_b": flat_b if a.bias else -1}  # b follows W
            layer |= {"pitch": pitch, "a_pitch": a_pitch, "z_pitch": pitch}
            layers.append(layer)
            a_pitch = pitch
        return layers

    def _share(self, block: int) -> list[list[int]]:
        """The layers, as one block of a network has them: its hidden units; the first one has the output biases."""
        layers = [dict(layer) for layer in self._layers]
        if self._blocks > 1:
            first, second = layers
            start = block * first["n_out"]
            units = min(first["n_out"], self._architecture.layer_sizes[1] - start)
            first |= {"n_out": units, "flat_W": first["flat_W"] + start}
            first["flat_b"] += start if first["b"] >= 0 else 0
            second |= {"n_in": units, "flat_W": second["flat_W"] + start * second["n_out"]}
            second["b"] = second["b"] if block == 0 else -1
        return [[layer[name] for name in LAYER] for layer in layers]


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
