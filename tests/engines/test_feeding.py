"""Samples that stay in main memory: what comes out of a `HostMatrix`, and passes on a backend that keeps nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fusedmlp import Network
from fusedmlp.backends.numpy_backend import NumpyBackend
from fusedmlp.engines.feeding import HostMatrix

rng = np.random.default_rng(0)
TABLE = rng.normal(size=(6, 11))
LAYOUTS = {
    "rows": np.ascontiguousarray(TABLE),
    "samples": np.asfortranarray(TABLE),
    "strided": np.repeat(np.repeat(TABLE, 2, axis=0), 3, axis=1)[::2, ::3],
    "int": np.round(TABLE * 10).astype(np.int16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
class TestHostMatrix:
    def test_is_what_numpy_indexing_gives(self, layout, dtype):
        X = LAYOUTS[layout]
        order, some = rng.permutation(11), slice(2, 9)
        for taken, expected in (
            (HostMatrix(X, dtype), X),
            (HostMatrix(X, dtype).take(order), X[:, order]),
            (HostMatrix(X, dtype).take(some), X[:, some]),
            (HostMatrix(X, dtype).take(some).take(order[order < 7]), X[:, some][:, order[order < 7]]),
            (HostMatrix(X, dtype).take(order).take(some).take(np.array([3, 0, 3])), X[:, order][:, some][:, [3, 0, 3]]),
        ):
            assert taken.shape == expected.shape
            assert taken.nbytes == expected.size * np.dtype(dtype).itemsize
            columns = taken.columns()
            assert columns.dtype == dtype
            assert np.array_equal(columns, expected.astype(dtype))
            assert np.array_equal(taken.columns(slice(1, 3)), expected[:, 1:3].astype(dtype))
            assert taken.sum(np.float64) == pytest.approx(expected.astype(dtype).sum(dtype=np.float64))

    def test_pieces_go_where_they_are_asked_to(self, layout, dtype):
        X = LAYOUTS[layout]
        for matrix, expected in (
            (HostMatrix(X, dtype), X),
            (HostMatrix(X, dtype).take(np.arange(11)[::-1]), X[:, ::-1]),
        ):
            for order in "CF":
                out = np.full((3, 4), np.nan, dtype, order)
                matrix.write(slice(1, 4), slice(5, 9), out)
                assert np.array_equal(out, expected[1:4, 5:9].astype(dtype))

    def test_the_memory_order_of_an_array_module(self, layout, dtype):
        matrix = HostMatrix(LAYOUTS[layout], dtype)
        assert matrix.by_sample is (layout == "samples")
        assert matrix.columns().flags.f_contiguous is (layout == "samples")
        assert matrix.take(rng.permutation(11)).columns().flags.f_contiguous


def test_nothing_is_copied_until_columns_are_asked_for():
    X = TABLE.copy()
    taken = HostMatrix(X, "float64").take(np.array([4, 2])).take(slice(1, 2))
    X[:] = 7
    assert (taken.columns() == 7).all()


def test_blocks_are_all_columns_in_order(monkeypatch):
    monkeypatch.setattr("fusedmlp.engines.feeding._BLOCK_BYTES", 6 * 8 * 4)
    blocks = list(HostMatrix(TABLE, "float64").blocks())
    assert [first for first, _ in blocks] == [0, 4, 8]
    assert np.array_equal(np.concatenate([block for _, block in blocks], axis=1), TABLE)


class NothingFits(NumpyBackend):
    """A backend whose samples all stay where they are."""

    def fits(self, n_bytes):
        return False

    def free_bytes(self):
        return 0


@pytest.mark.parametrize("batch_size", [32, 300, 5000])
def test_any_backend_may_keep_samples_in_main_memory(batch_size, monkeypatch):
    """The base class's feeder: the same bits as with samples on the device, whatever their order."""
    monkeypatch.setattr(NumpyBackend, "workspace_bytes", 1)  # chunks of 256 samples
    X, Y, weight = rng.normal(size=(5, 700)), rng.integers(0, 2, 700), rng.uniform(size=700)

    def results(backend):
        net = Network([5, 7, 1], "tanh", backend=backend, random_state=0)
        history = net.fit(
            X, Y, epochs=3, batch_size=batch_size, sample_weight=weight, alpha=0.1, validation_fraction=0.2
        )
        J, gradients = net.loss_and_gradients(X, Y, weight)
        trace = net.trace(X, Y, weight)
        return [
            history.loss,
            history.validation_loss,
            net.parameters.flat,
            net.forward(X),
            J,
            gradients.flat,
            *trace.values(),
        ]

    for got, expected in zip(results(NothingFits()), results(NumpyBackend()), strict=True):
        assert np.array_equal(got, expected)
