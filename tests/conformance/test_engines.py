"""Whole passes on every backend against the independent oracle, for every combination of what a network can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import oracle
from compare import assert_close
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import OPTIMIZERS
from fusedmlp.network import Network
from problems import COMBINATIONS, make_problem, targets

ALPHA = 0.3


def check_against_oracle(problem, alpha=0.0):
    """forward, loss, loss_and_gradients and trace of a problem's network."""
    net, X, Y, w = problem.net, problem.X, problem.Y, problem.sample_weight
    dense = X.toarray() if sparse.issparse(X) else X
    numpy = net.backend.to_numpy
    weights, biases = [numpy(W) for W in net.weights], [numpy(b) for b in net.biases]
    a = net.architecture
    _, prediction = oracle.forward(weights, biases, dense.T, a.hidden_activation, a.loss)
    J, dWs, dbs = oracle.loss_and_gradients(weights, biases, dense.T, Y.T, a.hidden_activation, a.loss, w, alpha)
    assert_close(net.forward(X), prediction.T, "A_L")
    tolerance = {"float32": 1e-5, "float64": 1e-12}[a.dtype]
    assert net.loss(X, Y, w, alpha=alpha) == pytest.approx(J, rel=tolerance)
    got, gradients = net.loss_and_gradients(X, Y, w, alpha=alpha)
    assert got == pytest.approx(J, rel=tolerance)
    assert gradients.flat.shape == (a.n_parameters,)
    for layer, expected in enumerate(dWs):
        assert_close(gradients.weights[layer], expected, f"dW{layer + 1}")
    assert len(gradients.biases) == len(dbs)
    for layer, expected in enumerate(dbs):
        assert_close(gradients.biases[layer], expected[:, None], f"db{layer + 1}")
    if not alpha:
        trace = net.trace(X, Y, w)
        assert trace["J"] == pytest.approx(J, rel=tolerance)
        assert_close(trace[f"A{len(weights)}"], prediction.T, "A_L of the trace")
        for layer, expected in enumerate(dWs, start=1):
            assert_close(trace[f"dW{layer}"], expected, f"dW{layer} of the trace")


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda parts: "-".join(map(str, parts)))
def test_every_combination(backend, combination):
    for dtype, alpha in (("float64", 0.0), ("float32", ALPHA)):
        check_against_oracle(make_problem(*combination, dtype=dtype, backend=backend), alpha)


