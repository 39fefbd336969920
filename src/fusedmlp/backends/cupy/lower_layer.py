"""Launches of ``kernels/lower_layer.cu``: the backward pass through a hidden layer below the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.cupy.launch import C_TYPES, LARGEST_GRID_Y, PACK_BYTES, THREADS, Launcher, fitting, pointer
from fusedmlp.backends.cupy.sums import sum_rows
from fusedmlp.model.activations import Array

_WIDTHS = (1, 4, 16)
"""Units of the layer above that the kernel is compiled for; it takes the smallest that is large enough."""


def width_of(n_above: int) -> int | None:
    """The number of units above for which the kernel computes W dZ itself; None where cuBLAS has to."""
    return fitting(_WIDTHS, n_above)


def samples_at_a_time(width: int) -> int:
    """Samples of a thread at a time: `Share::S` in the source."""
    return 1 if width > 4 else 4


class Shape(NamedTuple):
    """The sizes of a launch: blocks along a row, threads along a row, rows of a block at a time, packs of elements."""

    across: int
    along: int
    over: int
    pack: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory for the sums of a block's threads: at most 16 bytes each."""
        return THREADS * PACK_BYTES


def shape_of(n: int, itemsize: int, packed: bool) -> Shape:
    """The sizes of a launch for n units, so that as many threads of a block as possible have units."""
    pack = PACK_BYTES // itemsize if packed else 1
    packs = -(-n // pack)
    across = -(-packs // THREADS)
    along = -(-packs // across)
    return Shape(across, along, THREADS // along, pack)


class LowerLayer:
    """The kernels for an activation and a dtype.

    Parameters
    ----------
    launcher : Launcher
    activation : str
        One of `CUDA_ACTIVATIONS` but the identity, whose f' is 1.
    dtype : {"float32", "float64"}
    """

    def __init__(self, launcher: Launcher, activation: str, dtype: str) -> None:
        self._launcher, self._activation, self._dtype = launcher, activation, dtype
        self._item = np.dtype(dtype).itemsize
        self._blocks_at_a_time: dict[tuple[str, int], int] = {}

    def backward(
        self,
        A: Array,
        db: Array | None,
        room: Callable[[tuple[int, int]], Array],
        dA: Array | None = None,
        W: Array | None = None,
        above: Array | None = None,
    ) -> None:
        """Write dZ = dA ⊙ f'(A) over A, and Σ dZ over the samples into `db`.

        Parameters
        ----------
        A : array of shape (m, n)
            A row per sample in C order, with or without gaps between rows, as `dA` and `above`.
        db : array of shape (n,), optional
            Without gaps.
        room : callable
            Returns memory (rows, n) for the sums of the blocks.
        dA : array of shape (m, n), optional
            The product W dZ of the layer above; or `W` and `above` in its place:
        W : array of shape (n, n_above), optional
            In C order without gaps, n_above at most 16.
        above : array of shape (m, n_above), optional
            dZ of the layer above.
        """
        m, n = A.shape
        n_above = 0 if above is None else above.shape[1]
        width = (width_of(n_above) if n_above else 0) or 0
        assert (dA is None) == (width > 0), f"dA or a layer above of up to {_WIDTHS[-1]} units; got {n_above} units"
        packed = all(self._is_packed(x) for x in (A, dA) if x is not None)
        shape = shape_of(n, self._item, packed)
        name, kernel = self._kernel(width, packed)
        blocks = min(self._blocks(name, kernel, shape), -(-m // (shape.over * samples_at_a_time(width))))
        partial = db if db is None or blocks == 1 else room((blocks, n))
        arguments = (
            A, self._line(A), pointer(dA), self._line(dA), pointer(W), pointer(above), self._line(above),
            np.int32(n_above), pointer(partial), np.int64(m), np.int32(n),
        )  # fmt: skip
        kernel((shape.across, blocks), (shape.along, shape.over), arguments, shared_mem=shape.shared_bytes)
        if db is not None and partial is not None and blocks > 1:
            sum_rows(self._launcher, partial, db)

    def _blocks(self, name: str, kernel: Any, shape: Shape) -> int:
        """As many blocks over the samples as the GPU runs at a time: more would take a second wave."""
        if (name, shape.across) not in self._blocks_at_a_time:
            at_a_time = self._launcher.blocks_at_a_time(kernel, shape.shared_bytes) // shape.across
            self._blocks_at_a_time[name, shape.across] = max(1, min(LARGEST_GRID_Y, at_a_time))
        return self._blocks_at_a_time[name, shape.across]

    def _kernel(self, width: int, packed: bool) -> tuple[str, Any]:
        f, dtype = self._activation, self._dtype
        pack, layout = (PACK_BYTES // self._item, "packed") if packed else (1, "strided")
        name = f"lower_layer_{width}_{f}_{dtype}_{layout}"
        one = f"{width},{f.upper()},{f},{C_TYPES[dtype]},{dtype},{pack},{layout}"
        return name, self._launcher.kernel("lower_layer.cu", name, one)

    def _line(self, x: Array | None) -> np.int64:
        """Elements from a row to the next."""
        return np.int64(0 if x is None or len(x) == 1 else x.strides[0] // self._item)

    def _is_packed(self, x: Array) -> bool:
        return x.data.ptr % PACK_BYTES == 0 and int(self._line(x)) * self._item % PACK_BYTES == 0
