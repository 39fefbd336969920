"""The element-wise work of a hidden layer, a register of samples at a time; compiled once per activation and dtype.

The kernels of `tiles` call these by address: they need not be compiled anew for every activation.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache

import numpy as np

from fusedmlp.backends.numba_cpu.compilation import routine_address
from fusedmlp.backends.numba_cpu.mathematics import TAGS, derivative, f, zero
from fusedmlp.backends.numba_cpu.intrinsics import load
from fusedmlp.backends.numba_cpu.simd import fma, item_bytes, lane_bytes, load_lanes, splat, store, sum_lanes


def forward_sweep(tag, like):
    """A ← f(A + b), and z += wᵀ A in the same sweep: `reference.trace`'s A_l = f(Z_l) and Z_L of a single output.

    The arguments are int64. A : address of `rows` rows of `width` bytes of samples, `row` bytes apart. b, w : addresses
    of a number per row, z : address of a row; b and w may be 0: no biases, nothing to sum. Reads and writes an element
    of A once; some 25 flops for a sigmoid.
    """

    def forward(A, row, rows, width, b, w, z):
        item, size = item_bytes(like), lane_bytes(like)
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


def backward_sweep(tag, like):
    """A ← D ⊙ f'(A) (that is dZ) and db += Σ dZ; with a single output after it D = w dz, and dW += A dzᵀ.

    Arguments as in `forward_sweep`. D : address of rows as far apart as A's, or 0: then w, dz and dW are taken, a
    number per row, a row, and a number per row. db : address of a number per row, or 0. Where dz or D is 0, beyond the
    last sample, dZ is 0. Reads and writes an element of A once; 7 flops with a single output.
    """

    def backward(A, D, row, rows, width, w, dz, dW, db):
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


@cache
def sweeps(activation: str, dtype: str) -> tuple[int, int]:
    """The addresses of the sweeps forward and backward."""
    tag, like = TAGS[activation], np.dtype(dtype).type(0)
    return routine_address(forward_sweep(tag, like), 7), routine_address(backward_sweep(tag, like), 9)