@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 7, 13, 31, 64]), min_size=2, max_size=5),
    m=st.sampled_from([1, 2, 3, 17, 64, 101, 257, 1031]),
    activation=st.sampled_from(list(HIDDEN_ACTIVATIONS)),
    loss=st.sampled_from(list(LOSSES)),
    dtype=st.sampled_from(["float32", "float64"]),
    bias=st.booleans(),
    weighted=st.booleans(),
    order=st.sampled_from(["C", "F", "strided", "sparse"]),
)
def test_shapes_and_orders(backend, sizes, m, activation, loss, dtype, bias, weighted, order):
    if loss == "categorical_cross_entropy":
        sizes = [*sizes[:-1], max(2, sizes[-1])]
    if activation not in ("sigmoid", "tanh"):
        # Unbounded activations and many units give logits for which exp leaves float32.
        sizes = [min(size, 13) for size in sizes]
    problem = make_problem(
        activation, loss, bias=bias, weighted=weighted, dtype=dtype, backend=backend, m=m, sizes=sizes, seed=m
    )
    if order == "strided":
        larger = np.full((2 * sizes[0], 3 * m), np.nan, dtype)
        larger[::2, ::3] = problem.X
        problem.X = larger[::2, ::3]
    elif order == "sparse":
        problem.X = sparse.csr_array(np.where(np.abs(problem.X) > 1, problem.X, 0))
    else:
        problem.X = np.asarray(problem.X, order=order)
    check_against_oracle(problem)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_add_up(backend, loss, weighted, monkeypatch):
    """A workspace too small for all samples: they pass in chunks, with the same result."""
    problem = make_problem(loss=loss, weighted=weighted, backend=backend, m=1000, sizes=[5, 7, 3])
    monkeypatch.setattr(type(backend), "workspace_bytes", 1)
    engine = backend.engine(problem.net.architecture, fused=False)
    assert isinstance(engine, ComposedEngine)
    assert len(list(engine._chunks(1000))) == 4
    problem.net._engines.engine = engine
    check_against_oracle(problem, 0.0)
    check_against_oracle(problem, ALPHA)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e4, 1e30, 1e38])
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "categorical_cross_entropy", "sum_squared_error"])
def test_huge_logits_give_finite_losses_and_gradients(backend, loss, scale, dtype):
    net = Network([1, 3], loss=loss, bias=False, dtype=dtype, backend=backend)
    net.weights[0][...] = backend.asarray([[1.0, -1.0, 0.5]], dtype=dtype)
    X = np.array([[scale, -scale, 0.0]], dtype)
    for rows in ([1, 0, 0], [0, 1, 0], [0, 0, 1]):
        Y = np.array([rows] * 3).T
        J, gradients = net.loss_and_gradients(X, Y)
        assert np.isfinite(J)
        assert np.isfinite(net.loss(X, Y))
        assert np.isfinite(gradients.flat).all()
    z = np.array([1, -1, 0.5]) * X[0, 0].astype(float)
    if loss == "binary_cross_entropy":
        J = net.loss(X[:, :1], np.array([[0.0], [0.0], [1.0]]))
        assert pytest.approx(float(z[0]), rel=1e-6) == J  # softplus(z) = z: exact in the limit, not clipped
    if loss == "categorical_cross_entropy":
        J = net.loss(X[:, :1], np.array([[0.0], [1.0], [0.0]]))
        assert pytest.approx(float(z[0] - z[1]), rel=1e-6) == J


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_poisson_and_squared_error_stay_finite_as_far_as_the_type_goes(backend, dtype):
    X = np.array([[1e4, -1e4, 0.0]], dtype)
    for loss in ("poisson", "squared_error"):
        net = Network([1, 1], loss=loss, bias=False, dtype=dtype, backend=backend)
        net.weights[0][...] = 1
        assert np.isfinite(net.loss(X[:, 1:], np.array([[3.0, 0.0]])))
        assert np.isfinite(net.forward(X)).all()
    huge = Network([1, 2], loss="poisson", bias=False, dtype=dtype, backend=backend)
    huge.weights[0][...] = 1e30
    assert np.isfinite(huge.loss(np.ones((1, 50), dtype), np.ones((2, 50))))
    assert Network([1, 1], loss="poisson", bias=False, backend=backend).loss(np.zeros((1, 2)), [[1, 1]]) < 1e-12


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_saturated_units_have_zero_gradient(backend, activation):
    net = Network([1, 4, 1], activation, backend=backend)
    net.weights[0][...] = 1
    _, gradients = net.loss_and_gradients(np.array([[1e30, -1e30]]), np.array([[1, 0]]))
    assert np.isfinite(gradients.flat).all()
    # X is 1e30: only a derivative that is 0 (or held below the normal numbers) leaves dW1 small.
    assert np.abs(gradients.weights[0]).max() < 1e-6


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
def test_training_follows_the_numpy_backend(backend, activation, name):
    """Ten steps of each optimizer, with weights, L2, shuffling and a last batch that is smaller."""

    def train(on):
        problem = make_problem(activation, weighted=True, backend=on, m=23)
        history = problem.net.fit(
            problem.X,
            problem.Y,
            name,
            epochs=3,
            batch_size=6,
            learning_rate=0.05,
            sample_weight=problem.sample_weight,
            alpha=0.1,
            random_state=1,
        )
        return history.loss, problem.net.backend.to_numpy(problem.net.parameters.flat)

    loss, flat = train(backend)
    expected_loss, expected_flat = train("numpy")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
    assert_close(flat, expected_flat, tolerance=1e-10)


