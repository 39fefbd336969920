"""A sparse X in the fused engine: the numbers of a dense one, and a copy of a dense one that is mostly zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from compare import assert_close
from fusedmlp.backends.numba_cpu.sparsity import LARGEST_SHARE, is_mostly_zero, sparse_copy
from fusedmlp.engines.samples import as_inputs
from fusedmlp.engines.sparse import SparseMatrix
from fusedmlp.model.architecture import Architecture
from fusedmlp.network import Network
from problems import make_problem


def table(rng, n1, m, share, dtype="float64"):
    """A dense (n1, m) with so large a share of numbers that are not 0; some samples and some inputs have none."""
    X = np.where(rng.random((n1, m)) < share, rng.normal(size=(n1, m)), 0).astype(dtype)
    X[:, rng.random(m) < 0.1] = 0
    X[rng.random(n1) < 0.1] = 0
    return X


@given(
    n1=st.sampled_from([1, 2, 31, 150, 5000]),
    hidden=st.lists(st.sampled_from([1, 2, 3, 5, 8, 17, 100, 300]), max_size=3),
    m=st.sampled_from([1, 3, 64, 257, 1031]),
    outputs=st.sampled_from([1, 3]),
    share=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    dropout=st.booleans(),
    seed=st.integers(0, 99),
)
def test_same_numbers_as_a_dense_X(n1, hidden, m, outputs, share, dtype, dropout, seed):
    X = table(np.random.default_rng(seed), n1, m, share, dtype)
    sizes = [n1, *hidden, outputs]
    rates = [0.2] * (1 + len(hidden)) if dropout else 0.0

    def results(X):
        problem = make_problem("gelu", "squared_error", dtype=dtype, backend="numba-cpu", m=m, sizes=sizes, seed=seed)
        net = problem.net
        assert net.engine.kind == "fused"
        J, gradients = net.loss_and_gradients(X, problem.Y)
        prediction = net.forward(X)
        net.fit(X, problem.Y, epochs=2, batch_size=100, learning_rate=1e-3, dropout=rates, random_state=0)
        return J, gradients.flat, prediction, net.parameters.flat

    for name, got, expected in zip(
        ("J", "gradient", "A", "weights"), results(sparse.csc_array(X)), results(X), strict=True
    ):
        assert_close(np.array([got], dtype) if name == "J" else got, np.atleast_1d(expected), name)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_on_any_number_of_threads(threads, monkeypatch):
    def train():
        X = sparse.csr_array(table(np.random.default_rng(0), 300, 3000, 0.03))
        net = Network([300, 40, 1], dtype="float32", backend="numba-cpu", random_state=0)
        net.fit(X, np.arange(3000) % 2, epochs=2, batch_size=1000)
        return net.parameters.flat.copy()

    expected = train()
    monkeypatch.setenv("FUSEDMLP_NUM_THREADS", str(threads))
    assert np.array_equal(train(), expected)


@pytest.mark.parametrize("order", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_copy_has_what_is_not_zero(dtype, order):
    X = table(np.random.default_rng(1), 50, 999, 0.1, dtype)
    X[3, 5] = -0.0
    given = np.asarray(X, order=order) if order != "strided" else np.repeat(np.repeat(X, 2, 0), 3, 1)[::2, ::3]
    copy = sparse_copy(given)
    assert isinstance(copy, SparseMatrix)
    assert (copy.dtype, copy.shape) == (dtype, X.shape)
    assert len(copy.values) == np.count_nonzero(X)
    assert np.array_equal(copy.toarray(), X)
    assert np.array_equal(copy[:, np.array([7, 7, 2])].toarray(), X[:, [7, 7, 2]])


def test_which_X_is_copied():
    rng, architecture = np.random.default_rng(2), Architecture([100, 20, 1])
    few, many = table(rng, 100, 1000, LARGEST_SHARE / 2), table(rng, 100, 1000, 2 * LARGEST_SHARE)
    assert is_mostly_zero(few, architecture)
    assert not is_mostly_zero(many, architecture)
    assert not is_mostly_zero(few[:, :100], architecture)
    assert not is_mostly_zero(few[:20], Architecture([20, 20, 1]))
    assert not is_mostly_zero(few, Architecture([100, 1]))
    hidden = few.copy()  # in samples that are not looked at
    hidden[:, np.arange(1000) % 4 > 0] = 1
    assert is_mostly_zero(hidden, architecture)
    assert sparse_copy(hidden) is None


@pytest.mark.parametrize("what", ["a table", "a memory-mapped file", "the other precision"])
def test_training_on_a_table_that_is_mostly_zeros(what, tmp_path):
    """It has the numbers of a training that reads every zero; what a copy could not be made of is read as it is."""
    X = table(np.random.default_rng(3), 120, 2000, 0.05, "float64" if what == "the other precision" else "float32")
    Y = (X.sum(axis=0) > 0).astype(float)
    if what == "a memory-mapped file":
        np.save(tmp_path / "X.npy", X)
        X = np.load(tmp_path / "X.npy", mmap_mode="r")
    trained = []
    for on in ("numba-cpu", "numpy"):
        net = Network([120, 30, 1], "relu", backend=on, random_state=0)
        taken = net.engine.prepared(as_inputs(X, net.architecture, net.backend))
        assert isinstance(taken, SparseMatrix) == (on == "numba-cpu" and what != "a memory-mapped file")
        net.fit(X, Y, epochs=3, validation_fraction=0.2, random_state=0)
        trained.append(net.parameters.flat)
    assert_close(trained[0], trained[1], tolerance=1e-4)
