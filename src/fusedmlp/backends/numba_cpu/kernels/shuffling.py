"""Orders of samples, drawn as numpy draws them, in a third of the time. Compiled.

numpy shuffles from the last place down: a place i takes the number of a random place j <= i. j comes from the
generator's next 32 bits, of which as many are kept as i has; where that is more than i, others are drawn. A processor
cannot guess whether they will do, and each wrong guess costs more than a draw. So here a draw that will not do
exchanges a place with itself, and the next draw is for the same place.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fusedmlp.backends.numba_cpu.machine.buffers import address_of
from fusedmlp.backends.numba_cpu.machine.compilation import from_python
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, load
from fusedmlp.backends.numba_cpu.machine.simd import store

Generator = np.random.Generator | np.random.RandomState
_LONGEST = 1 << 31
"""numpy draws 64 bits for longer orders."""


@intrinsic
def _next_bits(typing_context, routine, state):
    """The next 32 bits of a bit generator of numpy's, by its C function at the address `routine`."""

    def codegen(context, builder, signature, arguments):
        integer = ir.IntType(64)
        function = ir.FunctionType(ir.IntType(32), [integer])
        bits = builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [arguments[1]])
        return builder.zext(bits, integer)

    return types.int64(types.int64, types.int64), codegen


def draw(orders, epochs, m, routine, state):
    """`epochs` orders of m samples, int64, one after the other at the address `orders`."""
    for order in range(orders, orders + 8 * epochs * m, 8 * m):
        mask = np.int64(1)
        for i in range(m):
            store(np.int64(i), order + 8 * i)
        while mask < m - 1:
            mask = (mask << 1) | 1
        i = m - 1
        while i > 0:
            mask >>= np.int64((mask >> 1) >= i)
            j = _next_bits(routine, state) & mask
            will_do = np.int64(j <= i)
            j = i + (j - i) * will_do
            at, other = order + 8 * i, order + 8 * j
            last, drawn = load(INTEGER, at), load(INTEGER, other)
            store(drawn, at)
            store(last, other)
            i -= will_do


@cache
def _compiled():
    return from_python(draw, 5)


def _draw(generator: Generator, m: int, epochs: int) -> np.ndarray:
    bits: Any = getattr(generator, "bit_generator", None) or getattr(generator, "_bit_generator")  # noqa: B009
    orders = np.empty((epochs, m), np.int64)
    interface = bits.ctypes
    routine = ctypes.cast(interface.next_uint32, ctypes.c_void_p).value
    with bits.lock:
        _compiled()(address_of(orders), epochs, m, routine, interface.state_address)
    return orders


@cache
def _draws_alike(kind: Any) -> bool:
    """Whether the installed numpy draws as is written here; its `Generator` may change from version to version."""
    mine, other = (kind(np.random.MT19937(0)) for _ in range(2))
    lengths = 2, 5, 64, 65, 300
    try:
        alike = all(np.array_equal(_draw(mine, m, 1)[0], other.permutation(m)) for m in lengths)
    except (AttributeError, TypeError):
        return False
    return alike and bool(mine.uniform() == other.uniform())


def orders(generator: Generator, m: int, epochs: int) -> np.ndarray | None:
    """``generator.permutation(m)``, `epochs` times, as rows; the generator moves on as by that.

    Returns
    -------
    array of int64 of shape (epochs, m), or None
        None where that is not what is compiled: a kind of generator that is not numpy's, or too many samples.
    """
    kind: Any = type(generator)
    if kind not in (np.random.Generator, np.random.RandomState) or not 0 < m < _LONGEST or not _draws_alike(kind):
        return None
    return _draw(generator, m, epochs)