@pytest.mark.parametrize("dropout", [0.0, [0.3, 0.2]], ids=["", "dropout"])
@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_matrix, sparse.coo_array])
def test_sparse_training_follows_the_dense_one(backend, kind, dropout):
    """With entries that come twice and stored zeros, weights, validation, and more samples than a tile."""
    rng = np.random.default_rng(0)
    X = sparse.random_array((40, 700), density=0.15, rng=rng)
    X.data[:50] = 0
    X = sparse.coo_array((np.r_[X.data, X.data[:99]], (np.r_[X.row, X.row[:99]], np.r_[X.col, X.col[:99]])), (40, 700))
    Y, weight = targets("categorical_cross_entropy", 3, 700, rng), rng.random(700)

    def train(table, on):
        net = Network([40, 33, 3], "tanh", "categorical_cross_entropy", dtype="float64", backend=on, random_state=0)
        settings = {"alpha": 0.1, "clip_norm": 0.5, "validation_fraction": 0.2, "early_stopping": True}
        history = net.fit(
            table, Y, epochs=3, batch_size=300, sample_weight=weight, dropout=dropout, random_state=1, **settings
        )
        return np.r_[history.loss, history.validation_loss, net.backend.to_numpy(net.parameters.flat)]

    before = X.copy()
    assert_close(train(kind(X), backend), train(X.toarray(), "numpy"), tolerance=1e-10)
    assert (before != X).nnz == 0


def test_same_seed_same_bits(backend):
    def train():
        problem = make_problem("tanh", dtype="float32", backend=backend, m=2000, sizes=[9, 33, 2])
        problem.net.fit(problem.X, problem.Y, epochs=2, random_state=5)
        return backend.to_numpy(problem.net.parameters.flat)

    assert np.array_equal(train(), train())


def test_results_do_not_alias_the_workspace(backend):
    problem = make_problem(backend=backend)
    first = problem.net.forward(problem.X)
    kept = first.copy()
    _, gradients = problem.net.loss_and_gradients(problem.X, problem.Y)
    kept_gradients = gradients.flat.copy()
    problem.net.forward(-problem.X)
    problem.net.loss_and_gradients(-problem.X, problem.Y)
    assert np.array_equal(first, kept)
    assert np.array_equal(gradients.flat, kept_gradients)


def test_inputs_are_left_as_they_are(backend):
    problem = make_problem(backend=backend, weighted=True)
    before = [x.copy() for x in (problem.X, problem.Y, problem.sample_weight)]
    problem.net.fit(problem.X, problem.Y, epochs=2, sample_weight=problem.sample_weight)
    problem.net.trace(problem.X, problem.Y, problem.sample_weight)
    for x, original in zip((problem.X, problem.Y, problem.sample_weight), before, strict=True):
        assert np.array_equal(x, original)


def test_arrays_come_back_in_the_kind_that_came_in(backend):
    problem = make_problem(backend=backend)
    native_X, native_Y = backend.asarray(problem.X), backend.asarray(problem.Y)
    for X, Y, kind in ((problem.X, problem.Y, np.ndarray), (native_X, native_Y, backend.xp.ndarray)):
        assert isinstance(problem.net.forward(X), kind)
        _, gradients = problem.net.loss_and_gradients(X, Y)
        assert isinstance(gradients.flat, kind)
        assert isinstance(gradients.weights[0], kind)
        assert all(isinstance(x, kind) for name, x in problem.net.trace(X, Y).items() if name != "J")


def test_zero_weight_leaves_a_sample_out(backend):
    problem = make_problem(backend=backend, m=10)
    weight = np.r_[np.ones(6), np.zeros(4)]
    J, gradients = problem.net.loss_and_gradients(problem.X, problem.Y, weight)
    expected_J, expected = problem.net.loss_and_gradients(problem.X[:, :6], problem.Y[:, :6])
    assert pytest.approx(expected_J, rel=1e-12) == J
    assert_close(gradients.flat, expected.flat)


def test_weights_are_views_of_the_flat_vector(backend):
    net = Network([3, 4, 2], backend=backend)
    net.weights[0][1, 2] = 7
    net.biases[1][0, 0] = 8
    flat = backend.to_numpy(net.parameters.flat)
    assert flat[1 * 4 + 2] == 7
    assert flat[3 * 4 + 4 + 4 * 2] == 8
    net.parameters.flat[...] = 0
    assert not backend.to_numpy(net.weights[1]).any()
