"""Predictor from what a user has: files, frames of pandas and polars, arrays."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest

import fusedmlp
from fusedmlp import Predictor
from fusedmlp.data.sources import as_table


def columns(n=120):
    """A table by columns."""
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, n).astype(float)
    late = (age / 80 + 0.3 * rng.normal(size=n) > 0.6).astype(int)
    age[::17] = np.nan
    return {
        "age": age,
        "plan": [["basic", "pro", None][i % 3] for i in range(n)],
        "zip": [f"{10_000 + i % 5}" for i in range(n)],
        "price": [f"{1 + i % 3},{100 + i}.50" for i in range(n)],
        "joined": [datetime.datetime(2023, 1, 1) + datetime.timedelta(days=i) for i in range(n)],
        "active": [bool(i % 2) for i in range(n)],
        "late": late,
    }


FRAMES = {
    "pandas": pd.DataFrame,
    "pandas, categories": lambda data: pd.DataFrame(data).astype({"plan": "category", "zip": "category"}),
    "pandas, nullable": lambda data: pd.DataFrame(data).convert_dtypes(),
    "polars": pl.DataFrame,
    "polars, lazy": pl.LazyFrame,
}
NAMES = ["age", "price", *(f"joined: {part}" for part in ("year", "day of year", "weekday", "days")), "active"]
NAMES += ["plan=missing", "plan=basic", "plan=pro", *(f"zip={10_000 + i}" for i in range(5))]


@pytest.mark.parametrize("kind", FRAMES)
def test_three_lines_from_a_frame(kind):
    frame = FRAMES[kind](columns())
    predictor = Predictor.train(frame, target="late", epochs=30)
    assert predictor.evaluate(frame)["accuracy"] > 0.6
    assert predictor.predict_proba(frame).shape == (120, 2)
    assert sorted(predictor.feature_names_out) == sorted(NAMES)
    assert set(predictor.predict(frame).tolist()) == {0, 1}
    assert repr(predictor) == "Predictor(6 columns -> 15-64-1 -> 2 classes, binary_cross_entropy)"


def test_frames_and_files_give_the_same_numbers(tmp_path):
    data = columns()
    pl.DataFrame(data).write_parquet(tmp_path / "d.parquet")
    results = [
        Predictor.train(source, target="late", epochs=3, backend="numpy").predict_proba(source)
        for source in (pd.DataFrame(data), pl.DataFrame(data), tmp_path / "d.parquet")
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_target_of_its_own():
    frame = pd.DataFrame(columns())
    late = frame.pop("late").map({0: "no", 1: "yes"})
    predictor = Predictor.train(frame, late, epochs=3)
    assert predictor.target.classes == ("no", "yes")
    assert 0 <= predictor.evaluate(frame, late)["accuracy"] <= 1
    X = np.random.default_rng(0).normal(size=(50, 4))
    predictor = Predictor.train(X, X[:, 0] * 3 + 1, hidden=(8, 8), activation="tanh", epochs=60)
    assert predictor.evaluate(X, X[:, 0] * 3 + 1)["r2"] > 0.5
    assert predictor.predict(X).shape == (50,)


def test_it_goes_on_and_is_saved(tmp_path):
    frame = pl.DataFrame(columns())
    predictor = Predictor.train(frame, "late", epochs=2)
    history = predictor.fit(frame, epochs=3, optimizer="sgd", learning_rate=0.1)
    assert history.epochs == 3
    predictor.save(tmp_path / "m.safetensors")
    again = Predictor.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.predict_proba(frame), predictor.predict_proba(frame))
    early = Predictor.train(frame, "late", epochs=200, early_stopping=True, patience=2)
    assert early.network.history.epochs < 200


def test_an_index_that_became_a_column(tmp_path):
    data = pd.DataFrame(columns())
    data.to_csv(tmp_path / "d.csv")
    frame = pd.read_csv(tmp_path / "d.csv")
    assert "Unnamed: 0" not in Predictor.train(frame, "late", epochs=1).feature_names_out
    table = as_table(tmp_path / "d.csv", "late")
    assert table.schema.columns == as_table(frame, "late").schema.columns or "zip" in table.schema.numeric


@pytest.mark.parametrize(
    ("data", "target", "message"),
    [
        (pd.DataFrame({"a": [1, 2], "b": [0, 1]}), "late", "there is no 'late'; the columns are a, b"),
        (pd.DataFrame([[1, 2, 0]], columns=["a", "a", "late"]), "late", "'a' comes twice"),
        (np.zeros((4, 2)), None, "expected an array of targets"),
        (np.zeros((4, 2)), np.zeros(3), "4 rows of data, but 3 of the target"),
        (np.zeros(4), np.zeros(4), "expected two axes or more"),
        (pd.DataFrame({"a": [{}, {}] * 20, "late": [0, 1] * 20}), "late", None),
        ("nothing.csv", "late", "no such file"),
    ],
)
def test_data_that_are_none(data, target, message):
    if message is None:  # a text that says little, but no error
        assert as_table(data, target).schema.text == ("a",)
        return
    with pytest.raises((ValueError, OSError), match=message):
        as_table(data, target)


def test_the_columns_of_training_are_needed():
    frame = pd.DataFrame(columns())
    predictor = Predictor.train(frame, "late", epochs=1)
    shuffled = frame[frame.columns[::-1]].assign(more=1)
    np.testing.assert_array_equal(predictor.predict(shuffled), predictor.predict(frame))
    with pytest.raises(ValueError, match="missing columns that the model was trained on: age"):
        predictor.predict(frame.drop(columns="age"))
    with pytest.raises(ValueError, match="expected an array, got named columns"):
        Predictor.train(np.eye(6), np.arange(6) % 2, epochs=1).predict(frame)


def test_reprs_are_short():
    net = fusedmlp.Network([3, 4, 1])
    _, gradients = net.loss_and_gradients(np.zeros((3, 2)), np.zeros((1, 2)))
    table = as_table("iris")
    for thing in (table, net.parameters, gradients):
        assert len(repr(thing)) < 120
    assert repr(table) == "Table('iris': 150 rows, 4 of numbers, 0 of categories, target 'target')"
