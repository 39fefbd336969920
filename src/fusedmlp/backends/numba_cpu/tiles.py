"""One tile of samples through the network, forward and backward, without leaving the cache. Compiled.

A tile holds t <= T samples. The activations of layer l are rows of a worker's workspace, a row per unit, samples
contiguous: for a unit, its weight and bias are scalars, the loop over samples takes a register at a time and sums stay
in registers. Rows are worked on to the end of a register, n >= t samples: what lies beyond the last one is finite and
its dZ is 0, so it adds nothing. `reference.trace` is the mathematics; each function names the line it fuses.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from fusedmlp.backends.numba_cpu.compilation import internal
from fusedmlp.backends.numba_cpu.mathematics import one, zero
from fusedmlp.backends.numba_cpu.primitives import copy_bytes, gemm, load, where
from fusedmlp.backends.numba_cpu.simd import call, item_bytes, lane_bytes, load_lanes, splat, sum_lanes, transposition

# How a tile of X is reached: by BLAS, in place with samples or rows contiguous, or a sample per packed row; else it is
# packed with a row per input.
SAMPLES_IN_PLACE, ROWS_IN_PLACE, SAMPLES_PACKED, ROWS_PACKED = range(4)
_BLOCK = 8
"""Rows of a layer that pass through its product and its sweep together, while they are in the first-level cache."""
_FEW_ROWS = 24
"""Up to so many inputs of a layer, all of them stay in that cache while a block of rows is multiplied with them."""
_DEEP = 256
"""From so many inputs on, it is better to keep a piece of them in that cache than the rows of a block."""
_SQUARE = 4
_transpose_lanes, _transpose_square = transposition(None), transposition(_SQUARE)


@internal
def samples_of(like, t):
    """t samples, up to the end of a register (and of a square that is transposed)."""
    unit = max(lane_bytes(like) // item_bytes(like), _SQUARE)
    return (t + unit - 1) // unit * unit


@internal
def matrix(workspace, offset, rows, step):
    """`rows` rows, `step` numbers apart, in a workspace."""
    return workspace[offset : offset + rows * step].reshape(rows, step)


@internal
def weights_of(flat, sizes, offsets, layer):
    """W_{layer+1} (n_in, n_out), a view of a flat vector."""
    n_in, n_out = sizes[layer], sizes[layer + 1]
    return flat[offsets[layer, 0] : offsets[layer, 0] + n_in * n_out].reshape(n_in, n_out)


@internal
def biases_of(flat, sizes, offsets, layer):
    """b_{layer+1} (n_out,), a view of a flat vector; empty where the network has none."""
    if offsets[layer, 1] < 0:
        return flat[:0]
    return flat[offsets[layer, 1] : offsets[layer, 1] + sizes[layer + 1]]


@internal
def address_or_none(x, row):
    """Where x[row] lies; 0 for an empty x."""
    return where(x) + row * x.itemsize if x.size else 0


# Input ----------------------------------------------------------------------------------------------------------------


@internal
def find_samples(sources, address, sample_step, order, start, t, n):
    """The address of every sample of a tile; that of the last one up to n."""
    for i in range(t):
        sources[i] = address + sample_step * (order[start + i] if order.size else start + i)
    for i in range(t, n):
        sources[i] = sources[t - 1]


@internal
def pack_rows(out, sources, row_step, n):
    """out[k, i] = x[k, sample i]: a row per input, for any strides (bytes)."""
    rows, item = out.shape[0], out.itemsize
    like, base, step = out[0, 0], where(out), out.shape[1] * item
    lanes = lane_bytes(like) // item
    if row_step == item and rows >= lanes:
        for i in range(0, n, lanes):
            for first in range(0, rows, lanes):  # the last block overlaps the one before
                k = min(first, rows - lanes)
                at = base + k * step + i * item
                _transpose_lanes(like, where(sources[i:]), k * item, at, step)
    elif row_step == item and rows >= _SQUARE:
        for i in range(0, n, _SQUARE):
            for first in range(0, rows, _SQUARE):
                k = min(first, rows - _SQUARE)
                at = base + k * step + i * item
                _transpose_square(like, where(sources[i:]), k * item, at, step)
    else:
        for k in range(rows):
            for i in range(n):
                out[k, i] = load(like, sources[i] + k * row_step)


@internal
def pack_samples(out, sources, row_step, t):
    """out[i, k] = x[k, sample i]: a sample per row."""
    for i in range(t):
        row = out[i]
        if row_step == row.itemsize:
            copy_bytes(where(row), sources[i], row.size * row.itemsize)
        else:
            for k in range(row.size):
                row[k] = load(row[0], sources[i] + k * row_step)


@internal
def reach_X(plan, arrays, x, order, start, t):
    """(address, whether BLAS finds a sample in each of its columns, step) of a tile of X; packed first where it must
    be."""
    sizes, buffers, T, step = plan[2], plan[4], plan[5], plan[6]
    workspace, _, sources = arrays
    address, row_step, sample_step, how = x
    n1, item = sizes[0], workspace.itemsize
    if how == SAMPLES_IN_PLACE:
        return address + start * sample_step, True, sample_step // item
    if how == ROWS_IN_PLACE:
        return address + start * sample_step, False, row_step // item
    n = samples_of(workspace[0], t)
    find_samples(sources, address, sample_step, order, start, t, n)
    if how == SAMPLES_PACKED:
        packed = workspace[buffers[-1] : buffers[-1] + n1 * T].reshape(T, n1)
        pack_samples(packed, sources, row_step, t)
        return where(packed), True, n1
    packed = matrix(workspace, buffers[-1], n1, step)
    pack_rows(packed, sources, row_step, n)
    return where(packed), False, step


# Products: by blocks over registers, or by BLAS. An operand x is (address, whether BLAS finds a sample in each of its
# columns, step), as `reach_X` gives it.


@internal
def layer_products(routine, W, x, Z, t, n):
    """Z = Wᵀ X by BLAS: Z (n_out, t), and 0 up to n."""
    n_in, n_out = W.shape
    address, transposed, step = x
    gemm(
        routine, transposed, True, t, n_out, n_in, one(W[0, 0]), address, step, where(W), n_out, zero(W[0, 0]),
        where(Z), Z.shape[1],
    )  # fmt: skip
    for j in range(n_out):
        for i in range(t, n):
            Z[j, i] = 0


@internal
def weight_products(routine, x, dZ, dW, t):
    """dW += X dZᵀ by BLAS."""
    n_in, n_out = dW.shape
    address, transposed, step = x
    gemm(
        routine, True, transposed, n_out, n_in, t, one(dW[0, 0]), where(dZ), dZ.shape[1], address, step,
        one(dW[0, 0]), where(dW), n_out,
    )  # fmt: skip


@internal
def error_products(routine, W, dZ, D, n):
    """D = W dZ by BLAS."""
    n_in, n_out = W.shape
    gemm(
        routine, False, False, n, n_in, n_out, one(W[0, 0]), where(dZ), dZ.shape[1], where(W), n_out,
        zero(W[0, 0]), where(D), D.shape[1],
    )  # fmt: skip


# Forward and backward -------------------------------------------------------------------------------------------------


@internal
def forward_layer(plan, flat, workspace, layer, x, t, n):
    """Z = Wᵀ A + b, A = f(Z) of a layer; before a single output also z_L = w_Lᵀ A, in the same sweep."""
    (forward, _, multiply, deep, _, _, _, _, _, _), _, sizes, offsets, buffers, _, step, routine, blocked = plan
    W, b = weights_of(flat, sizes, offsets, layer), biases_of(flat, sizes, offsets, layer)
    (n_in, n_out), item = W.shape, workspace.itemsize
    Z, row, width = matrix(workspace, buffers[layer], n_out, step), step * item, n * item
    last = sizes.size - 2
    sums_output = layer == last - 1 and sizes[-1] == 1
    z = matrix(workspace, buffers[last], sizes[-1], step)
    w = weights_of(flat, sizes, offsets, last)[:, 0] if sums_output else flat[:0]
    if sums_output:
        for i in range(n):
            z[0, i] = 0
    if not blocked[layer]:
        layer_products(routine, W, x, Z, t, n)
    elif n_in > _DEEP:
        call(deep, (multiply, where(W), item, n_out * item, n_out, x[0], x[2] * item, where(Z), row, n_in, width))
    block_by_block = blocked[layer] and n_in <= _DEEP
    rows = _BLOCK if block_by_block else n_out
    for first in range(0, n_out, rows):
        count, at = min(rows, n_out - first), where(Z) + first * row
        if block_by_block:
            start = where(W) + first * item
            call(multiply, (start, item, n_out * item, count, x[0], x[2] * item, at, row, n_in, width, 0))
        if layer < last:
            biases, weights = address_or_none(b, first), address_or_none(w, first)
            call(forward, (at, row, count, width, biases, weights, where(z)))


@internal
def forward_tile(plan, flat, arrays, x, order, start, t):
    """Z_1 ... A_{L-1} and the logits Z_L into the workspace; how X was reached."""
    _, _, sizes, offsets, buffers, _, step, _, _ = plan
    workspace = arrays[0]
    last = sizes.size - 2
    n = samples_of(workspace[0], t)
    reached = reach_X(plan, arrays, x, order, start, t)
    for layer in range(last + 1):
        if layer == 0:
            forward_layer(plan, flat, workspace, 0, reached, t, n)
        elif layer < last or sizes[-1] > 1:
            A = matrix(workspace, buffers[layer - 1], sizes[layer], step)
            forward_layer(plan, flat, workspace, layer, (where(A), False, step), n, n)
    b = biases_of(flat, sizes, offsets, last)
    Z = matrix(workspace, buffers[last], sizes[-1], step)
    for k in range(b.size):
        z = Z[k, :n]
        for i in range(z.size):
            z[i] += b[k]
    return reached


@internal
def clear_gradient(plan, gradient):
    """Zeros where the first tile of a slot adds; the sums of blocked products it writes."""
    _, _, sizes, offsets, _, _, _, _, blocked = plan
    last = sizes.size - 2
    for layer in range(last + 1):
        if not blocked[layer] or (layer == last and layer > 0 and sizes[-1] == 1):
            dW = weights_of(gradient, sizes, offsets, layer).reshape(-1)
            for i in range(dW.size):
                dW[i] = 0
        db = biases_of(gradient, sizes, offsets, layer)
        for i in range(db.size):
            db[i] = 0


@internal
def add_weight_gradient(plan, gradient, arrays, layer, x, dZ, first, count, t, add):
    """dW = A_{l-1} dZᵀ, += where `add`, for `count` rows of dZ from `first` on; all of them if BLAS does it."""
    (_, _, multiply, _, samples, _, _, _, _, _), _, sizes, offsets, buffers, _, _, routine, blocked = plan
    dW = weights_of(gradient, sizes, offsets, layer)
    (n_in, n_out), item = dW.shape, dW.itemsize
    if blocked[layer]:
        row = dZ.shape[1] * item
        d, g = where(dZ) + first * row, where(dW) + first * item
        table, room = where(arrays[2]), where(arrays[0][buffers[-3] :])
        call(
            samples, (multiply, x[0], x[2] * item, n_in, d, row, count, g, n_out * item, t, table, room, np.int64(add))
        )
    else:
        weight_products(routine, x, dZ, dW, t)


@internal
def backward_layer(plan, flat, gradient, arrays, layer, x, t, n, add):
    """dZ = W dZ_{l+1} ⊙ f'(A) of a hidden layer, db += Σ dZ, dW += x dZᵀ; before a single output also dW_L += A dzᵀ."""
    (_, backward, multiply, deep, _, _, _, _, _, _), _, sizes, offsets, buffers, _, step, routine, blocked = plan
    workspace = arrays[0]
    item, units = workspace.itemsize, sizes[layer + 1]
    row, width = step * item, n * item
    A = matrix(workspace, buffers[layer], units, step)
    above = matrix(workspace, buffers[layer + 1], sizes[layer + 2], step)
    W, dW = weights_of(flat, sizes, offsets, layer + 1), weights_of(gradient, sizes, offsets, layer + 1)
    db = biases_of(gradient, sizes, offsets, layer)
    one_output = layer == sizes.size - 3 and sizes[-1] == 1
    D = matrix(workspace, buffers[-2], 0 if one_output else units, step)
    n_out, is_deep = W.shape[1], W.shape[1] > _DEEP
    if not one_output and not blocked[layer + 1]:
        error_products(routine, W, above, D, n)
    elif not one_output and is_deep:
        call(deep, (multiply, where(W), n_out * item, item, units, where(above), row, where(D), row, n_out, width))
    at_once = blocked[layer] and sizes[layer] <= _FEW_ROWS
    block_by_block = blocked[layer + 1] and not one_output and not is_deep
    rows = _BLOCK if at_once or block_by_block else units
    for first in range(0, units, rows):
        count, at = min(rows, units - first), first * row
        sums, d, w, dw = address_or_none(db, first), 0, 0, 0
        if one_output:
            w, dw = address_or_none(W[:, 0], first), address_or_none(dW[:, 0], first)
        else:
            d = where(D) + at
        if block_by_block:
            start = where(W) + first * n_out * item
            call(multiply, (start, n_out * item, item, count, where(above), row, d, row, n_out, width, 0))
        call(backward, (where(A) + at, d, row, count, width, w, where(above), dw, sums))
        if at_once:
            add_weight_gradient(plan, gradient, arrays, layer, x, A, first, count, t, add)
    if not at_once:
        add_weight_gradient(plan, gradient, arrays, layer, x, A, 0, units, t, add)


