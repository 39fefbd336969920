"""A tile's samples: X as the products take it, and Y and the samples' weights into the workspace. Compiled.

A packed row goes on to the end of a register, n >= t samples, with the last one's numbers: finite, and taken no account
of.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.elementwise import holds_not_binary, holds_not_finite
from fusedmlp.backends.numba_cpu.kernels.random_masks import HASH_BYTES, INPUT_BYTES, layer_key, store_sample_hash
from fusedmlp.backends.numba_cpu.machine.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, copy_bytes, load
from fusedmlp.backends.numba_cpu.machine.simd import call, item_bytes, lane_bytes, store, transposition

# How a tile of X is reached: by BLAS, in place with samples or rows contiguous, or a sample per packed row; else it is
# packed with a row per input. A sparse X has a table of what its samples hold.
SAMPLES_IN_PLACE, ROWS_IN_PLACE, SAMPLES_PACKED, ROWS_PACKED, SPARSE = range(5)
# What a loss allows as targets: 0 and 1, finite numbers, or what only `Loss.valid_targets` knows.
BINARY, FINITE, OTHERS = range(3)
NONZEROS_BYTES = 24
"""What the table of a sparse tile has for a sample."""
_SQUARE = 4
_STRIP = 16
_transpose_lanes, _transpose_square = transposition(None), transposition(_SQUARE)


@internal
def samples_of(like, t):
    """t samples, up to the end of a register (and of a square that is transposed)."""
    unit = max(lane_bytes(like) // item_bytes(like), _SQUARE)
    return (t + unit - 1) // unit * unit


@internal
def sample_of(order, i):
    """Which sample is the i-th of an order at an address, or of none (0)."""
    return load(INTEGER, order + 8 * i) if order else i


@internal
def copy_row(like, out, x, x_sample, order, start, t, n):
    """out[i] = x[sample i], samples x_sample bytes apart."""
    item = item_bytes(like)
    if x_sample == item and not order:
        copy_bytes(out, x + start * item, t * item)
    else:
        for i in range(t):
            store(load(like, x + x_sample * sample_of(order, start + i)), out + i * item)
    last = load(like, out + (t - 1) * item)
    for i in range(t, n):
        store(last, out + i * item)


def pack_rows(like):
    """out[k, i] = x[k, sample i]: a row per input, `row` bytes apart, for any strides of x.

    `sources` has the addresses of the samples, to the end of a register.
    """

    def pack_rows(out, row, sources, n_in, x_row, n):
        item = item_bytes(like)
        lanes = lane_bytes(like) // item
        if x_row == item and n_in >= lanes:
            for i in range(0, n, lanes):
                for first in range(0, n_in, lanes):  # the last block overlaps the one before
                    k = min(first, n_in - lanes)
                    _transpose_lanes(like, sources + 8 * i, k * item, out + k * row + i * item, row)
        elif x_row == item and n_in >= _SQUARE:
            for i in range(0, n, _SQUARE):
                for first in range(0, n_in, _SQUARE):
                    k = min(first, n_in - _SQUARE)
                    _transpose_square(like, sources + 8 * i, k * item, out + k * row + i * item, row)
        else:
            for k in range(n_in):
                for i in range(n):
                    store(load(like, load(INTEGER, sources + 8 * i) + k * x_row), out + k * row + i * item)

    return pack_rows


@internal
def is_valid(like, network, worker, n_in, n_out, t, n):
    """Whether a tile of X is finite, and one of Y what the loss allows."""
    item, Y = item_bytes(like), worker.workspace + network.Y
    if holds_not_finite(like, worker.x, n_in, n, worker.x_step, item):
        return False
    if network.targets == BINARY:
        return not holds_not_binary(like, Y, n_out, t, network.row, item)
    return not holds_not_finite(like, Y, n_out, n, network.row, item)


@internal
def pack_samples(like, out, sources, n_in, x_row, t):
    """out[i, k] = x[k, sample i]: a sample per row, without gaps."""
    item = item_bytes(like)
    for i in range(t):
        source, row = load(INTEGER, sources + 8 * i), out + i * n_in * item
        if x_row == item:
            copy_bytes(row, source, n_in * item)
        else:
            for k in range(n_in):
                store(load(like, source + k * x_row), row + k * item)


@internal
def name_sources(sources, x, x_sample, order, start, t, n):
    """The addresses of a tile's samples; the last one's again to the end of a register."""
    # A store might be to a record, for all that LLVM knows: loops do not read them.
    for i in range(n):
        store(x + x_sample * sample_of(order, start + min(i, t - 1)), sources + 8 * i)


@internal
def reach_X(like, network, run, worker, n_in, start, t):
    """A tile of X, packed first where it must be: the worker's x, x_step and x_by_sample."""
    if run.x_access == SPARSE:
        reach_nonzeros(like, network, run, worker, start, t)
        return
    if run.x_access == SAMPLES_IN_PLACE or run.x_access == ROWS_IN_PLACE:
        worker.x = run.X + start * run.x_sample
        worker.x_step = run.x_sample if run.x_access == SAMPLES_IN_PLACE else run.x_row
        worker.x_by_sample = run.x_access == SAMPLES_IN_PLACE
        return
    n, packed = samples_of(like, t), worker.workspace + network.X
    x, x_sample, order, sources = run.X, run.x_sample, run.order, worker.sources
    name_sources(sources, x, x_sample, order, start, t, n)
    worker.x = packed
    worker.x_by_sample = run.x_access == SAMPLES_PACKED
    worker.x_step = n_in * item_bytes(like) if run.x_access == SAMPLES_PACKED else network.row
    if run.convert:
        call(run.convert, (packed, worker.x_step, sources, n_in, run.x_row, n, np.int64(worker.x_by_sample)))
    elif run.x_access == SAMPLES_PACKED:
        pack_samples(like, packed, worker.sources, n_in, run.x_row, t)
    elif x_sample == item_bytes(like) and not order:
        for k in range(n_in):
            copy_row(like, packed + k * network.row, x + k * run.x_row, x_sample, order, start, t, n)
    else:
        call(network.pack_rows, (packed, network.row, sources, n_in, run.x_row, n))
    if run.masks:  # packed with a row per input
        width = n * item_bytes(like)
        key = layer_key(worker.key, 0)
        call(network.mask_inputs, (packed, network.row, n_in, width, worker.hashes, key, run.masks))


