"""The layout of an engine's tiles in memory, and the routines that work on them: its `NetworkRecord`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.kernels import inputs, loss_kernels, passes, register_products, sweeps, updates
from fusedmlp.backends.numba_cpu.machine import interruption, intrinsics
from fusedmlp.backends.numba_cpu.machine.buffers import LINE_BYTES, AlignedArray
from fusedmlp.backends.numba_cpu.machine.records import LayerRecord, NetworkRecord, written
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import Loss, binary_targets, finite_targets, loss_named

# Products of a layer with inputs of up to so many bytes a sample are blocked over registers; BLAS does the others.
_BLOCKED_BYTES = 16 * 1024
_SMALLEST_TILE, _LARGEST_TILE, _TILE_STEP = 256, 512, 64


class Layout(NamedTuple):
    """Samples of a tile, bytes of a workspace's parts and of a whole one, and from row to row."""

    tile: int
    row: int
    layers: list[int]
    Y: int
    weights: int
    scratch: int
    D: int
    X: int
    slopes: int
    end: int


@cache
def cache_bytes() -> int:
    """The second-level cache of a core, read from the system; 1 MiB where it does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 2**20


def blocked_layers(architecture: Architecture) -> list[bool]:
    """Whether each layer's products are blocked over registers."""
    return [n_in * architecture.itemsize <= _BLOCKED_BYTES for n_in, _ in architecture.weight_shapes]


def lay_out(architecture: Architecture, dropout: bool = False) -> Layout:
    """The parts of a workspace: Z_1 ... Z_{L-1}, Y, weights, scratch of products, W dZ, packed X, and slopes.

    A tile fits a core's second-level cache; that of a wide network takes more, because products slow down on fewer
    samples. Rows are a cache line longer than the tile: at a distance of a power of two they would share few lines of
    the first-level cache. There are rows for slopes where the sweeps need them.
    """
    n1, *layers = architecture.layer_sizes
    widest = max(layers[:-1], default=0) if architecture.n_outputs > 1 or len(layers) > 2 else 0
    slopes = sum(layers[:-1]) if sweeps.uses_slopes(architecture.hidden_activation, dropout) else 0
    resident = (sum(layers) + architecture.n_outputs + 1 + widest + n1 + slopes) * architecture.itemsize
    tile = max(_SMALLEST_TILE, min(_LARGEST_TILE, cache_bytes() // resident // _TILE_STEP * _TILE_STEP))
    row = tile * architecture.itemsize + LINE_BYTES
    scratch = -(-register_products.SCRATCH_BYTES // row)
    starts = np.cumsum([0, *layers, architecture.n_outputs, 1, scratch, widest, n1, slopes]) * row
    first, rest = starts[: len(layers)].tolist(), starts[len(layers) :].tolist()
    return Layout(tile, row, first, *rest)


def target_code(loss: Loss) -> int:
    """What the targets of a loss are, as compiled code has it: see `inputs`."""
    if loss.valid_targets is binary_targets:
        return inputs.BINARY
    return inputs.FINITE if loss.valid_targets is finite_targets else inputs.OTHERS


def network_record(
    architecture: Architecture, layout: Layout, gemm: int, dropout: bool = False, long_tiles: bool = False
) -> tuple[AlignedArray, AlignedArray]:
    """The network's record, and its layers'. What is called by address is compiled at the first call.

    Parameters
    ----------
    architecture : Architecture
    layout : Layout
        Of `lay_out`, with the same `dropout`.
    gemm : int
        Address of a Fortran gemm of the architecture's dtype.
    dropout : bool
        Whether the sweeps mask what they make.
    long_tiles : bool
        Whether runs can end in the middle of a tile.
    """
    a, loss = architecture, loss_named(architecture.loss)
    layers = [
        LayerRecord(*shape, start * a.itemsize, end * a.itemsize if a.bias else -1, Z, int(blocked))
        for shape, (start, end), Z, blocked in zip(
            a.weight_shapes, a.weight_ranges, layout.layers, blocked_layers(a), strict=True
        )
    ]
    table = written(*layers)
    routines = (
        sweeps.sweeps(a.hidden_activation, a.dtype, dropout),
        register_products.register_products(a.dtype),
        loss_kernels.loss_kernels(loss.kind, a.dtype),
        updates.updates(a.dtype),
        passes.passes(a.dtype),
    )
    addresses = {name: address for group in routines for name, address in group._asdict().items()}
    addresses.pop("work")
    record = NetworkRecord(
        layers=len(layers),
        layer=table.address,
        n_parameters=a.n_parameters,
        item=a.itemsize,
        mean=int(loss.reduction == "mean"),
        tile=layout.tile,
        row=layout.row,
        Y=layout.Y,
        weights=layout.weights,
        scratch=layout.scratch,
        D=layout.D,
        X=layout.X,
        slopes=layout.slopes if sweeps.uses_slopes(a.hidden_activation, dropout) else 0,
        targets=target_code(loss),
        long_tiles=int(long_tiles),
        gemm=gemm,
        yielder=intrinsics.yield_address(),
        clock=interruption.clock_address(),
        loss_parameter=loss.parameter or 0.0,
        **addresses,
    )
    return written(record), table