@internal
def backward_tile(plan, flat, gradient, arrays, reached, t, add):
    """dW_l += A_{l-1} dZ_lᵀ, db_l += Σ dZ_l, dZ_{l-1} = W_l dZ_l ⊙ f'(A_{l-1}), from dZ_L in the workspace.

    The sums of blocked products are written anew, unless `add`.
    """
    _, _, sizes, offsets, buffers, _, step, _, _ = plan
    workspace = arrays[0]
    last = sizes.size - 2
    n = samples_of(workspace[0], t)
    dZ = matrix(workspace, buffers[last], sizes[-1], step)
    add_row_sums(dZ, biases_of(gradient, sizes, offsets, last), n)
    for layer in range(last, -1, -1):
        x = reached
        if layer > 0:
            A = matrix(workspace, buffers[layer - 1], sizes[layer], step)
            x = (where(A), False, step)
        if layer < last:
            backward_layer(plan, flat, gradient, arrays, layer, x, t, n, add)
        elif last == 0 or sizes[-1] > 1:
            add_weight_gradient(plan, gradient, arrays, last, x, dZ, 0, sizes[-1], t, add)


@internal
def add_row_sums(D, sums, n):
    """sums += Σ over samples of each row of D, if there are any."""
    like, item = D[0, 0], D.itemsize
    for j in range(sums.size):
        total, row = splat(zero(like)), where(D[j])
        for i in range(row, row + n * item, lane_bytes(like)):
            total = total + load_lanes(like, i)
        sums[j] += sum_lanes(total)