@internal
def reach_nonzeros(like, network, run, worker, start, t):
    """The table of what a tile's samples hold of a sparse X; with dropout of inputs, of a masked copy of its values."""
    n, item, table = samples_of(like, t), item_bytes(like), worker.nonzeros
    x, inputs, starts, order = run.X, run.x_inputs, run.x_starts, run.order
    for i in range(n):
        sample = starts + 8 * sample_of(order, start + min(i, t - 1))
        first = load(INTEGER, sample)
        store(inputs + first * INPUT_BYTES, table + i * NONZEROS_BYTES)
        store(x + first * item, table + i * NONZEROS_BYTES + 8)
        store(load(INTEGER, sample + 8) - first, table + i * NONZEROS_BYTES + 16)
    if run.masks:
        values, key, hashes, masks = worker.workspace + network.X, layer_key(worker.key, 0), worker.hashes, run.masks
        for i in range(n):
            sample = table + i * NONZEROS_BYTES
            count = load(INTEGER, sample + 16)
            call(run.mask_nonzeros, (sample, count, values, hashes + HASH_BYTES * i, key, masks))
            store(values, sample + 8)
            values += count * item


@internal
def hash_samples(run, worker, start, t, n):
    """The hashes of a tile's samples, for dropout; those beyond the last are its."""
    hashes, order, key = worker.hashes, run.order, worker.key
    for i in range(n):
        sample = sample_of(order, start + min(i, t - 1))
        if run.numbers:
            sample = load(INTEGER, run.numbers + 8 * sample)
        store_sample_hash(key, sample, hashes + HASH_BYTES * i)


def convert_tile(like, other):
    """`pack_rows` or `pack_samples` of an X whose numbers have the type of `other`."""
    number = type(like)

    def convert_tile(out, step, sources, n_in, x_row, n, by_sample):
        item = item_bytes(like)
        if by_sample:
            for i in range(n):
                source = load(INTEGER, sources + 8 * i)
                for k in range(n_in):
                    store(number(load(other, source + k * x_row)), out + i * step + k * item)
        else:
            for first in range(0, n, _STRIP):  # a cache line of the result at a time
                last = min(first + _STRIP, n)
                for k in range(n_in):
                    for i in range(first, last):
                        x = load(other, load(INTEGER, sources + 8 * i) + k * x_row)
                        store(number(x), out + k * step + i * item)

    return convert_tile


@cache
def convert_address(dtype: str, other: str) -> int:
    """The address of `convert_tile` for two dtypes; compiled at the first call."""
    return routine_address(convert_tile(np.dtype(dtype).type(0), np.dtype(other).type(0)), 7)


@internal
def copy_targets(like, network, run, worker, n_outputs, start, t, n):
    """Y[k, i] = y[k, sample i], and the samples' weights if there are any."""
    targets = worker.workspace + network.Y
    if n_outputs >= _SQUARE and run.y_row == item_bytes(like):
        name_sources(worker.sources, run.Y, run.y_sample, run.order, start, t, n)
        call(network.pack_rows, (targets, network.row, worker.sources, n_outputs, run.y_row, n))
    else:
        for k in range(n_outputs):
            y = run.Y + k * run.y_row
            copy_row(like, targets + k * network.row, y, run.y_sample, run.order, start, t, n)
    if run.weights:
        weights = worker.workspace + network.weights
        copy_row(like, weights, run.weights, item_bytes(like), run.order, start, t, n)
