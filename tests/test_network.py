"""Network: its attributes, and a clear error for every wrong argument."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import sparse

from fusedmlp import Architecture, Gradients, Network

X = np.arange(12.0).reshape(3, 4) / 10
Y = np.array([[0, 1, 1, 0]])


@pytest.fixture
def net():
    """3 inputs, 2 hidden units, 1 output."""
    return Network([3, 2, 1], backend="numpy", random_state=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_sizes": [3]}, "layer_sizes: expected at least an input and an output layer"),
        ({"layer_sizes": [3, 0, 1]}, "layer_sizes: every layer needs at least 1 unit"),
        ({"layer_sizes": [3, 2.5, 1]}, "layer_sizes: expected a sequence of whole numbers"),
        ({"layer_sizes": "31"}, "layer_sizes: expected a sequence of whole numbers"),
        ({"layer_sizes": 3}, "layer_sizes: expected a sequence of whole numbers"),
        (
            {"hidden_activation": "swish"},
            "hidden_activation: expected one of sigmoid, tanh, relu, .*; got 'swish'",
        ),
        ({"hidden_activation": None}, "hidden_activation: expected one of"),
        ({"loss": "hinge"}, "loss: expected one of binary_cross_entropy, .*; got 'hinge'"),
        ({"loss": "categorical_cross_entropy"}, "categorical_cross_entropy needs at least 2 outputs"),
        ({"layer_sizes": [10**10, 10**10]}, "layer_sizes: .* parameters: too many"),
        ({"bias": "no"}, "bias: expected True or False; got 'no'"),
        ({"dtype": "float16"}, "dtype: expected one of float32, float64; got 'float16'"),
        ({"backend": "torch"}, "unknown backend 'torch'"),
        ({"random_state": "x"}, "random_state: expected"),
        ({"random_state": -1}, "random_state: expected"),
    ],
)
def test_wrong_descriptions(arguments, message):
    with pytest.raises(ValueError, match=message):
        Network(**{"layer_sizes": [3, 2, 1], "backend": "numpy", **arguments})


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64")])
def test_dtype_may_be_a_numpy_type(dtype):
    assert Network([3, 1], dtype=dtype, backend="numpy").weights[0].dtype == np.float64


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (X.T, r"X: expected shape \(n1=3, m\).*got \(4, 3\)\. The second axis is samples here: pass X\.T"),
        (X[0], r"X: expected 2 axes, \(n1=3, m\).*a single sample is X\[:, None\]"),
        (X[:2], r"X: expected shape \(n1=3, m\) with a column per sample; got \(2, 4\)"),
        (X[:, :0], "X: expected at least one sample"),
        (X[None], "X: expected 2 axes"),
        (np.where(X == 0.5, np.nan, X), r"X: expected finite numbers; got nan at row 1, column \(sample\) 1"),
        (np.where(X == 1.1, -np.inf, X), r"X: expected finite numbers; got -inf at row 2, column \(sample\) 3"),
        (X + 1e300, r"X: expected finite numbers; got 1e\+300, too large for float32 at row 0"),
        (X.astype(str), "X: expected real numbers; got an array of dtype <U"),
        (X.astype(object), "X: expected real numbers; got an array of dtype object"),
        (X.astype(complex), "X: expected real numbers; got an array of dtype complex128"),
        ([[1, 2], [3]], "X: expected an array of numbers; got rows of different lengths"),
        (sparse.csr_matrix(X.T), r"X: expected shape \(n1=3, m\).*got \(4, 3\)\. The second axis is samples here"),
        (sparse.csc_array(X[:, :0]), "X: expected at least one sample"),
        (sparse.coo_array(X.astype(complex)), "X: expected real numbers; got a sparse matrix of dtype complex128"),
        (
            sparse.csr_array(np.where(X == 1.1, np.nan, 0)),
            r"X: expected finite numbers; got nan at row 2, column \(sample\) 3",
        ),
        (sparse.csr_array(X + 1e300), r"X: expected finite numbers; got 1e\+300, too large for float32 at row 0"),
        (None, "X: expected real numbers"),
        (np.ma.masked_less(X, 0.5), r"X: masked arrays are not supported; pass X\.filled"),
    ],
)
def test_wrong_X(net, X, message):
    for call in (
        net.forward,
        lambda X: net.loss(X, Y),
        lambda X: net.loss_and_gradients(X, Y),
        lambda X: net.fit(X, Y),
    ):
        with pytest.raises(ValueError, match=message):
            call(X)


@pytest.mark.parametrize(
    ("Y", "message"),
    [
        (Y.T, r"Y: expected shape \(nL=1, m=4\).*got \(4, 1\)\. The second axis is samples here: pass Y\.T"),
        (Y[:, :3], r"Y: expected shape \(nL=1, m=4\).*got \(1, 3\)"),
        (Y + 1, "Y: binary_cross_entropy expects labels 0 or 1; got 2.0 at sample 1"),
        (Y * 0.5, "Y: binary_cross_entropy expects labels 0 or 1; got 0.5 at sample 1"),
        (Y - 2.0 * (Y == 1), "got -1.0 at sample 1"),
        (Y * np.nan, "Y: expected finite numbers; got nan"),
        (np.array([["a", "b", "b", "a"]]), "Y: expected real numbers"),
    ],
)
def test_wrong_Y(net, Y, message):
    for call in (net.loss, net.loss_and_gradients, net.fit, net.trace):
        with pytest.raises(ValueError, match=message):
            call(X, Y)


def test_targets_that_a_loss_does_not_take():
    classes = Network([3, 3], loss="categorical_cross_entropy", backend="numpy")
    one_hot = np.eye(3)[[0, 2, 1, 1]].T
    assert classes.loss(X, one_hot) > 0
    with pytest.raises(ValueError, match=r"pass one-hot columns, e\.g\. np\.eye\(nL\)\[y\]\.T"):
        classes.loss(X, [0, 2, 1, 1])
    with pytest.raises(ValueError, match=r"one-hot columns.*got \[1\.0, 1\.0, 0\.0\] at sample 0"):
        classes.loss(X, one_hot + np.array([[0], [1], [0]]) * (one_hot[1] == 0))
    with pytest.raises(ValueError, match="poisson expects numbers >= 0; got -1.0 at sample 0"):
        Network([3, 1], loss="poisson", backend="numpy").loss(X, -1 - Y)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(3), r"sample_weight: expected shape \(m=4,\).*got \(3,\)"),
        (np.ones((4, 1)), "sample_weight: expected shape"),
        (np.array([1, 1, -1, 1]), "sample_weight: expected numbers >= 0; the smallest is -1"),
        (np.zeros(4), "sample_weight: expected at least one weight > 0"),
        (np.array([1, 1, np.nan, 1]), "sample_weight: expected finite numbers"),
        (["a"] * 4, "sample_weight: expected real numbers"),
    ],
)
def test_wrong_sample_weight(net, weight, message):
    with pytest.raises(ValueError, match=message):
        net.loss_and_gradients(X, Y, weight)


@pytest.mark.parametrize("alpha", [-1, np.nan, "x"])
def test_wrong_alpha(net, alpha):
    with pytest.raises(ValueError, match="alpha: expected a number"):
        net.loss_and_gradients(X, Y, alpha=alpha)


def test_one_output_takes_a_flat_Y_and_any_number_type(net):
    expected = net.loss(X, Y)
    for same in (Y[0], Y.astype(bool), Y.tolist(), Y[0].astype(np.int8)):
        assert net.loss(X, same) == expected
    assert net.loss(X.tolist(), Y) == expected


def test_gradients_and_parameters_have_names(net):
    _, gradients = net.loss_and_gradients(X, Y)
    assert isinstance(gradients, Gradients)
    assert [name for name, _ in gradients.named()] == ["W1", "b1", "W2", "b2"]
    assert [W.shape for W in gradients.weights] == [(3, 2), (2, 1)]
    assert [b.shape for b in net.biases] == [(2, 1), (1, 1)]
    assert net.architecture.n_parameters == gradients.flat.size == 11
    assert Network([3, 2, 1], bias=False, backend="numpy").biases == []


def test_repr_is_a_call(net):
    again = eval(repr(net), {"Network": Network})
    assert again.architecture == net.architecture
    assert again.backend is net.backend


def test_architecture_round_trips_as_json():
    architecture = Architecture((3, 2, 1), "relu", "squared_error", False, "float64")
    assert Architecture(**architecture.to_dict()) == architecture


def test_initial_weights_are_the_same_for_every_backend_and_dtype():
    single = Network([30, 64, 1], random_state=3, backend="numpy")
    double = Network([30, 64, 1], random_state=3, backend="numba-cpu", dtype="float64")
    assert np.array_equal(single.parameters.flat, double.parameters.flat.astype(np.float32))
    bound = np.sqrt(2 / (30 + 64))
    assert 0.9 * bound < np.abs(double.weights[0]).max() <= bound
    assert 0.5 * bound < np.abs(double.biases[0]).max() <= bound
    relu = Network([30, 64, 1], "relu", random_state=3, backend="numpy")
    np.testing.assert_allclose(relu.weights[0], single.weights[0] * np.sqrt(3), rtol=1e-6)


def test_networks_from_the_same_parameters_are_independent(net):
    other = Network.from_parameters(net.parameters, backend="numpy")
    other.weights[0][...] = 0
    assert net.weights[0].any()


def test_assigning_a_weight_writes_into_the_network(net):
    net.weights[0] = np.full((3, 2), 2.0)
    net.biases[1] = 5
    assert (net.parameters.flat[:6] == 2).all()
    assert net.parameters.flat[-1] == 5
    with pytest.raises(ValueError, match="broadcast"):
        net.weights[0] = np.ones((2, 3))


def test_weights_that_are_not_finite(net):
    net.weights[0][0, 0] = np.nan
    for call in (
        net.forward,
        lambda X: net.loss(X, Y),
        lambda X: net.loss_and_gradients(X, Y),
        lambda X: net.fit(X, Y),
    ):
        with pytest.raises(ValueError, match="weights: expected finite numbers"):
            call(X)


def test_copies_and_pickles_are_independent(net):
    expected = net.forward(X)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert np.array_equal(other.forward(X), expected)
        other.weights[0][...] = 0
        assert np.array_equal(net.forward(X), expected)


def test_threads_may_predict_at_once(backend):
    net = Network([3, 50, 1], backend=backend, random_state=0)
    inputs = [np.random.default_rng(i).normal(size=(3, 500 + i)) for i in range(40)]
    expected = [net.forward(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(net.forward, inputs), expected, strict=True):
            assert np.array_equal(got, want)


def test_float64_and_readonly_inputs(net):
    frozen = X.astype(np.float32)
    frozen.setflags(write=False)
    assert np.array_equal(net.forward(frozen), net.forward(X))
    net.fit(frozen, Y, epochs=1)
