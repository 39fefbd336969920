"""The element-wise work of a hidden layer, a register of samples at a time; compiled once per activation and dtype.

The kernels of `tiles` call these by address: they need not be compiled anew for every activation. All forward sweeps
take the same arguments, and so do all backward sweeps; what a sweep does not need may be anything.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.activation_formulas import TAGS, derivative, f, f_and_slope, stores_slope
from fusedmlp.backends.numba_cpu.kernels.random_masks import HASH_BYTES, mask_rows, masked_scale, unit_key
from fusedmlp.backends.numba_cpu.machine.compilation import routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, load
from fusedmlp.backends.numba_cpu.machine.mathematics import zero
from fusedmlp.backends.numba_cpu.machine.simd import fma, item_bytes, lane_bytes, load_lanes, splat, store, sum_lanes

FORWARD_ARGUMENTS, BACKWARD_ARGUMENTS = 11, 10
_NARROW = 4
"""With so few registers of samples, z stays in one: the sums of a row would wait for the store of the row before."""


def forward_sweep(tag, like):
    """A ← f(A + b), and z += wᵀ A in the same sweep: `reference.trace`'s A_l = f(Z_l) and Z_{L-1} of a single output.

    The arguments are int64. A : address of `rows` rows of `width` bytes of samples, `row` bytes apart. S : address of
    as many rows for slopes. b, w : addresses of a number per row, z : address of a row; b and w may be 0: no biases,
    nothing to sum. hashes, key, mask : see `forward_sweep_masked`. Reads and writes an element of A once; some 25 flops
    for a sigmoid.
    """

    def forward(A, S, row, rows, width, b, w, z, hashes, key, mask):
        item, size = item_bytes(like), lane_bytes(like)
        if w and width <= _NARROW * size:
            for i in range(0, width, size):
                total = load_lanes(like, z + i)
                for j in range(rows):
                    bias = splat(load(like, b + j * item)) if b else splat(zero(like))
                    activation = f(tag, load_lanes(like, A + j * row + i) + bias)
                    store(activation, A + j * row + i)
                    total = fma(splat(load(like, w + j * item)), activation, total)
                store(total, z + i)
            return
        for j in range(rows):
            a = A + j * row
            bias = splat(load(like, b + j * item)) if b else splat(zero(like))
            if w:
                weight = splat(load(like, w + j * item))
                for i in range(0, width, size):
                    activation = f(tag, load_lanes(like, a + i) + bias)
                    store(activation, a + i)
                    store(fma(weight, activation, load_lanes(like, z + i)), z + i)
            else:
                for i in range(0, width, size):
                    store(f(tag, load_lanes(like, a + i) + bias), a + i)

    return forward


def forward_sweep_with_slopes(tag, like):
    """`forward_sweep`, and S ← f'(Z): for activations whose f' cannot be had from A."""

    def forward(A, S, row, rows, width, b, w, z, hashes, key, mask):
        item, size = item_bytes(like), lane_bytes(like)
        for j in range(rows):
            a, s = A + j * row, S + j * row
            bias = splat(load(like, b + j * item)) if b else splat(zero(like))
            if w:
                weight = splat(load(like, w + j * item))
                for i in range(0, width, size):
                    activation, slope = f_and_slope(tag, load_lanes(like, a + i) + bias)
                    store(activation, a + i)
                    store(slope, s + i)
                    store(fma(weight, activation, load_lanes(like, z + i)), z + i)
            else:
                for i in range(0, width, size):
                    activation, slope = f_and_slope(tag, load_lanes(like, a + i) + bias)
                    store(activation, a + i)
                    store(slope, s + i)

    return forward


def forward_sweep_masked(tag, like):
    """`forward_sweep_with_slopes` with dropout: A and S are multiplied by the mask and its scale.

    hashes : address of the samples' hashes. key : `random_masks.layer_key` plus the number of the first row's unit.
    mask : address of a `MaskRecord`.
    """
    number = type(like)

    def forward(A, S, row, rows, width, b, w, z, hashes, key, mask):
        item, size = item_bytes(like), lane_bytes(like)
        threshold, scale = load(INTEGER, mask), number(load(0.0, mask + 8))
        for j in range(rows):
            a, s, unit = A + j * row, S + j * row, unit_key(key + j)
            bias = splat(load(like, b + j * item)) if b else splat(zero(like))
            weight = splat(load(like, w + j * item)) if w else splat(zero(like))
            for i in range(0, width, size):
                kept = masked_scale(like, hashes + i // item * HASH_BYTES, unit, threshold, scale)
                activation, slope = f_and_slope(tag, load_lanes(like, a + i) + bias)
                activation = activation * kept
                store(activation, a + i)
                store(kept * slope, s + i)
                if w:
                    store(fma(weight, activation, load_lanes(like, z + i)), z + i)

    return forward


def backward_sweep(tag, like):
    """A ← D ⊙ f'(A) (that is dZ) and db += Σ dZ; with a single output after it D = w dz, and dW += A dzᵀ.

    Arguments as in `forward_sweep`. D : address of rows as far apart as A's, or 0: then w, dz and dW are taken, a
    number per row, a row, and a number per row. db : address of a number per row, or 0. Where dz or D is 0, beyond the
    last sample, dZ is 0. Reads and writes an element of A once; 7 flops with a single output.
    """

    def backward(A, S, D, row, rows, width, w, dz, dW, db):
        item, size = item_bytes(like), lane_bytes(like)
        for j in range(rows):
            a = A + j * row
            sum_db = splat(zero(like))
            if D:
                d = D + j * row
                for i in range(0, width, size):
                    error = load_lanes(like, d + i) * derivative(tag, load_lanes(like, a + i))
                    sum_db = sum_db + error
                    store(error, a + i)
            else:
                weight, sum_dW = splat(load(like, w + j * item)), splat(zero(like))
                for i in range(0, width, size):
                    activation, e = load_lanes(like, a + i), load_lanes(like, dz + i)
                    sum_dW = fma(activation, e, sum_dW)
                    error = weight * e * derivative(tag, activation)
                    sum_db = sum_db + error
                    store(error, a + i)
                at = dW + j * item
                store(load(like, at) + sum_lanes(sum_dW), at)
            if db:
                at = db + j * item
                store(load(like, at) + sum_lanes(sum_db), at)

    return backward


def backward_sweep_with_slopes(like):
    """`backward_sweep` with f' from the rows of S, for every activation."""

    def backward(A, S, D, row, rows, width, w, dz, dW, db):
        item, size = item_bytes(like), lane_bytes(like)
        for j in range(rows):
            a, s = A + j * row, S + j * row
            sum_db = splat(zero(like))
            if D:
                d = D + j * row
                for i in range(0, width, size):
                    error = load_lanes(like, d + i) * load_lanes(like, s + i)
                    sum_db = sum_db + error
                    store(error, a + i)
            else:
                weight, sum_dW = splat(load(like, w + j * item)), splat(zero(like))
                for i in range(0, width, size):
                    e = load_lanes(like, dz + i)
                    sum_dW = fma(load_lanes(like, a + i), e, sum_dW)
                    error = weight * e * load_lanes(like, s + i)
                    sum_db = sum_db + error
                    store(error, a + i)
                at = dW + j * item
                store(load(like, at) + sum_lanes(sum_dW), at)
            if db:
                at = db + j * item
                store(load(like, at) + sum_lanes(sum_db), at)

    return backward


class SweepRoutines(NamedTuple):
    """Addresses of the sweeps of an activation and a dtype; `mask_inputs` is 0 without dropout."""

    forward: int
    backward: int
    mask_inputs: int


def uses_slopes(activation: str, dropout: bool) -> bool:
    """Whether the sweeps need rows for slopes: f' cannot be had from A, or from an A that is masked."""
    return dropout or stores_slope(TAGS[activation])


@cache
def sweeps(activation: str, dtype: str, dropout: bool) -> SweepRoutines:
    """Compiled at the first call."""
    tag, like = TAGS[activation], np.dtype(dtype).type(0)
    with_slopes = uses_slopes(activation, dropout)
    forward = forward_sweep_masked if dropout else forward_sweep_with_slopes if with_slopes else forward_sweep
    backward = backward_sweep_with_slopes(like) if with_slopes else backward_sweep(tag, like)
    return SweepRoutines(
        routine_address(forward(tag, like), FORWARD_ARGUMENTS),
        routine_address(backward, BACKWARD_ARGUMENTS),
        routine_address(mask_rows(like), 7) if dropout else 0,
    )
