"""The rates of the package's own kernels on a tile in cache, which set the floor where they are the fastest."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from fusedmlp.backends.numba_cpu.kernels.register_products import register_products
from fusedmlp.backends.numba_cpu.kernels.sweeps import sweeps
from fusedmlp.backends.numba_cpu.machine.simd import call

ROWS, DEPTH, SAMPLES = 32, 64, 64
"""Sizes of the product: 28 KiB in all."""


@njit(nogil=True)
def _repeat(routine, arguments, repeats):
    for _ in range(repeats):
        call(routine, arguments)


@njit(nogil=True)
def _repeat_both(first, first_arguments, second, second_arguments, repeats):
    for _ in range(repeats):
        call(first, first_arguments)
        call(second, second_arguments)


def product_task() -> Callable[[int], Any]:
    """A function that runs so many products of `ROWS` x `DEPTH` by `DEPTH` x `SAMPLES`, in float32."""
    rng = np.random.default_rng(0)
    W, B = rng.standard_normal((ROWS, DEPTH), np.float32), rng.standard_normal((DEPTH, SAMPLES), np.float32)
    C = np.empty((ROWS, SAMPLES), np.float32)
    arguments = (W.ctypes.data, 4 * DEPTH, 4, ROWS, B.ctypes.data, 4 * SAMPLES, C.ctypes.data, 4 * SAMPLES, DEPTH)
    keep = (W, B, C)
    return lambda repeats: (_repeat(register_products("float32").multiply, (*arguments, 4 * SAMPLES, 0), repeats), keep)


def sweep_task(activation: str, units: int, samples: int, backward: bool) -> Callable[[int], Any]:
    """A function that runs so many sweeps over a tile (units, samples) in float32, forward alone or both ways."""
    rng = np.random.default_rng(0)
    A, dz = rng.standard_normal((units, samples), np.float32), rng.standard_normal(samples, np.float32)
    vectors, z = np.zeros((4, units), np.float32), np.empty(samples, np.float32)
    (b, w, dW, db), row = (vector.ctypes.data for vector in vectors), 4 * samples
    there = (A.ctypes.data, 0, row, units, row, b, w, z.ctypes.data, 0, 0, 0)  # no slopes, no dropout
    back = (A.ctypes.data, 0, 0, row, units, row, w, dz.ctypes.data, dW, db)
    forward_sweep, backward_sweep, _ = sweeps(activation, "float32", False)
    keep = (A, vectors, dz, z)
    if backward:
        return lambda repeats: (_repeat_both(forward_sweep, there, backward_sweep, back, repeats), keep)
    return lambda repeats: (_repeat(forward_sweep, there, repeats), keep)
