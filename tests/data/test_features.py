"""Preprocessing of the inputs: against scikit-learn, and the same bits after a round trip."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fusedmlp.data import FeatureEncoder, Schema, Table, features, read_table
from fusedmlp.data.table import no_text


def table_of(numeric, text=None):
    """A table with the columns n0, n1, ... and t0, t1, ..."""
    text = no_text(len(numeric)) if text is None else np.array(text, dtype=object)
    names = tuple(f"n{i}" for i in range(numeric.shape[1])), tuple(f"t{i}" for i in range(text.shape[1]))
    return Table("test", Schema(*names), numeric, text)


def round_trip(encoder):
    """Through what a model file holds: arrays, and JSON as text."""
    arrays, data = encoder.state()
    arrays = {name: np.frombuffer(array.tobytes(), array.dtype) for name, array in arrays.items()}
    return FeatureEncoder.from_state(arrays, json.loads(json.dumps(data)))


@st.composite
def tables(draw):
    """Tables of numbers with missing values, of categories with missing values, or of both."""
    m, n, k = draw(st.integers(1, 12)), draw(st.integers(0, 3)), draw(st.integers(0, 2))
    n += n + k == 0
    numbers = st.one_of(st.just(np.nan), st.floats(-1e30, 1e30), st.sampled_from([0.0, 1.0, 1e9 + 0.1]))
    words = st.one_of(st.none(), st.sampled_from(["a", "b", "Köln", ""]), st.text(max_size=3))
    numeric = draw(hnp.arrays(np.float64, (m, n), elements=numbers))
    text = np.empty((m, k), dtype=object)
    for i in range(m):
        for j in range(k):
            text[i, j] = draw(words)
    return table_of(numeric, text)


@given(tables(), st.booleans(), st.sampled_from(["float32", "float64"]))
def test_round_trip_gives_the_same_bits(table, standardize, dtype):
    encoder = FeatureEncoder.fit(table, standardize=standardize)
    other = round_trip(encoder)
    result = encoder.transform(table, dtype=dtype)
    assert result.shape == (len(table), encoder.n_outputs)
    assert result.dtype == dtype
    assert np.isfinite(result).all()
    assert result.tobytes() == other.transform(table, dtype=dtype).tobytes()
    assert other.schema == table.schema
    assert other.categories == encoder.categories


def test_agrees_with_scikit_learn():
    table = read_table("breast-cancer")
    result = FeatureEncoder.fit(table).transform(table, dtype="float64")
    assert np.allclose(result, StandardScaler().fit_transform(table.numeric), rtol=0, atol=1e-12)
    words = np.array([["b", "x"], ["a", "x"], ["b", "y"]], dtype=object)
    table = table_of(np.empty((3, 0)), words)
    expected = OneHotEncoder(sparse_output=False).fit_transform(words)
    assert np.array_equal(FeatureEncoder.fit(table).transform(table), expected)


def test_missing_unseen_constant_and_empty():
    numeric = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, np.nan], [np.nan, 5.0, np.nan]])
    encoder = FeatureEncoder.fit(table_of(numeric, [["a", None], ["b", None], ["b", None]]))
    new = table_of(np.array([[np.nan, 7e9, 4.0], [3.0, np.nan, np.nan]]), [["c", "x"], [None, None]])
    # n0: mean 2, deviation 1. n1 is constant and n2 empty in training: 0 whatever comes. t0: a, b; t1: nothing.
    assert encoder.transform(new).tolist() == [[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 1]]


def test_learns_from_the_given_rows_alone():
    table = table_of(np.array([[1.0], [3.0], [1e6]]), [["a"], ["b"], ["c"]])
    encoder = FeatureEncoder.fit(table, np.array([0, 1]))
    assert encoder.mean.tolist() == [2.0]
    assert encoder.categories == (("a", "b"),)
    assert encoder.transform(table, np.array([1])).tolist() == [[1.0, 0.0, 1.0]]


def test_blocks_change_nothing(monkeypatch):
    table = read_table("wine")
    rows = np.arange(0, len(table), 2)
    whole = FeatureEncoder.fit(table, rows)
    monkeypatch.setattr(features, "_BLOCK_BYTES", 8 * 13 * 7)
    encoder = FeatureEncoder.fit(table, rows)
    assert np.allclose(encoder.mean, whole.mean, rtol=1e-14)
    assert np.allclose(encoder.scale, whole.scale, rtol=1e-13)
    assert np.array_equal(whole.transform(table), round_trip(whole).transform(table))


@pytest.mark.parametrize("rows", [None, np.array([3, 1])])
def test_without_standardising(rows):
    numeric = np.array([[1.0, 2], [3, 4], [np.nan, 6], [8, 9]], dtype=np.float32)
    encoder = FeatureEncoder.fit(table_of(numeric), standardize=False)
    result = encoder.transform(table_of(numeric), rows)
    assert np.array_equal(result, np.array([[1, 2], [3, 4], [4, 6], [8, 9]])[slice(None) if rows is None else rows])


def test_numbers_that_need_nothing_stay_where_they_are(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "X.npy", array)
    table = read_table(tmp_path / "X.npy", target_required=False)
    encoder = FeatureEncoder.fit(table, standardize=False)
    assert encoder.transform(table) is table.numeric
    assert encoder.transform(table, dtype="float64") is not table.numeric
    np.savez(tmp_path / "X.npz", X=array)
    table = read_table(tmp_path / "X.npz", target_required=False)
    result = FeatureEncoder.fit(table, standardize=False).transform(table)
    assert np.array_equal(result, array)
    assert result.flags.aligned


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("rows", [None, np.array([2, 0])])
def test_infinite_numbers_are_named(value, rows):
    numeric = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, value]])
    with pytest.raises(ValueError, match=f"test: column 'n1': expected finite numbers .*; got {value} in row 2"):
        FeatureEncoder.fit(table_of(numeric), rows)
    encoder = FeatureEncoder.fit(table_of(numeric[:2]))
    with pytest.raises(ValueError, match="column 'n1': expected finite numbers"):
        encoder.transform(table_of(numeric), rows)


def test_numbers_too_large_for_the_type_are_named():
    encoder = FeatureEncoder.fit(table_of(np.array([[1.0], [2.0]])), standardize=False)
    with pytest.raises(ValueError, match="column 'n0': expected numbers that float32 can hold; got 1e.300 in row 1"):
        encoder.transform(table_of(np.array([[1.0], [1e300]])))
    assert encoder.transform(table_of(np.array([[1e300]])), dtype="float64").tolist() == [[1e300]]


def test_columns_are_found_by_name():
    table = table_of(np.array([[1.0, 2.0]]), [["a", "b"]])
    schema = Schema(("n1",), ("t1", "t0"))
    aligned = table.aligned(schema)
    assert aligned.numeric.tolist() == [[2.0]]
    assert aligned.text.tolist() == [["b", "a"]]
    assert aligned.schema == schema


@pytest.mark.parametrize(
    ("named", "text", "message"),
    [
        (True, ("t",), "trained on named columns, some of them categories \\(t\\); expected those, got an array"),
        (True, (), "trained on 1 column; got 2"),
        (False, (), "trained on 1 column; got 2"),
    ],
)
def test_arrays_that_do_not_fit(named, text, message):
    table = Table("test", Schema(("0", "1"), named=False), np.zeros((1, 2)), no_text(1))
    with pytest.raises(ValueError, match=message):
        table.aligned(Schema(("a",), text, named))


def test_an_array_serves_a_model_of_named_numbers():
    table = Table("test", Schema(("0", "1"), named=False), np.zeros((1, 2)), no_text(1))
    assert table.aligned(Schema(("a", "b"))) is table
    with pytest.raises(ValueError, match="an array of 2 columns without names; expected an array, got named columns"):
        table_of(np.zeros((1, 2))).aligned(Schema(("0", "1"), named=False))


GOOD = FeatureEncoder.fit(table_of(np.array([[1.0], [2.0]]), [["a"], ["b"]]))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": None},
        {"schema": {"numeric": ["a"]}},
        {"schema": GOOD.schema.to_dict() | {"numeric": [1]}},
        {"schema": GOOD.schema.to_dict() | {"numeric": ["a", "b"]}},
        {"schema": GOOD.schema.to_dict() | {"target": 1}},
        {"categories": []},
        {"categories": [[]]},
        {"categories": [[1]]},
        {"most_frequent": [None]},
        {"most_frequent": ["a", "b"]},
    ],
)
def test_damaged_states_are_refused(change):
    arrays, data = GOOD.state()
    FeatureEncoder.from_state(arrays, data)
    with pytest.raises((ValueError, KeyError, TypeError)):
        FeatureEncoder.from_state(arrays, data | change)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"features.mean": np.array([np.nan])},
        {"features.mean": np.array([np.inf])},
        {"features.mean": np.zeros((1, 1))},
        {"features.mean": np.zeros(1, np.float32)},
        {"features.scale": np.array([0.0])},
        {"features.scale": np.array([-1.0])},
        {"features.scale": np.zeros(2)},
    ],
)
def test_damaged_arrays_are_refused(arrays):
    good, data = GOOD.state()
    with pytest.raises(ValueError, match="features"):
        FeatureEncoder.from_state(good | arrays if arrays else {}, data)
