"""Products of a tile, blocked over registers. Compiled.

BLAS packs its operands and is made for large matrices; a layer with few inputs, or a tile of few samples, leaves half
of the machine unused there. Here a block of R rows by V registers of samples is summed in registers, straight from
where W and the tile lie: R·V multiply-adds for R + V loads. A strip of samples stays in the first-level cache while all
rows pass it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fusedmlp.backends.numba_cpu.machine.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import build_prefetch
from fusedmlp.backends.numba_cpu.machine.simd import (
    BYTES,
    ELEMENTS,
    Lanes,
    call,
    indices,
    item_bytes,
    lane_bytes,
    multiply_add,
    registers,
    spread,
    store,
    transposition,
    vector_of,
)

_INT64 = ir.IntType(64)
ROWS = 4
"""Rows of a block: broadcast numbers in `block_of_products`, registers in `block_of_sums`."""


def wide():
    """Most registers of samples of a block of products: its ROWS x `wide` sums leave room for what is multiplied."""
    return 4 if registers().number >= 32 else 3


def _pointer(builder, address, offset, kind):
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _zeros(builder, vector, rows, columns):
    zero = ir.Constant(vector, [0.0] * vector.count)
    sums = [[cgutils.alloca_once(builder, vector) for _ in range(columns)] for _ in range(rows)]
    for row in sums:
        for total in row:
            builder.store(zero, total)
    return sums


def _add_product(builder, total, a, b):
    builder.store(multiply_add(builder, a, b, builder.load(total)), total)


def block_of_products(rows, columns):
    """An intrinsic: C[r, i] = Σ_k W(r, k) B[k, i] for `rows` rows and `columns` registers of i; += where `add`."""

    @intrinsic
    def block(typing_context, like, W, w_row, w_column, B, b_row, C, c_row, depth, add):
        """W, B, C are addresses; rows of B and C, b_row and c_row bytes apart, have their numbers side by side; the
        next r and k of W are w_row and w_column bytes away."""

        def codegen(context, builder, signature, arguments):
            _, W, w_row, w_column, B, b_row, C, c_row, depth, add = arguments
            vector, align = vector_of(Lanes(like)), BYTES[like]
            at = [ir.Constant(_INT64, v * registers().bytes) for v in range(columns)]
            c_rows = [builder.add(C, builder.mul(c_row, ir.Constant(_INT64, r))) for r in range(rows)]
            places = [[_pointer(builder, c, offset, vector) for offset in at] for c in c_rows]
            sums = _zeros(builder, vector, rows, columns)
            adds = builder.icmp_signed("!=", add, ir.Constant(_INT64, 0))
            with builder.if_then(adds):
                for place in chain(*places):  # needed last: its way from memory is covered by the products
                    byte = builder.bitcast(place, ir.IntType(8).as_pointer())
                    build_prefetch(builder, byte, to_write=True, locality=3)
            w_offsets = [builder.mul(w_row, ir.Constant(_INT64, r)) for r in range(rows)]
            with cgutils.for_range(builder, depth, intp=_INT64) as loop:
                w, b = builder.add(W, builder.mul(loop.index, w_column)), builder.add(B, builder.mul(loop.index, b_row))
                samples = [builder.load(_pointer(builder, b, offset, vector), align=align) for offset in at]
                for r in range(rows):
                    number = builder.load(_pointer(builder, w, w_offsets[r], ELEMENTS[like]), align=align)
                    weight = spread(builder, number, vector)
                    for v in range(columns):
                        _add_product(builder, sums[r][v], weight, samples[v])
            with builder.if_then(adds):
                for place, total in zip(chain(*places), chain(*sums), strict=True):
                    builder.store(builder.fadd(builder.load(total), builder.load(place, align=align)), total)
            for place, total in zip(chain(*places), chain(*sums), strict=True):
                builder.store(builder.load(total), place, align=align)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 9), codegen

    return block


def block_of_sums(rows, columns):
    """An intrinsic: G[r, s] = Σ_i X[r, i] D[s, i] for `rows` rows of X and `columns` rows of D; += where `add`."""

    @intrinsic
    def block(typing_context, like, X, x_row, D, d_row, G, g_row, width, add):
        """X, D, G are addresses; rows have their numbers side by side and lie x_row, d_row, g_row bytes apart; those of
        X and D are `width` bytes long, whole registers."""

        def codegen(context, builder, signature, arguments):
            _, X, x_row, D, d_row, G, g_row, width, add = arguments
            vector, align = vector_of(Lanes(like)), BYTES[like]
            for r in range(rows):  # they are needed last: their way from memory is covered by the sums
                byte = _pointer(builder, G, builder.mul(g_row, ir.Constant(_INT64, r)), ir.IntType(8))
                build_prefetch(builder, byte, to_write=True, locality=3)
            sums = _zeros(builder, vector, rows, columns)
            x_offsets = [builder.mul(x_row, ir.Constant(_INT64, r)) for r in range(rows)]
            d_offsets = [builder.mul(d_row, ir.Constant(_INT64, s)) for s in range(columns)]
            step = ir.Constant(_INT64, registers().bytes)
            with cgutils.for_range_slice(builder, _INT64(0), width, step, intp=_INT64) as (i, _):
                x, d = builder.add(X, i), builder.add(D, i)
                errors = [builder.load(_pointer(builder, d, offset, vector), align=align) for offset in d_offsets]
                for r in range(rows):
                    inputs = builder.load(_pointer(builder, x, x_offsets[r], vector), align=align)
                    for s in range(columns):
                        _add_product(builder, sums[r][s], inputs, errors[s])
            adds = builder.icmp_signed("!=", add, ir.Constant(_INT64, 0))
            totals = _sums_of_lanes(builder, [builder.load(total) for row in sums for total in row])
            for r in range(rows):
                row = indices([r * columns + s for s in range(columns)])
                part = builder.shuffle_vector(totals, totals, row)
                pointer = _pointer(builder, G, builder.mul(g_row, ir.Constant(_INT64, r)), part.type)
                before = builder.select(
                    adds, builder.load(pointer, align=align), ir.Constant(part.type, [0.0] * columns)
                )
                builder.store(builder.fadd(before, part), pointer, align=align)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 8), codegen

    return block


def _sums_of_lanes(builder, vectors):
    """LLVM: a vector whose element k is the sum of the elements of vectors[k]; as many vectors as a power of two.

    Two vectors are added half by half into one that holds partial sums of both, and so on: one addition and two
    shuffles a vector, where each alone would take several.
    """
    order = [[k] for k in range(len(vectors))]
    width = vectors[0].type.count  # elements that hold partial sums of the same vector
    while len(vectors) > 1 or width > 1:
        if len(vectors) > 1 and width > 1:
            half = len(vectors) // 2
            pairs = [(vectors[k], vectors[k + half]) for k in range(half)]
            order = [order[k] + order[k + half] for k in range(half)]
        elif width > 1:
            pairs = [(vector, vector) for vector in vectors]
        else:  # more vectors than elements: what is summed already is joined
            return _joined(builder, vectors, order)
        count, mine = vectors[0].type.count, len(order[0])
        starts = [k * width for k in range(count // width)]
        if pairs[0][0] is pairs[0][1]:
            starts = starts[:mine]
        else:
            starts += [count + start for start in starts]
        halves = [
            indices([start + offset + p for start in starts for p in range(width // 2)]) for offset in (0, width // 2)
        ]
        vectors = [builder.fadd(*(builder.shuffle_vector(*pair, half) for half in halves)) for pair in pairs]
        width //= 2
    return _joined(builder, vectors, order)


def _joined(builder, vectors, order):
    """LLVM: one vector whose element k is the one that `order` names k."""
    while len(vectors) > 1:
        count = vectors[0].type.count
        everything = indices(range(2 * count))
        vectors = [builder.shuffle_vector(a, b, everything) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        order = [a + b for a, b in zip(order[::2], order[1::2], strict=True)]
    place = {k: position for position, k in enumerate(order[0])}
    return builder.shuffle_vector(vectors[0], vectors[0], indices([place[k] for k in range(len(place))]))


_INPUTS_A_SAMPLE = 8
"""Sums of lanes cost as much as so many inputs' share of transposing a sample's errors."""
SCRATCH_BYTES = 24 * 1024
"""The size of the operand that a loop reads again and again; it fits a first-level cache of 32 KiB."""
_PIECE_DEPTH = 128
"""The most rows of that operand in `multiply`."""
_PIECE_BYTES = 128 * 1024
"""The part of W that passes it, again and again from the second-level cache."""
_ROW_BYTES = 192
"""In `multiply_samples`, the length of that operand's rows, to whole blocks."""
_WIDE = wide()
_PAIR = 4 if registers().number >= 32 else 2
"""Rows of D in a block of sums: a power of two, for the sums of lanes."""
_four_four, _four_three, _four_two, _four_one = (block_of_products(ROWS, columns) for columns in (4, 3, 2, 1))
_two_four = block_of_products(2, 4)
_one_double, _one_wide, _one_one = (block_of_products(1, columns) for columns in (2 * _WIDE, _WIDE, 1))
_four_by_pair, _four_by_one = block_of_sums(ROWS, _PAIR), block_of_sums(ROWS, 1)
_one_by_pair, _one_by_one = block_of_sums(1, _PAIR), block_of_sums(1, 1)
_transpose_lanes = transposition(None)


