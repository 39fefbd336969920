"""One tile of samples through the network, forward and backward, without leaving the cache. Compiled.

A tile holds t <= T samples. The activations of layer l are rows of T numbers in the workspace of a thread, a row per
unit, samples contiguous: for a unit, its weight and bias are scalars, the loop over samples vectorises and sums stay in
registers. `reference.trace` is the mathematics; each function names the line it fuses.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from fusedmlp.activations import largest_exponent
from fusedmlp.backends.numba_cpu.kernels import _OPTIONS, _derivative, _exp_parts, _f, _one, _zero, internal, summing
from fusedmlp.backends.numba_cpu.primitives import copy_bytes, gemm, load

_LARGEST_64 = np.float64(largest_exponent(np.float64))
BINARY, CATEGORICAL, SQUARED, POISSON, SUM_SQUARED = range(5)
LOSS_CODES = {
    "binary_cross_entropy": BINARY,
    "categorical_cross_entropy": CATEGORICAL,
    "squared_error": SQUARED,
    "poisson": POISSON,
    "sum_squared_error": SUM_SQUARED,
}


def _log1p_unit(x):
    """log(1 + x) for x in [0, 1]."""


def _log1p_unit_32(x):
    # 2 artanh(s), s = x / (2 + x) <= 1/3: the first term left out is below 3^-13 / 13 of the result.
    s = x / (np.float32(2) + x)
    q = s * s
    p = np.float32(1 / 11)
    p = p * q + np.float32(1 / 9)
    p = p * q + np.float32(1 / 7)
    p = p * q + np.float32(1 / 5)
    p = p * q + np.float32(1 / 3)
    return np.float32(2) * (s + s * q * p)


def _log1p_unit_64(x):
    s = x / (2.0 + x)
    q = s * s
    p = 1 / 31
    p = p * q + 1 / 29
    p = p * q + 1 / 27
    p = p * q + 1 / 25
    p = p * q + 1 / 23
    p = p * q + 1 / 21
    p = p * q + 1 / 19
    p = p * q + 1 / 17
    p = p * q + 1 / 15
    p = p * q + 1 / 13
    p = p * q + 1 / 11
    p = p * q + 1 / 9
    p = p * q + 1 / 7
    p = p * q + 1 / 5
    p = p * q + 1 / 3
    return 2.0 * (s + s * q * p)


@overload(_log1p_unit, jit_options=_OPTIONS)
def _select_log1p_unit(x):
    return {types.float32: _log1p_unit_32, types.float64: _log1p_unit_64}.get(x)


def _held(x):
    """x, held where `activations.exp` holds it."""


def _held_32(x):
    return x  # _exp_parts holds it sooner


def _held_64(x):
    return _LARGEST_64 if x > _LARGEST_64 else x


@overload(_held, jit_options=_OPTIONS)
def _select_held(x):
    return {types.float32: _held_32, types.float64: _held_64}.get(x)


# Input ---------------------------------------------------------------------------------------------------------------


@internal
def pack_rows(out, address, row_step, sample_step, order, start, t):
    """out[k, i] = x[k, sample i]: a row per input, for any strides (bytes); `order` names the samples, if not empty."""
    for i in range(t):
        sample = order[start + i] if order.size else start + i
        at = address + sample * sample_step
        for k in range(out.shape[0]):
            out[k, i] = load(out[0, 0], at + k * row_step)


@internal
def pack_samples(out, address, row_step, sample_step, order, start, t):
    """out[i, k] = x[k, sample i]: a sample per row; fastest where samples are contiguous where they come from."""
    for i in range(t):
        sample = order[start + i] if order.size else start + i
        at = address + sample * sample_step
        row = out[i]
        if row_step == row.itemsize:
            copy_bytes(row.ctypes.data, at, row.size * row.itemsize)
        else:
            for k in range(row.size):
                row[k] = load(row[0], at + k * row_step)


# Forward -------------------------------------------------------------------------------------------------------------


@internal
def short_products(W, X, Z, t):
    """Z = Wᵀ X for a few inputs, row by row: Z (n_out, t), X (n_in, t); BLAS does badly there."""
    for j in range(Z.shape[0]):
        z = Z[j, :t]
        w, x = W[0, j], X[0, :t]
        for i in range(z.size):
            z[i] = w * x[i]
        for k in range(1, X.shape[0]):
            w, x = W[k, j], X[k, :t]
            for i in range(z.size):
                z[i] += w * x[i]


@internal
def activate(tag, A, b, t):
    """A = f(A + b) in place."""
    for j in range(A.shape[0]):
        a, bias = A[j, :t], b[j] if b.size else _zero(A[j, 0])
        for i in range(a.size):
            a[i] = _f(tag, a[i] + bias)


@internal
def activate_and_sum(tag, A, b, w, z, t):
    """A = f(A + b) in place and z = wᵀ A, the logit of a single output, in the same sweep."""
    logit = z[:t]
    for i in range(logit.size):
        logit[i] = _zero(logit[i])
    for j in range(A.shape[0]):
        a, weight, bias = A[j, :t], w[j], b[j] if b.size else _zero(A[j, 0])
        for i in range(a.size):
            activation = _f(tag, a[i] + bias)
            a[i] = activation
            logit[i] += weight * activation


# Output --------------------------------------------------------------------------------------------------------------


@internal
def output(code, Z, t):
    """A_L in place of Z_L: the output activation of a loss."""
    if code == CATEGORICAL:
        for i in range(t):
            largest = Z[0, i]
            for k in range(1, Z.shape[0]):
                largest = max(largest, Z[k, i])
            total = _zero(largest)
            for k in range(Z.shape[0]):
                two_n, em1 = _exp_parts(Z[k, i] - largest)
                Z[k, i] = two_n * em1 + two_n
                total += Z[k, i]
            for k in range(Z.shape[0]):
                Z[k, i] /= total
        return
    for k in range(Z.shape[0]):
        z = Z[k, :t]
        if code in (BINARY, SUM_SQUARED):
            for i in range(z.size):
                two_n, em1 = _exp_parts(-z[i])
                z[i] = _one(z[i]) / (_one(z[i]) + (two_n * em1 + two_n))
        elif code == POISSON:
            for i in range(z.size):
                two_n, em1 = _exp_parts(_held(z[i]))
                z[i] = two_n * em1 + two_n


@internal
def binary_losses(z, y, j):
    """j += max(z, 0) - y z + log(1 + exp(-|z|)), a row of outputs."""
    for i in range(z.size):
        positive = z[i] if z[i] > _zero(z[i]) else _zero(z[i])
        two_n, em1 = _exp_parts(z[i] - positive - positive)  # -|z|
        j[i] += positive - y[i] * z[i] + _log1p_unit(two_n * em1 + two_n)


@internal
def per_sample(code, Z, Y, j, t):
    """j (t,) in float64 from the logits; `losses.LOSSES`' per_sample, a column per sample."""
    for i in range(t):
        j[i] = 0.0
    rows = Z.shape[0]
    if code == CATEGORICAL:
        for i in range(t):
            largest = np.float64(Z[0, i])
            for k in range(1, rows):
                largest = max(largest, np.float64(Z[k, i]))
            total, right = 0.0, 0.0
            for k in range(rows):
                shifted = np.float64(Z[k, i]) - largest
                two_n, em1 = _exp_parts(shifted)
                total += two_n * em1 + two_n
                if Y[k, i] > 0:
                    right += Y[k, i] * shifted
            j[i] = np.log(total) - right
        return
    for k in range(rows):
        z, y = Z[k, :t], Y[k, :t]
        if code == BINARY:
            binary_losses(z, y, j[:t])
        elif code == SQUARED:
            for i in range(t):
                residual = np.float64(z[i]) - np.float64(y[i])
                j[i] += 0.5 * residual * residual
        elif code == SUM_SQUARED:
            for i in range(t):
                two_n, em1 = _exp_parts(-np.float64(z[i]))
                residual = 1.0 / (1.0 + (two_n * em1 + two_n)) - np.float64(y[i])
                j[i] += 0.5 * residual * residual
        else:
            for i in range(t):
                two_n, em1 = _exp_parts(_held(z[i]))
                target = np.float64(y[i])
                y_log_y = target * np.log(target) if target > 0 else 0.0
                j[i] += y_log_y - target * np.float64(z[i]) - target + np.float64(two_n * em1 + two_n)


