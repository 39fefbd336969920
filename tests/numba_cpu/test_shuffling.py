"""Orders drawn by compiled code are numpy's, and leave the generator where numpy does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedmlp import get_backend
from fusedmlp.backends.numba_cpu.kernels import shuffling
from machine import require

require("numba-cpu")
BITS = [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64]
KINDS = [np.random.Generator, np.random.RandomState]


@given(
    m=st.integers(1, 3000) | st.sampled_from([2**k + d for k in range(1, 15) for d in (-1, 0, 1)]),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from(BITS),
    kind=st.sampled_from(KINDS),
    before=st.integers(0, 3),
)
def test_orders_are_numpys(m, count, seed, bits, kind, before):
    mine, numpys = kind(bits(seed)), kind(bits(seed))
    for generator in (mine, numpys):
        for _ in range(before):
            generator.permutation(3)  # which may leave half of 64 bits
    orders = shuffling.orders(mine, m, count)
    np.testing.assert_array_equal(orders, [numpys.permutation(m) for _ in range(count)])
    np.testing.assert_array_equal(mine.normal(size=3), numpys.normal(size=3))
    np.testing.assert_array_equal(mine.permutation(9), numpys.permutation(9))


def test_a_million_samples():
    mine, numpys = np.random.default_rng(1), np.random.default_rng(1)
    np.testing.assert_array_equal(shuffling.orders(mine, 1_000_001, 1)[0], numpys.permutation(1_000_001))


class Backwards(np.random.Generator):
    """A generator that draws in its own way."""

    def permutation(self, m):
        return np.arange(m)[::-1]


def test_another_generator_is_asked():
    generator = Backwards(np.random.PCG64(0))
    assert shuffling.orders(generator, 5, 1) is None
    np.testing.assert_array_equal(get_backend("numba-cpu").permutations(generator, 3, 2), [[2, 1, 0]] * 2)


def test_another_numpy_is_asked(monkeypatch):
    """Where numpy's own draws are not what is compiled, as after a change of theirs."""
    shuffling._draws_alike.cache_clear()
    monkeypatch.setattr(shuffling, "_draw", lambda generator, m, count: np.zeros((count, m), np.int64))
    generator, numpys = np.random.default_rng(2), np.random.default_rng(2)
    try:
        orders = get_backend("numba-cpu").permutations(generator, 50, 2)
        np.testing.assert_array_equal(orders, [numpys.permutation(50) for _ in range(2)])
    finally:
        shuffling._draws_alike.cache_clear()


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_no_samples(backend):
    assert get_backend(backend).permutations(np.random.default_rng(0), 0, 3).shape == (3, 0)
