"""Sums over rows, run on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from harness import fake_cupy

from fusedmlp.backends.cupy.sums import ranges_of, sum_rows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 33), (8, 32), (300, 70)])
@pytest.mark.parametrize("ranges", [None, 1, 7])
def test_sums(emulated, thread_order, rows, n, ranges, dtype):
    x = np.random.default_rng(0).normal(size=(rows, n)).astype(dtype)
    out = fake_cupy.allocate((n,) if ranges is None else (ranges, n), dtype)
    sum_rows(emulated.launcher, fake_cupy.copied(x), out)
    of_each = -(-rows // (ranges or 1))
    expected = [x[i * of_each : (i + 1) * of_each].sum(axis=0, dtype=float) for i in range(ranges or 1)]
    allowed = 4 * np.sqrt(rows) * np.finfo(dtype).eps * np.abs(x).max()
    np.testing.assert_allclose(out.get(), expected[0] if ranges is None else expected, rtol=0, atol=allowed * 10)


def test_order_of_rows_decides_the_bits(emulated):
    """1e8 + 1 - 1e8 in float32 is 0, and 1e8 - 1e8 + 1 is 1: within a thread, rows are added from first to last."""
    x = np.zeros((24, 1), "float32")
    for order, expected in (((1e8, 1, -1e8), 0), ((1e8, -1e8, 1), 1)):
        x[::8, 0] = order
        out = fake_cupy.allocate((1,), "float32")
        sum_rows(emulated.launcher, fake_cupy.copied(x), out)
        assert out.get()[0] == expected


def test_ranges():
    assert [ranges_of(m) for m in (1, 256, 257, 10_000, 10**9)] == [1, 1, 2, 40, 256]