class ProductRoutines(NamedTuple):
    """Addresses of compiled products of a dtype, for `simd.call`.

    What is called by address is compiled once; linked into every kernel that calls it, it would be compiled anew at
    each level of calls. Arguments are int64: addresses of operands, steps in bytes, counts.
    """

    multiply: int
    samples: int


@cache
def register_products(dtype: str) -> ProductRoutines:
    """The products of a dtype, compiled at the first call."""
    like = np.dtype(dtype).type(0)
    return ProductRoutines(routine_address(multiply(like), 11), routine_address(multiply_samples(like), 13))


def multiply(like):
    """C[r, i] = Σ_k W(r, k) B[k, i], += where `add`: `rows` rows, `depth` numbers deep, `width` bytes of samples.

    W, B and C are addresses, steps are bytes, as `block_of_products` has them; `width` is whole registers.

    A piece of W is read from the second-level cache once for each strip of B.
    """

    def multiply(W, w_row, w_column, rows, B, b_row, C, c_row, depth, width, add):
        size = lane_bytes(like)
        piece, some, strip = max(depth, 1), max(rows, 1), width
        if depth > _PIECE_DEPTH:  # nearly equal pieces
            pieces = (depth + _PIECE_DEPTH - 1) // _PIECE_DEPTH
            piece = (depth + pieces - 1) // pieces
        if piece * rows * item_bytes(like) > _PIECE_BYTES:
            some = _PIECE_BYTES // (piece * item_bytes(like)) // ROWS * ROWS
        if piece * width > SCRATCH_BYTES:
            strip = max(SCRATCH_BYTES // (piece * _WIDE * size), 1) * _WIDE * size
        for k in range(0, max(depth, 1), piece):
            count, adds = min(piece, depth - k), np.int64(add != 0 or k > 0)
            for r in range(0, rows, some):
                i = 0
                while i < width:
                    end = i + strip if i + strip + size < width else width  # no strip of one register at the end
                    w, b, c = W + k * w_column + r * w_row, B + k * b_row, C + r * c_row
                    _multiply_strip(
                        like, w, w_row, w_column, min(some, rows - r), b, b_row, c, c_row, count, i, end, adds
                    )
                    i = end

    return multiply


@internal
def _multiply_strip(like, W, w_row, w_column, rows, B, b_row, C, c_row, depth, start, end, add):
    """`multiply` for bytes start to end of the samples. No block of one register, unless that is all."""
    size = lane_bytes(like)
    four = rows - rows % ROWS
    for r in range(0, four, ROWS):
        w, c = W + r * w_row, C + r * c_row
        i = start
        while i < end:
            left = (end - i) // size
            if _WIDE == 4 and left >= 4 and left != 5:
                _four_four(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth, add)
                i += 4 * size
            elif left >= 3 and left != 4:
                _four_three(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth, add)
                i += 3 * size
            elif left >= 2:
                _four_two(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth, add)
                i += 2 * size
            else:
                _four_one(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth, add)
                i += size
    pair_end = start
    if rows - four >= 2:  # 10 classes are two blocks of four rows and one of two
        w, c = W + four * w_row, C + four * c_row
        while pair_end + 4 * size <= end:
            _two_four(like, w, w_row, w_column, B + pair_end, b_row, c + pair_end, c_row, depth, add)
            pair_end += 4 * size
    for r in range(four, rows):
        w, c = W + r * w_row, C + r * c_row
        i = pair_end if r < four + 2 else start
        while i + 2 * _WIDE * size <= end:
            _one_double(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth, add)
            i += 2 * _WIDE * size
        while i + _WIDE * size <= end:
            _one_wide(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth, add)
            i += _WIDE * size
        while i < end:
            _one_one(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth, add)
            i += size


def multiply_samples(like):
    """G[k, j] = Σ_i X[k, i] D[j, i], += where `add`: n_in x n_out sums over t samples.

    The first argument is the address of `multiply`. X, D and G are addresses, steps are bytes; rows of X and D have
    their samples side by side, with zeros in D up to the end of a register. `table` and `scratch` are addresses of 64
    int64 and of `SCRATCH_BYTES` to work in.

    D is transposed for the units of whole registers, unless there are too few inputs to make that worth it.
    """

    def multiply_samples(multiply, X, x_row, n_in, D, d_row, n_out, G, g_row, t, table, scratch, add):
        item, size = item_bytes(like), lane_bytes(like)
        lanes = size // item
        whole = n_out // lanes * lanes if _INPUTS_A_SAMPLE * n_in >= t else 0
        most = max(_ROW_BYTES // (_WIDE * size), 1) * _WIDE * lanes
        for j in range(0, whole, most):
            units = min(most, whole - j)
            row = units * item
            # Nearly equal pieces, each of whole squares to transpose and no larger than `scratch`.
            squares, room_for = (t + lanes - 1) // lanes, SCRATCH_BYTES // (lanes * row)
            pieces = (squares + room_for - 1) // room_for
            chunk = (squares + pieces - 1) // pieces * lanes
            for i in range(0, t, chunk):
                count = min(chunk, t - i)
                _transpose_units(like, D + j * d_row + i * item, d_row, units, count, table, scratch)
                x, g, adds = X + i * item, G + j * item, np.int64(add != 0 or i > 0)
                call(multiply, (x, x_row, item, n_in, scratch, row, g, g_row, count, row, adds))
        width = (t * item + size - 1) // size * size
        chunk = max(ROWS, SCRATCH_BYTES // width // ROWS * ROWS)
        for k in range(0, n_in if whole < n_out else 0, chunk):
            x, g, count = X + k * x_row, G + k * g_row + whole * item, min(chunk, n_in - k)
            _sum_products(like, x, x_row, count, D + whole * d_row, d_row, n_out - whole, g, g_row, width, add)

    return multiply_samples


@internal
def _transpose_units(like, D, d_row, units, t, table, scratch):
    """B[i, j] = D[j, i] for `units` rows of D; B, in `scratch`, has them side by side."""
    item = item_bytes(like)
    lanes = lane_bytes(like) // item
    for j in range(0, units, lanes):
        for q in range(lanes):
            store(D + (j + q) * d_row, table + 8 * q)
        for i in range(0, t, lanes):
            _transpose_lanes(like, table, i * item, scratch + (i * units + j) * item, units * item)


@internal
def _sum_products(like, X, x_row, n_in, D, d_row, n_out, G, g_row, width, add):
    """Sums over lanes: as many rows of X as the first-level cache holds, with all of D."""
    item = item_bytes(like)
    four, pairs = n_in - n_in % ROWS, n_out - n_out % _PAIR
    for j in range(0, pairs, _PAIR):
        d, g = D + j * d_row, G + j * item
        for k in range(0, four, ROWS):
            _four_by_pair(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width, add)
        for k in range(four, n_in):
            _one_by_pair(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width, add)
    for j in range(pairs, n_out):
        d, g = D + j * d_row, G + j * item
        for k in range(0, four, ROWS):
            _four_by_one(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width, add)
        for k in range(four, n_in):
            _one_by_one(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width, add)
