"""Products of a sparse X with the first layer's weights and errors, for the samples of a tile. Compiled.

X is stored sample by sample. A sample with z numbers that are not 0 gathers z rows of W1 and scatters into z rows of
dW1: 4·z·n2 flops for both products, where a dense X takes 4·n1·n2. W1 and dW1 have a row per input, a tile has a row
per unit, so that a register of samples passes through `scratch`, where a row is a sample, and is transposed.

A table in memory has what a tile's samples hold: for each the address of its inputs' numbers (int32), the address of
its values, and their count.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fusedmlp.backends.numba_cpu.kernels.inputs import NONZEROS_BYTES
from fusedmlp.backends.numba_cpu.kernels.random_masks import INPUT_BYTES, mask_nonzeros
from fusedmlp.backends.numba_cpu.machine.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, load
from fusedmlp.backends.numba_cpu.machine.simd import (
    BYTES,
    ELEMENTS,
    Lanes,
    item_bytes,
    lane_bytes,
    multiply_add,
    spread,
    store,
    transposition,
)

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_UNITS = 256
"""Units at a time: their addresses fit the worker's table, and their sums of a register of samples the scratch."""
_WIDE = 8
_transpose_lanes = transposition(None)


class SparseRoutines(NamedTuple):
    """Addresses for a dtype; the arguments are int64."""

    gather: int
    scatter: int
    mask_nonzeros: int


@cache
def sparse_products(dtype: str) -> SparseRoutines:
    """Compiled at the first call."""
    like = np.dtype(dtype).type(0)
    functions = (gather(like), 7), (scatter(like), 8), (mask_nonzeros(like), 6)
    return SparseRoutines(*(routine_address(function, arguments) for function, arguments in functions))


# One sample -----------------------------------------------------------------------------------------------------------


def _vectors(builder, like, address, columns, share):
    """LLVM: pointers to `columns` registers from an address on, or to a share of one."""
    vector = ir.VectorType(ELEMENTS[like], max(1, Lanes(like).count // share))
    step = vector.count * BYTES[like]
    return vector, [
        builder.inttoptr(builder.add(address, ir.Constant(_INT64, c * step)), vector.as_pointer())
        for c in range(columns)
    ]


def _nonzero(builder, like, inputs, values, p, row, vector):
    """LLVM: (bytes from the first row of a matrix to that of input number p, the input's value in a register)."""
    input_at = builder.add(inputs, builder.mul(p, ir.Constant(_INT64, INPUT_BYTES)))
    value_at = builder.add(values, builder.mul(p, ir.Constant(_INT64, BYTES[like])))
    k = builder.zext(builder.load(builder.inttoptr(input_at, _INT32.as_pointer())), _INT64)
    value = builder.load(builder.inttoptr(value_at, ELEMENTS[like].as_pointer()), align=BYTES[like])
    return builder.mul(k, row), spread(builder, value, vector)


def _gathered(columns, share=1):
    """An intrinsic: out[j] = Σ_p x_p W[k_p, j] for `columns` registers of units j, or for a share of a register."""

    @intrinsic
    def block(typing_context, like, inputs, values, count, W, w_row, out):
        def codegen(context, builder, signature, arguments):
            _, inputs, values, count, W, w_row, out = arguments
            vector, places = _vectors(builder, like, out, columns, share)
            zero = ir.Constant(vector, [0.0] * vector.count)
            sums = [cgutils.alloca_once(builder, vector) for _ in places]
            for total in sums:
                builder.store(zero, total)
            with cgutils.for_range(builder, count, intp=_INT64) as loop:
                offset, x = _nonzero(builder, like, inputs, values, loop.index, w_row, vector)
                _, rows = _vectors(builder, like, builder.add(W, offset), columns, share)
                for total, row in zip(sums, rows, strict=True):
                    w = builder.load(row, align=BYTES[like])
                    builder.store(multiply_add(builder, x, w, builder.load(total)), total)
            for total, place in zip(sums, places, strict=True):
                builder.store(builder.load(total), place, align=BYTES[like])
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 6), codegen

    return block


def _scattered(columns, share=1):
    """An intrinsic: G[k_p, j] += x_p d[j] for `columns` registers of units j, or for a share of a register."""

    @intrinsic
    def block(typing_context, like, inputs, values, count, G, g_row, d):
        def codegen(context, builder, signature, arguments):
            _, inputs, values, count, G, g_row, d = arguments
            vector, places = _vectors(builder, like, d, columns, share)
            errors = [builder.load(place, align=BYTES[like]) for place in places]
            with cgutils.for_range(builder, count, intp=_INT64) as loop:
                offset, x = _nonzero(builder, like, inputs, values, loop.index, g_row, vector)
                _, sums = _vectors(builder, like, builder.add(G, offset), columns, share)
                for error, total in zip(errors, sums, strict=True):
                    before = builder.load(total, align=BYTES[like])
                    builder.store(multiply_add(builder, x, error, before), total, align=BYTES[like])
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 6), codegen

    return block