@internal
def output_error(code, A, Y, w, t):
    """dZ_L in place of A_L: A - Y (⊙ A (1 - A) for the sum of squared errors), times the samples' weights if any."""
    for k in range(A.shape[0]):
        a, y = A[k, :t], Y[k, :t]
        if code == SUM_SQUARED:
            for i in range(a.size):
                a[i] = (a[i] - y[i]) * a[i] * (_one(a[i]) - a[i])
        else:
            for i in range(a.size):
                a[i] -= y[i]
        if w.size:
            for i in range(a.size):
                a[i] *= w[i]


# Backward ------------------------------------------------------------------------------------------------------------


@summing
def back_through_one_output(tag, A, w, dz, dW, db, t):
    """The last hidden layer of a network with one output, in one sweep over A.

    dW += A dzᵀ, A ← w dz ⊙ f'(A) (that is dZ), db += Σ dZ: reads and writes an element of A once; 7 flops.
    """
    error = dz[:t]
    for j in range(A.shape[0]):
        a, weight = A[j, :t], w[j]
        sum_dW, sum_db = _zero(weight), _zero(weight)
        for i in range(a.size):
            sum_dW += a[i] * error[i]
            d = weight * error[i] * _derivative(tag, a[i])
            sum_db += d
            a[i] = d
        dW[j] += sum_dW
        if db.size:
            db[j] += sum_db


