"""Updates of a piece of the parameter vector after a batch: the sum of the slots, the L2 term, and the step.

Compiled once per dtype and called by address; pieces are `count` numbers at given addresses.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.machine.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import load, vector_at
from fusedmlp.backends.numba_cpu.machine.records import run_at
from fusedmlp.backends.numba_cpu.machine.simd import fma, item_bytes, store
from fusedmlp.model.optimizers import RULES

NO_STEP = 0
_SGD, _MOMENTUM, _NESTEROV, _ADAM, _ADAMW = (RULES[rule] for rule in ("sgd", "momentum", "nesterov", "adam", "adamw"))


class Updates(NamedTuple):
    """Addresses for a dtype; the arguments are int64."""

    add_slots: int
    add_scaled: int
    sum_squares: int
    step: int


@cache
def updates(dtype: str) -> Updates:
    """Compiled at the first call."""
    functions = (add_slots, 6), (add_scaled, 4), (sum_squares, 3), (step, 8)
    return Updates(*(routine_address(function(dtype), arguments) for function, arguments in functions))


def add_slots(dtype):
    """result = scale · Σ over slots, in their order; slots are `slot_row` numbers apart. `scale` is the run's."""
    number = np.dtype(dtype).type
    like = number(0)

    def add_slots(run, slot_gradients, slot_row, slots, result, count):
        factor, total, part = (
            number(run_at(run).scale),
            vector_at(like, result, count),
            vector_at(like, slot_gradients, count),
        )
        if slots == 1:
            for i in range(total.size):
                total[i] = part[i] * factor
            return
        for i in range(total.size):
            total[i] = part[i]
        for slot in range(1, slots):
            part = vector_at(like, slot_gradients + slot * slot_row * item_bytes(like), count)
            for i in range(total.size):
                total[i] += part[i]
        for i in range(total.size):
            total[i] *= factor

    return add_slots


def add_scaled(dtype):
    """target += factor · source, for the L2 term (the gradient and W) and a step's decay (W, and W with a factor < 0).

    `factor` is the address of a float64.
    """
    number = np.dtype(dtype).type
    like = number(0)

    def add_scaled(factor, source, target, count):
        scale = number(load(0.0, factor))
        from_, to = vector_at(like, source, count), vector_at(like, target, count)
        for i in range(to.size):
            to[i] += scale * from_[i]

    return add_scaled


def sum_squares(dtype):
    """total += Σ W², in float64; `total` is the address of a float64. Four sums do not wait for each other."""
    like = np.dtype(dtype).type(0)

    def sum_squares(total, W, count):
        item = item_bytes(like)
        whole = count // 4 * 4
        sum_0, sum_1, sum_2, sum_3 = load(0.0, total), 0.0, 0.0, 0.0
        for at in range(W, W + whole * item, 4 * item):
            sum_0 += square(like, at)
            sum_1 += square(like, at + item)
            sum_2 += square(like, at + 2 * item)
            sum_3 += square(like, at + 3 * item)
        for at in range(W + whole * item, W + count * item, item):
            sum_0 += square(like, at)
        store(sum_0 + sum_1 + (sum_2 + sum_3), total)

    return sum_squares


@internal
def square(like, at):
    """The square of a number at an address, in float64."""
    number = np.float64(load(like, at))
    return number * number


def step(dtype):
    """One optimizer step: `optimizers.SGD.update` and `optimizers.Adam.update` for `count` numbers.

    `scaled` says that the gradient has been multiplied by the run's `scale`. The batch's rate has Adam's corrections in
    it. Adam moves seven numbers a parameter and takes 13 flops. A number's loads come before its stores: a load from an
    address that equals a recent store's in its last 12 bits waits for it, and vectors of one length often start alike.
    """
    number = np.dtype(dtype).type
    like = number(0)

    def step(run_address, batch, theta, gradient, first, second, count, scaled):
        run = run_at(run_address)
        factor = number(1) if scaled else number(run.scale)
        rate, beta_1, beta_2 = number(load(0.0, run.rates + 8 * batch)), number(run.beta_1), number(run.beta_2)
        theta_, g = vector_at(like, theta, count), vector_at(like, gradient, count)
        m, v = vector_at(like, first, count), vector_at(like, second, count)
        if run.kind == _SGD:
            for i in range(g.size):
                theta_[i] -= rate * (factor * g[i])
        elif run.kind == _MOMENTUM:
            for i in range(g.size):
                m_i, theta_i = beta_1 * m[i] - rate * (factor * g[i]), theta_[i]
                m[i], theta_[i] = m_i, theta_i + m_i
        elif run.kind == _NESTEROV:
            for i in range(g.size):
                move, theta_i = rate * (factor * g[i]), theta_[i]
                m_i = beta_1 * m[i] - move
                m[i], theta_[i] = m_i, theta_i + (beta_1 * m_i - move)
        elif run.kind == _ADAM or run.kind == _ADAMW:
            rest_1, rest_2 = number(1 - run.beta_1), number(1 - run.beta_2)
            epsilon = number(load(0.0, run.epsilons + 8 * batch))
            for i in range(g.size):
                g_i, m_i, v_i, theta_i = factor * g[i], m[i], v[i], theta_[i]
                m_i, v_i = fma(beta_1, m_i, rest_1 * g_i), fma(beta_2, v_i, rest_2 * (g_i * g_i))
                m[i], v[i], theta_[i] = m_i, v_i, theta_i - rate * m_i / (np.sqrt(v_i) + epsilon)

    return step
