"""What happens to a piece of the parameter vector after a batch: the sum of the slots, and the optimizer's step.

Compiled once per dtype and called by address. Settings are float64: scale of the sum, rate, beta_1, beta_2, epsilon.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.compilation import address_of
from fusedmlp.backends.numba_cpu.primitives import array_at
from fusedmlp.backends.numba_cpu.simd import fma

NO_STEP, SGD_STEP, MOMENTUM_STEP, NESTEROV_STEP, ADAM_STEP = range(5)
SCALE, RATE, BETA_1, BETA_2, EPSILON = range(5)


class Updates(NamedTuple):
    """Addresses for a dtype; the arguments are int64."""

    add_slots: int
    step: int


@cache
def updates(dtype: str) -> Updates:
    """Compiled at the first call."""
    return Updates(address_of(add_slots(dtype), 6), address_of(step(dtype), 7))


def add_slots(dtype):
    """result = scale · Σ over slots, in their order: `count` numbers; slots are `slot_row` numbers apart."""
    number = np.dtype(dtype).type
    like = number(0)

    def add_slots(slot_gradients, slot_row, slots, result, count, settings):
        total = array_at(like, result, 1, count)[0]
        parts = array_at(like, slot_gradients, slots, slot_row)
        part = parts[0, :count]
        for i in range(total.size):
            total[i] = part[i]
        for slot in range(1, slots):
            part = parts[slot, :count]
            for i in range(total.size):
                total[i] += part[i]
        factor = number(array_at(0.0, settings, 1, 5)[0, SCALE])
        for i in range(total.size):
            total[i] *= factor

    return add_slots


def step(dtype):
    """One optimizer step: `optimizers.SGD.update` and `optimizers.Adam.update` for `count` numbers.

    The rate has Adam's corrections in it. Adam moves seven numbers a parameter and takes 13 flops.
    """
    number = np.dtype(dtype).type
    like = number(0)

    def step(kind, theta, gradient, first, second, count, settings):
        chosen = array_at(0.0, settings, 1, 5)[0]
        rate, beta_1, beta_2 = number(chosen[RATE]), number(chosen[BETA_1]), number(chosen[BETA_2])
        theta_, g = array_at(like, theta, 1, count)[0], array_at(like, gradient, 1, count)[0]
        m, v = array_at(like, first, 1, count)[0], array_at(like, second, 1, count)[0]
        if kind == SGD_STEP:
            for i in range(g.size):
                theta_[i] -= rate * g[i]
        elif kind == MOMENTUM_STEP:
            for i in range(g.size):
                m[i] = beta_1 * m[i] - rate * g[i]
                theta_[i] += m[i]
        elif kind == NESTEROV_STEP:
            for i in range(g.size):
                m[i] = beta_1 * m[i] - rate * g[i]
                theta_[i] += beta_1 * m[i] - rate * g[i]
        elif kind == ADAM_STEP:
            rest_1, rest_2 = number(1 - chosen[BETA_1]), number(1 - chosen[BETA_2])
            epsilon = number(chosen[EPSILON])
            for i in range(g.size):
                m[i] = fma(beta_1, m[i], rest_1 * g[i])
                v[i] = fma(beta_2, v[i], rest_2 * (g[i] * g[i]))
                theta_[i] -= rate * m[i] / (np.sqrt(v[i]) + epsilon)

    return step
