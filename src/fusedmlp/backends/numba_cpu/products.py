"""Products of a tile, blocked over registers. Compiled.

BLAS packs its operands and is made for large matrices; a layer with few inputs, or a tile of few samples, leaves half
of the machine unused there. Here a block of R rows by V registers of samples is summed in registers over the whole
depth of the product, straight from where W and the tile lie: R·V multiply-adds for R + V loads.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fusedmlp.backends.numba_cpu.compilation import internal
from fusedmlp.backends.numba_cpu.simd import (
    _BYTES,
    _ELEMENTS,
    Lanes,
    _indices,
    _vector,
    item_bytes,
    lane_bytes,
    registers,
    spread,
)

_INT64 = ir.IntType(64)
ROWS = 4
"""Rows of a block: broadcast numbers in `block_of_products`, registers in `block_of_sums`."""


def wide():
    """Registers of samples of a block, or rows of its other operand: with ROWS the sums fill half of all registers."""
    return 4 if registers().number >= 32 else 2


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
    builder.store(builder.fadd(builder.load(total), builder.fmul(a, b)), total)


def block_of_products(rows, columns):
    """An intrinsic: C[r, i] = Σ_k W(r, k) B[k, i] for `rows` rows and `columns` registers of i."""

    @intrinsic
    def block(typing_context, like, W, w_row, w_column, B, b_row, C, c_row, depth):
        """W, B, C are addresses; rows of B and C, b_row and c_row bytes apart, have their numbers side by side; the
        next r and k of W are w_row and w_column bytes away."""

        def codegen(context, builder, signature, arguments):
            _, W, w_row, w_column, B, b_row, C, c_row, depth = arguments
            vector, align = _vector(Lanes(like)), _BYTES[like]
            at = [ir.Constant(_INT64, v * registers().bytes) for v in range(columns)]
            sums = _zeros(builder, vector, rows, columns)
            w_offsets = [builder.mul(w_row, ir.Constant(_INT64, r)) for r in range(rows)]
            with cgutils.for_range(builder, depth, intp=_INT64) as loop:
                w, b = builder.add(W, builder.mul(loop.index, w_column)), builder.add(B, builder.mul(loop.index, b_row))
                samples = [builder.load(_pointer(builder, b, offset, vector), align=align) for offset in at]
                for r in range(rows):
                    number = builder.load(_pointer(builder, w, w_offsets[r], _ELEMENTS[like]), align=align)
                    weight = spread(builder, number, vector)
                    for v in range(columns):
                        _add_product(builder, sums[r][v], weight, samples[v])
            for r in range(rows):
                c = builder.add(C, builder.mul(c_row, ir.Constant(_INT64, r)))
                for v in range(columns):
                    builder.store(builder.load(sums[r][v]), _pointer(builder, c, at[v], vector), align=align)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 8), codegen

    return block


def block_of_sums(rows, columns):
    """An intrinsic: G[r, s] += Σ_i X[r, i] D[s, i] for `rows` rows of X and `columns` rows of D."""

    @intrinsic
    def block(typing_context, like, X, x_row, D, d_row, G, g_row, width):
        """X, D, G are addresses; rows have their numbers side by side and lie x_row, d_row, g_row bytes apart; those of
        X and D are `width` bytes long, whole registers."""

        def codegen(context, builder, signature, arguments):
            _, X, x_row, D, d_row, G, g_row, width = arguments
            vector, align = _vector(Lanes(like)), _BYTES[like]
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
            totals = _sums_of_lanes(builder, [builder.load(total) for row in sums for total in row])
            for r in range(rows):
                row = _indices([r * columns + s for s in range(columns)])
                part = builder.shuffle_vector(totals, totals, row)
                pointer = _pointer(builder, G, builder.mul(g_row, ir.Constant(_INT64, r)), part.type)
                builder.store(builder.fadd(builder.load(pointer, align=align), part), pointer, align=align)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 7), codegen

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
            _indices([start + offset + p for start in starts for p in range(width // 2)]) for offset in (0, width // 2)
        ]
        vectors = [builder.fadd(*(builder.shuffle_vector(*pair, half) for half in halves)) for pair in pairs]
        width //= 2
    return _joined(builder, vectors, order)


def _joined(builder, vectors, order):
    """LLVM: one vector whose element k is the one that `order` names k."""
    while len(vectors) > 1:
        count = vectors[0].type.count
        everything = _indices(range(2 * count))
        vectors = [builder.shuffle_vector(a, b, everything) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        order = [a + b for a, b in zip(order[::2], order[1::2], strict=True)]
    place = {k: position for position, k in enumerate(order[0])}
    return builder.shuffle_vector(vectors[0], vectors[0], _indices([place[k] for k in range(len(place))]))


_WIDE = wide()
_four_wide, _four_two, _four_one = (block_of_products(ROWS, columns) for columns in (_WIDE, 2, 1))
_one_wide, _one_one = block_of_products(1, _WIDE), block_of_products(1, 1)
_four_by_wide, _four_by_one = block_of_sums(ROWS, _WIDE), block_of_sums(ROWS, 1)
_one_by_wide, _one_by_one = block_of_sums(1, _WIDE), block_of_sums(1, 1)


@internal
def multiply(like, W, w_row, w_column, rows, B, b_row, C, c_row, depth, width):
    """C[r, i] = Σ_k W(r, k) B[k, i]: `rows` rows, `depth` numbers deep, `width` bytes of samples (whole registers).

    W, B and C are addresses, steps are bytes, as `block_of_products` has them. `like` gives the type of the numbers.
    """
    size = lane_bytes(like)
    four = rows - rows % ROWS
    for r in range(0, four, ROWS):
        w, c = W + r * w_row, C + r * c_row
        i = 0
        while i + _WIDE * size <= width:
            _four_wide(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth)
            i += _WIDE * size
        if i + 2 * size <= width:
            _four_two(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth)
            i += 2 * size
        if i < width:
            _four_one(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth)
    for r in range(four, rows):
        w, c = W + r * w_row, C + r * c_row
        i = 0
        while i + _WIDE * size <= width:
            _one_wide(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth)
            i += _WIDE * size
        while i < width:
            _one_one(like, w, w_row, w_column, B + i, b_row, c + i, c_row, depth)
            i += size


@internal
def add_products(like, X, x_row, n_in, D, d_row, n_out, G, g_row, width):
    """G[k, j] += Σ_i X[k, i] D[j, i]: n_in x n_out sums over `width` bytes of samples (whole registers)."""
    itemsize = item_bytes(like)
    four, wide_rows = n_in - n_in % ROWS, n_out - n_out % _WIDE
    for j in range(0, wide_rows, _WIDE):
        d, g = D + j * d_row, G + j * itemsize
        for k in range(0, four, ROWS):
            _four_by_wide(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width)
        for k in range(four, n_in):
            _one_by_wide(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width)
    for j in range(wide_rows, n_out):
        d, g = D + j * d_row, G + j * itemsize
        for k in range(0, four, ROWS):
            _four_by_one(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width)
        for k in range(four, n_in):
            _one_by_one(like, X + k * x_row, x_row, d, d_row, g + k * g_row, g_row, width)