@summing
def back_through_products(tag, A, D, db, t):
    """A ← D ⊙ f'(A) with D = W dZ, and db += Σ of it."""
    for j in range(A.shape[0]):
        a, d = A[j, :t], D[j, :t]
        total = _zero(A[j, 0])
        for i in range(a.size):
            error = d[i] * _derivative(tag, a[i])
            total += error
            a[i] = error
        if db.size:
            db[j] += total


@summing
def add_row_sums(D, sums, t):
    """sums += Σ over samples of each row of D."""
    for j in range(D.shape[0]):
        d, total = D[j, :t], _zero(D[j, 0])
        for i in range(d.size):
            total += d[i]
        sums[j] += total


@summing
def short_outer_products(X, dZ, dW, t):
    """dW += X dZᵀ for a few inputs."""
    for j in range(dZ.shape[0]):
        d = dZ[j, :t]
        for k in range(X.shape[0]):
            x, total = X[k, :t], _zero(dZ[j, 0])
            for i in range(d.size):
                total += x[i] * d[i]
            dW[k, j] += total


# Products by BLAS. Rows of a tile are T numbers apart; an operand x is (address, whether BLAS finds a sample in each of
# its columns, step), as `passes.reach_X` gives it.


@internal
def layer_products(routine, W, x, Z, t):
    """Z = Wᵀ X: Z (n_out, t)."""
    (n_in, n_out), T = W.shape, Z.shape[1]
    address, transposed, step = x
    one, zero = _one(W[0, 0]), _zero(W[0, 0])
    gemm(routine, transposed, True, t, n_out, n_in, one, address, step, W.ctypes.data, n_out, zero, Z.ctypes.data, T)


@internal
def weight_products(routine, x, dZ, dW, t):
    """dW += X dZᵀ."""
    (n_in, n_out), T = dW.shape, dZ.shape[1]
    address, transposed, step = x
    one = _one(dW[0, 0])
    gemm(routine, True, transposed, n_out, n_in, t, one, dZ.ctypes.data, T, address, step, one, dW.ctypes.data, n_out)


@internal
def error_products(routine, W, dZ, D, t):
    """D = W dZ."""
    (n_in, n_out), T = W.shape, dZ.shape[1]
    one, zero = _one(W[0, 0]), _zero(W[0, 0])
    gemm(routine, False, False, t, n_in, n_out, one, dZ.ctypes.data, T, W.ctypes.data, n_out, zero, D.ctypes.data, T)