def _over_units(block):
    """A compiled function: a block of `_gathered` or `_scattered` for all units of a sample, `width` bytes of them.

    sample : address of its entry in the tile's table. matrix : address of a matrix with a row per input, `row` bytes
    apart. vector : address of a number per unit.
    """
    wide, one, half, quarter, number = block(_WIDE), block(1), block(1, 2), block(1, 4), block(1, 64)

    @internal
    def over_units(like, sample, matrix, row, width, vector):
        item, size = item_bytes(like), lane_bytes(like)
        inputs, values, count = load(INTEGER, sample), load(INTEGER, sample + 8), load(INTEGER, sample + 16)
        j = 0
        while j + _WIDE * size <= width:
            wide(like, inputs, values, count, matrix + j, row, vector + j)
            j += _WIDE * size
        while j + size <= width:
            one(like, inputs, values, count, matrix + j, row, vector + j)
            j += size
        if j + max(item, size // 2) <= width:
            half(like, inputs, values, count, matrix + j, row, vector + j)
            j += max(item, size // 2)
        if j + max(item, size // 4) <= width:
            quarter(like, inputs, values, count, matrix + j, row, vector + j)
            j += max(item, size // 4)
        while j < width:
            number(like, inputs, values, count, matrix + j, row, vector + j)
            j += item

    return over_units


gather_sample, scatter_sample = _over_units(_gathered), _over_units(_scattered)


# A tile ---------------------------------------------------------------------------------------------------------------


def gather(like):
    """Z[j, i] = Σ_k W[k, j] x[k, i]: `reference.trace`'s Z1 without b1, for n samples, whole registers of them.

    samples : address of the tile's table. W, Z, scratch : addresses; rows of Z lie `row` bytes apart.
    """

    def gather(samples, W, n_out, Z, row, n, scratch):
        item, size = item_bytes(like), lane_bytes(like)
        lanes, table = size // item, scratch + _UNITS * size
        for first in range(0, n_out, _UNITS):
            units = min(_UNITS, n_out - first)
            step, whole = units * item, units // lanes * lanes
            for q in range(lanes):
                store(scratch + q * step, table + 8 * q)
            for i in range(0, n, lanes):
                for q in range(lanes):
                    sample = samples + (i + q) * NONZEROS_BYTES
                    gather_sample(like, sample, W + first * item, n_out * item, step, scratch + q * step)
                z = Z + first * row + i * item
                for j in range(0, whole, lanes):
                    _transpose_lanes(like, table, j * item, z + j * row, row)
                for j in range(whole, units):
                    for q in range(lanes):
                        store(load(like, scratch + q * step + j * item), z + j * row + q * item)

    return gather


def scatter(like):
    """G[k, j] += Σ_i x[k, i] D[j, i]: `reference.trace`'s dW1 = X dZ1ᵀ, for t samples.

    samples : address of the tile's table. D, G : addresses; rows of D lie `row` bytes apart. table, scratch : addresses
    of _UNITS int64 and of _UNITS registers to work in.
    """

    def scatter(samples, D, row, n_out, G, t, table, scratch):
        item, size = item_bytes(like), lane_bytes(like)
        lanes = size // item
        for first in range(0, n_out, _UNITS):
            units = min(_UNITS, n_out - first)
            step, whole = units * item, units // lanes * lanes
            for j in range(units):
                store(D + (first + j) * row, table + 8 * j)
            for i in range(0, t, lanes):
                for j in range(0, whole, lanes):
                    _transpose_lanes(like, table + 8 * j, i * item, scratch + j * item, step)
                for j in range(whole, units):
                    for q in range(lanes):
                        store(load(like, D + (first + j) * row + (i + q) * item), scratch + q * step + j * item)
                for q in range(min(lanes, t - i)):
                    sample = samples + (i + q) * NONZEROS_BYTES
                    scatter_sample(like, sample, G + first * item, n_out * item, step, scratch + q * step)

    return scatter
