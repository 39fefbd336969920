"""The output layer of a tile: losses, output activations and dZ_L, for every loss. Compiled.

Z, A and Y are (nL, T) with t samples; `n` >= t is the number of them up to the end of a register. What lies between
may be anything finite; dZ is 0 there.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from fusedmlp.backends.numba_cpu.compilation import internal
from fusedmlp.backends.numba_cpu.mathematics import exp, held, log1p_unit, one, zero

BINARY, CATEGORICAL, SQUARED, POISSON, SUM_SQUARED = range(5)
LOSS_CODES = {
    "binary_cross_entropy": BINARY,
    "categorical_cross_entropy": CATEGORICAL,
    "squared_error": SQUARED,
    "poisson": POISSON,
    "sum_squared_error": SUM_SQUARED,
}


@internal
def output(code, Z, n):
    """A_L in place of Z_L: the output activation of a loss."""
    if code == CATEGORICAL:
        for i in range(n):
            largest = Z[0, i]
            for k in range(1, Z.shape[0]):
                largest = max(largest, Z[k, i])
            total = zero(largest)
            for k in range(Z.shape[0]):
                Z[k, i] = exp(Z[k, i] - largest)
                total += Z[k, i]
            for k in range(Z.shape[0]):
                Z[k, i] /= total
        return
    for k in range(Z.shape[0]):
        z = Z[k, :n]
        if code in (BINARY, SUM_SQUARED):
            for i in range(z.size):
                z[i] = one(z[i]) / (one(z[i]) + exp(-z[i]))
        elif code == POISSON:
            for i in range(z.size):
                z[i] = exp(held(z[i]))


@internal
def binary_losses(z, y, j):
    """j += max(z, 0) - y z + log(1 + exp(-|z|)), a row of outputs."""
    for i in range(z.size):
        positive = z[i] if z[i] > zero(z[i]) else zero(z[i])
        j[i] += positive - y[i] * z[i] + log1p_unit(exp(z[i] - positive - positive))


@internal
def per_sample(code, Z, Y, j, n):
    """j (n,) in float64 from the logits; `losses.LOSSES`' per_sample, a column per sample."""
    for i in range(n):
        j[i] = 0.0
    rows = Z.shape[0]
    if code == CATEGORICAL:
        for i in range(n):
            largest = np.float64(Z[0, i])
            for k in range(1, rows):
                largest = max(largest, np.float64(Z[k, i]))
            total, right = 0.0, 0.0
            for k in range(rows):
                shifted = np.float64(Z[k, i]) - largest
                total += exp(shifted)
                if Y[k, i] > 0:
                    right += Y[k, i] * shifted
            j[i] = np.log(total) - right
        return
    for k in range(rows):
        z, y = Z[k, :n], Y[k, :n]
        if code == BINARY:
            binary_losses(z, y, j[:n])
        elif code == SQUARED:
            for i in range(n):
                residual = np.float64(z[i]) - np.float64(y[i])
                j[i] += 0.5 * residual * residual
        elif code == SUM_SQUARED:
            for i in range(n):
                residual = 1.0 / (1.0 + exp(-np.float64(z[i]))) - np.float64(y[i])
                j[i] += 0.5 * residual * residual
        else:
            for i in range(n):
                target = np.float64(y[i])
                y_log_y = target * np.log(target) if target > 0 else 0.0
                j[i] += y_log_y - target * np.float64(z[i]) - target + np.float64(exp(held(z[i])))


@internal
def output_error(code, A, Y, w, t, n):
    """dZ_L in place of A_L: A - Y (⊙ A (1 - A) for the sum of squared errors), times the samples' weights if any."""
    for k in range(A.shape[0]):
        a, y = A[k, :n], Y[k, :n]
        if code == SUM_SQUARED:
            for i in range(a.size):
                a[i] = (a[i] - y[i]) * a[i] * (one(a[i]) - a[i])
        else:
            for i in range(a.size):
                a[i] -= y[i]
        if w.size:
            for i in range(w.size):
                a[i] *= w[i]
        for i in range(t, n):
            a[i] = 0
