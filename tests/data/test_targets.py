"""Targets: which loss they ask for, their encoding, and the way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusedmlp.data import ClassEncoder, NumberEncoder, fit_target
from fusedmlp.data.targets import target_from_state


def words(*values):
    """A target of text."""
    return np.array(values, dtype=object)


@pytest.mark.parametrize(
    ("target", "loss", "classes"),
    [
        (words("b", "a", "b"), "binary_cross_entropy", ("a", "b")),
        (words(*"bacabc"), "categorical_cross_entropy", ("a", "b", "c")),
        (np.array([True, False]), "binary_cross_entropy", (False, True)),
        (np.array([0, 1, 1]), "binary_cross_entropy", (0, 1)),
        (np.array([3.0, -1.0]), "binary_cross_entropy", (-1.0, 3.0)),
        (np.arange(20) % 10, "categorical_cross_entropy", tuple(range(10))),
        (np.array([0.5, 1.0]), "squared_error", None),
        (np.arange(50), "squared_error", None),
        (np.arange(115, 130), "squared_error", None),
        (np.repeat(np.arange(8), 2), "categorical_cross_entropy", tuple(range(8))),
        (np.array([[0.5, 1.0], [2.0, 3.0]]), "squared_error", None),
    ],
)
def test_the_target_decides(target, loss, classes):
    encoder, chosen = fit_target(target)
    assert chosen == loss
    assert getattr(encoder, "classes", None) == classes


def test_the_loss_overrules():
    counts = np.array([0, 1, 2, 1, 2, 0])
    assert isinstance(fit_target(counts, "poisson")[0], NumberEncoder)
    assert isinstance(fit_target(counts, "squared_error")[0], NumberEncoder)
    assert fit_target(counts, "sum_squared_error")[0].n_outputs == 3
    assert fit_target(counts, "sum_squared_error", classification=False)[0].n_outputs == 1
    assert fit_target(np.array([0, 1]), "categorical_cross_entropy")[0].n_outputs == 2
    assert fit_target(np.array([0, 1]), "sum_squared_error")[0].n_outputs == 1


def test_scaling_goes_with_the_loss():
    y = np.array([1.0, 2.0, 5.5])
    assert fit_target(y, "poisson")[0].encode(y).tolist() == [[1.0, 2.0, 5.5]]
    encoded = fit_target(y, "squared_error")[0].encode(y, "float64")
    assert abs(encoded.mean()) < 1e-15
    assert encoded.std() == pytest.approx(1)
    encoded = fit_target(y, "sum_squared_error")[0].encode(y)
    assert (encoded.min(), encoded.max()) == (0, 1)
    constant = np.full(3, 4.5)
    assert fit_target(constant)[0].encode(constant).tolist() == [[0, 0, 0]]
    assert fit_target(constant, "sum_squared_error")[0].encode(constant).tolist() == [[0, 0, 0]]


def test_scaling_is_learned_from_the_given_rows():
    encoder, _ = fit_target(np.array([1.0, 3.0, 1e6, 0.5]), rows=np.array([0, 1]))
    assert encoder.offset.tolist() == [2.0]
    assert encoder.scale.tolist() == [1.0]


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.floats(-1e6, 1e6)),
    st.sampled_from(["squared_error", "sum_squared_error"]),
)
def test_numbers_come_back(y, loss):
    encoder, _ = fit_target(y, loss, classification=False)
    arrays, data = encoder.state()
    other = target_from_state(arrays, json.loads(json.dumps(data)))
    Y = encoder.encode(y, "float64")
    assert Y.shape == (y.shape[1], len(y))
    back = other.decode(Y).reshape(y.shape)
    assert np.allclose(back, y, rtol=1e-12, atol=1e-9)
    assert encoder.decode(Y).tobytes() == other.decode(Y).tobytes()


LABELS = st.one_of(
    st.lists(st.integers(-(2**53), 2**53), min_size=2, max_size=6, unique=True),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=6, unique=True),
    st.lists(st.text(), min_size=2, max_size=6, unique=True),
    st.just([False, True]),
)


@given(LABELS, st.sampled_from([None, "categorical_cross_entropy", "sum_squared_error"]))
def test_labels_come_back(labels, loss):
    labels = labels * 2
    target = words(*labels) if isinstance(labels[0], str) else np.array(labels)
    encoder, _ = fit_target(target, loss, classification=True)
    arrays, data = encoder.state()
    other = target_from_state(arrays, json.loads(json.dumps(data)))
    Y = encoder.encode(target)
    assert Y.shape == (encoder.n_outputs, len(labels))
    assert other.decode(Y).tolist() == target.tolist()
    assert [type(label) for label in other.classes] == [type(label) for label in encoder.classes]
    if encoder.n_outputs > 1:
        assert (Y.sum(axis=0) == 1).all()


def test_probabilities():
    binary = ClassEncoder(("no", "yes"), 1)
    A = np.array([[0.25, 0.5]])
    assert binary.probabilities(A).tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert binary.decode(A).tolist() == ["no", "yes"]
    three = ClassEncoder((1, 2, 3), 3)
    A = np.array([[0.1, 0.5], [0.2, 0.3], [0.7, 0.2]])
    assert three.probabilities(A).tolist() == A.T.tolist()
    assert three.decode(A).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("target", "loss", "message"),
    [
        (words("a", "a"), None, "at least 2 classes; every row has 'a'"),
        (np.ones(3), None, "at least 2 classes; every row has 1.0"),
        (words(*"abcabc"), "binary_cross_entropy", "expects 2 classes; the target has 3: a, b, c"),
        (words("a", "b"), "squared_error", "squared_error expects a target of numbers; got text such as 'a'"),
        (words("a", "b"), "poisson", "poisson expects a target of numbers"),
        (np.array([1.0, -0.5]), "poisson", "poisson expects numbers >= 0; the smallest is -0.5"),
        (words(*map(str, range(30))), None, "expected classes that repeat; got 30 different values in 30 rows"),
        (np.eye(3), None, "expected a column of classes; got 3 columns of 0 and 1"),
        (np.eye(3), "categorical_cross_entropy", "expects one class per row; got 3 columns"),
    ],
)
def test_targets_that_tell_nothing(target, loss, message):
    with pytest.raises(ValueError, match=message):
        fit_target(target, loss)


def test_targets_that_do_not_fit_the_encoder():
    encoder = ClassEncoder(("a", "b"), 1)
    with pytest.raises(ValueError, match="expected one of the classes a, b; got 'c'"):
        encoder.encode(words("a", "c"))
    with pytest.raises(ValueError, match="expected one of the classes a, b; got 0"):
        encoder.encode(np.array([0, 1]))
    numbers, _ = fit_target(np.array([0.5, 1.5]))
    with pytest.raises(ValueError, match="expected numbers; got text such as 'a'"):
        numbers.encode(words("a"))
    with pytest.raises(ValueError, match="expected 1 number per row; got 2"):
        numbers.encode(np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("arrays", "data"),
    [
        ({}, {}),
        ({}, {"classes": ["a"], "n_outputs": 1}),
        ({}, {"classes": ["a", "a"], "n_outputs": 1}),
        ({}, {"classes": ["a", "b"], "n_outputs": 3}),
        ({}, {"classes": [["a"], ["b"]], "n_outputs": 1}),
        ({}, {"classes": ["a", None], "n_outputs": 1}),
        ({"target.offset": np.zeros(1), "target.scale": np.zeros(1)}, {}),
        ({"target.offset": np.zeros(1), "target.scale": np.ones(2)}, {}),
        ({"target.offset": np.full(1, np.nan), "target.scale": np.ones(1)}, {}),
    ],
)
def test_damaged_states_are_refused(arrays, data):
    with pytest.raises((ValueError, KeyError, TypeError)):
        target_from_state(arrays, data)
