"""The backward pass through a hidden layer below the last one, run on the CPU, against the formula in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from harness import emulator, fake_cupy

from fusedmlp.backends.cupy.lower_layer import LowerLayer, shape_of, width_of
from oracle import ACTIVATIONS

DTYPES = ("float32", "float64")
SLOPES = ("sigmoid", "tanh", "relu")
# Units: a tail of a pack, rows that share a block, one row a block, several blocks a row. Samples: fewer than a round
# of a block, more than one of all blocks.
SHAPES = [(1, 1), (3, 50), (8, 7), (30, 100), (75, 33), (300, 19), (130, 40), (1024, 9), (1025, 11), (2600, 30)]
LAYOUTS = ("packed", "gaps", "strided")


class Case:
    """A layer, its answer in float64, and its launch."""

    def __init__(self, backend, n, m, n_above, dtype, activation="tanh", layout="packed"):
        rng = np.random.default_rng(n * 1000 + m)
        self.backend, self.n, self.m, self.dtype, self.activation = backend, n, m, np.dtype(dtype), activation
        f, slope = ACTIVATIONS[activation]
        Z = rng.normal(size=(m, n))
        A, dA = f(Z).astype(dtype), rng.normal(size=(m, n)).astype(dtype)
        W, above = (rng.normal(size=shape).astype(dtype) for shape in ((n, n_above or 1), (m, n_above or 1)))
        self.A, self.dA = (self.arranged(x, layout) for x in (A, dA))
        self.W, self.above = fake_cupy.copied(W), self.arranged(above, layout)
        product = above.astype(float) @ W.T.astype(float) if n_above else dA.astype(float)
        self.expected = product * slope(Z)
        self.scale = np.abs(above).astype(float) @ np.abs(W.T).astype(float) if n_above else np.abs(product)
        self.arguments = {"W": self.W, "above": self.above} if n_above else {"dA": self.dA}

    def arranged(self, x, layout):
        """Rows that start on multiples of 16 bytes without gaps where they fit, with gaps, or anywhere."""
        rows, columns = x.shape
        pack = 16 // self.dtype.itemsize
        line = -(-columns // pack) * pack + (pack if layout == "gaps" else 0)
        line, shift = (columns + 1, self.dtype.itemsize) if layout == "strided" else (line, 0)
        whole = fake_cupy.copied(np.full((rows, line), np.nan, self.dtype), shift=shift)
        whole[:, :columns] = fake_cupy.copied(x)
        return whole[:, :columns]

    def run(self, bias=True):
        """(dZ, db) by the kernels."""
        db = fake_cupy.allocate((self.n,), self.dtype) if bias else None
        kernel = LowerLayer(self.backend.launcher, self.activation, self.dtype.name)
        before = {name: x.get() for name, x in self.arguments.items()}
        kernel.backward(self.A, db, lambda shape: fake_cupy.allocate(shape, self.dtype), **self.arguments)
        for name, x in self.arguments.items():
            assert np.array_equal(x.get(), before[name], equal_nan=True), f"{name} was written to"
        everything, dZ = np.frombuffer(self.A.memory.piece, self.dtype), self.A.get()
        assert np.isnan(everything).sum() == everything.size - np.isfinite(dZ).sum(), "it wrote into gaps"
        return dZ, None if db is None else db.get()

    def check(self, bias=True):
        dZ, db = self.run(bias)
        eps = np.finfo(self.dtype).eps
        assert (np.abs(dZ - self.expected) <= 24 * eps * self.scale + np.finfo(self.dtype).tiny).all()
        if bias:
            assert (np.abs(db - self.expected.sum(axis=0)) <= 24 * eps * self.scale.sum(axis=0)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_above", [0, 1, 3, 16])
def test_every_shape(emulated, n_above, dtype, layout):
    """The orders of the threads and the activations take turns."""
    turns = zip(SHAPES, itertools.cycle(SLOPES), itertools.cycle(emulator.ORDERS), strict=False)
    for (n, m), activation, order in turns:
        with emulator.thread_order(order):
            Case(emulated, n, m, n_above, dtype, activation, layout).check(bias=m != 33)


@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("n_above", [0, 1, 4, 5])
def test_activations(emulated, cupy, n_above, activation):
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        Case(emulated, 20, 60, n_above, dtype, activation, layout).check()
        width, kind = width_of(n_above) if n_above else 0, "strided" if layout == "strided" else "packed"
        assert f"lower_layer_{width}_{activation}_{dtype}_{kind}" in cupy.launches


@pytest.mark.parametrize("n_above", [0, 3])
def test_bits_do_not_depend_on_the_order_of_threads(emulated, n_above):
    results = []
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            results.append(Case(emulated, 70, 500, n_above, "float32").run())
    for dZ, db in results[1:]:
        assert np.array_equal(dZ, results[0][0])
        assert np.array_equal(db, results[0][1])


def test_nan_is_not_hidden(emulated):
    for n_above in (0, 2):
        case = Case(emulated, 5, 9, n_above, "float32", "relu")
        spoiled = case.arguments["above" if n_above else "dA"]
        spoiled[4, 0] = np.nan
        dZ, db = case.run()
        assert np.isnan(dZ[4, 0])
        assert np.isnan(db[0])
        assert np.isfinite(np.delete(dZ, 4, axis=0)).all()


def test_one_block_writes_the_sums_itself(emulated, cupy):
    Case(emulated, 300, 4, 0, "float32").check()
    assert "sum_rows_float32" not in cupy.launches
    Case(emulated, 300, 400, 0, "float32").check()
    assert "sum_rows_float32" in cupy.launches


def test_most_threads_of_a_block_have_units():
    assert shape_of(300, 4, packed=True) == (1, 75, 3, 4)
    assert shape_of(512, 4, packed=True) == (1, 128, 2, 4)
    assert shape_of(1028, 4, packed=True) == (2, 129, 1, 4)
    assert shape_of(3, 8, packed=False) == (1, 3, 85, 1)
    for n, packed in itertools.product(range(1, 3000), (True, False)):
        shape = shape_of(n, 4, packed)
        assert shape.across * shape.along * shape.pack >= n
        assert shape.along * shape.over > 128
