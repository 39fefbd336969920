"""Predictor: preprocessing, network and target in one file, with nothing in it that could run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from sklearn.metrics import accuracy_score, mean_poisson_deviance, r2_score, root_mean_squared_error

from fusedmlp import ModelFileError, Network
from fusedmlp.data import FeatureEncoder, Schema, Table, fit_target, read_table
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.table import no_text
from fusedmlp.files.model_files import ModelFile, save_model
from fusedmlp.model.parameters import Parameters


def train(table, loss=None, dtype="float32", epochs=3, backend="numpy"):
    """A predictor that has seen a table for a few epochs."""
    features = FeatureEncoder.fit(table)
    target, loss = fit_target(table.target, loss, table.classification)
    network = Network(
        [features.n_outputs, 5, target.n_outputs], "tanh", loss, dtype=dtype, backend=backend, random_state=0
    )
    network.fit(features.transform(table, dtype=dtype).T, target.encode(table.target, dtype), epochs=epochs)
    return Predictor(network, features, target)


def mixed_table(target):
    """Numbers and categories, both with missing values."""
    text = np.array([["a", "x"], [None, "y"], ["b", None], ["a", "y"]], dtype=object)
    numeric = np.array([[1.0, np.nan], [2.0, 5.0], [np.nan, 5.0], [4.0, 7.0]])
    return Table("mixed", Schema(("n", "p"), ("s", "t"), target="y"), numeric, text, np.array(target))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("table", "loss"),
    [
        (mixed_table([0, 1, 1, 0]), None),
        (mixed_table([0, 1, 1, 0]), "sum_squared_error"),
        (mixed_table([1.5, -2.0, 3.25, 0.0]), None),
        (mixed_table([0, 3, 1, 2]), "poisson"),
        (mixed_table([[0.5, 1], [2, 3], [4, 5], [0, 1]]), "squared_error"),
        (read_table("iris"), None),
    ],
)
def test_round_trip_gives_the_same_bits(tmp_path, table, loss, dtype):
    predictor = train(table, loss, dtype)
    predictor.save(tmp_path / "m.safetensors")
    other = Predictor.load(tmp_path / "m.safetensors", backend="numpy")
    assert other.encode_features(table).tobytes() == predictor.encode_features(table).tobytes()
    assert other.predict(table).tolist() == predictor.predict(table).tolist()
    assert other.evaluate(table) == predictor.evaluate(table)
    assert other.features.schema == table.schema
    first = (tmp_path / "m.safetensors").read_bytes()
    other.save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == first


@given(
    hnp.arrays(np.float64, (6, 2), elements=st.one_of(st.just(np.nan), st.floats(-1e9, 1e9))),
    st.lists(st.text(max_size=2), min_size=6, max_size=6),
)
def test_any_preprocessing_comes_back(tmp_path_factory, numeric, words):
    text = np.array([[word] for word in words], dtype=object)
    table = Table("any", Schema(("a", "b"), ("c",)), numeric, text, np.arange(6) % 2)
    features = FeatureEncoder.fit(table)
    target, loss = fit_target(table.target)
    network = Network([features.n_outputs, 1], loss=loss, backend="numpy", random_state=0)
    path = tmp_path_factory.mktemp("any") / "m.safetensors"
    Predictor(network, features, target).save(path)
    other = Predictor.load(path, backend="numpy")
    assert other.encode_features(table).tobytes() == features.transform(table).T.tobytes()


def test_every_backend_reads_it(tmp_path, backend):
    table = read_table("wine")
    train(table, backend=backend).save(tmp_path / "m.safetensors")
    predictor = Predictor.load(tmp_path / "m.safetensors", backend=backend)
    expected = Predictor.load(tmp_path / "m.safetensors", backend="numpy")
    assert predictor.network.backend is backend
    assert np.allclose(predictor.predict_proba(table), expected.predict_proba(table), atol=1e-5)


def test_the_network_alone_can_be_read(tmp_path):
    table = read_table("iris")
    predictor = train(table)
    predictor.save(tmp_path / "m.safetensors")
    network = Network.load(tmp_path / "m.safetensors", backend="numpy")
    X = predictor.encode_features(table)
    assert np.array_equal(network.forward(X), predictor.network.forward(X))


def test_the_file_holds_tensors_and_json(tmp_path):
    train(mixed_table([0, 1, 1, 0])).save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {"W1", "b1", "W2", "b2", "features.mean", "features.scale"}
        extra = json.loads(file.metadata()["extra"])
    assert extra["target"] == {"classes": [0, 1], "n_outputs": 1}
    assert extra["features"]["categories"] == [["\0missing", "a", "b"], ["\0missing", "x", "y"]]


def test_scores_are_scikit_learns():
    table = read_table("wine")
    predictor = train(table)
    scores = predictor.evaluate(table)
    assert scores["accuracy"] == accuracy_score(table.target, predictor.predict(table))
    table = read_table("diabetes")
    predictor = train(table)
    scores, predicted = predictor.evaluate(table), predictor.predict(table)
    assert scores["r2"] == pytest.approx(r2_score(table.target, predicted))
    assert scores["rmse"] == pytest.approx(root_mean_squared_error(table.target, predicted))
    predictor = train(table, "poisson", dtype="float64")
    scores = predictor.evaluate(table)
    assert scores["deviance"] == pytest.approx(mean_poisson_deviance(table.target, predictor.predict(table)))
    assert set(scores) == {"loss", "deviance"}


def test_one_row_has_no_r2():
    predictor = train(mixed_table([1.5, -2.0, 3.25, 0.0]))
    one = mixed_table([1.5, -2.0, 3.25, 0.0])
    one = Table("one", one.schema, one.numeric[:1], one.text[:1], one.target[:1])
    assert set(predictor.evaluate(one)) == {"loss", "rmse"}


def test_predictions_are_in_original_terms():
    table = mixed_table([100.5, -2000.0, 300.25, 0.0])
    predictor = train(table, epochs=3000)
    assert np.abs(predictor.predict(table) - table.target).max() < 50
    assert set(train(read_table("iris")).predict(read_table("iris"))) <= {"setosa", "versicolor", "virginica"}


def test_rows_pass_in_blocks(monkeypatch):
    table = read_table("wine")
    predictor = train(table)
    whole = predictor.predict_proba(table)
    monkeypatch.setattr("fusedmlp.data.predictor._BLOCK_BYTES", 4 * 13 * 10)
    assert np.allclose(predictor.predict_proba(table), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "loss", "message"),
    [
        ([0, 1, 1, 0], "sum_squared_error", "this model's loss is sum_squared_error$"),
        ([0.5, 1, 1, 0], None, "this model's loss is squared_error, and it predicts numbers$"),
    ],
)
def test_probabilities_need_a_loss_that_has_some(target, loss, message):
    table = mixed_table(target)
    with pytest.raises(ValueError, match=message):
        train(table, loss).predict_proba(table)


def test_pieces_that_do_not_fit_are_refused():
    predictor = train(read_table("iris"))
    with pytest.raises(ValueError, match=r"features: expected 5 columns for the layers \[5, 3\]; got 4"):
        Predictor(Network([5, 3], loss="squared_error", backend="numpy"), predictor.features, predictor.target)
    with pytest.raises(ValueError, match=r"target: expected 2 columns for the layers \[4, 2\]; got 3"):
        Predictor(Network([4, 2], loss="squared_error", backend="numpy"), predictor.features, predictor.target)


def test_a_table_without_target_cannot_be_evaluated():
    table = mixed_table([0, 1, 1, 0])
    predictor = train(table)
    bare = Table("bare", table.schema, table.numeric, table.text)
    assert len(predictor.predict(bare)) == 4
    with pytest.raises(ValueError, match="target: bare has no target y"):
        predictor.evaluate(bare)


def test_a_network_without_preprocessing_is_no_predictor(tmp_path):
    Network([2, 1], backend="numpy").save(tmp_path / "n.safetensors")
    with pytest.raises(ModelFileError, match="a network without its preprocessing"):
        Predictor.load(tmp_path / "n.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"features": []},
        {"features": {}},
        {"features": None},
        {"target": {}},
        {"target": []},
        {"target": {"classes": ["a", "b"], "n_outputs": 2}},
        {"target": {"classes": ["a", "b", "c"], "n_outputs": "x"}},
        {"target": {"classes": ["a", "b", "c"], "n_outputs": 1e300}},
        {"target": {"classes": ["a", "b", "c"], "n_outputs": 10**400}},
        {"target": {"classes": ["a", "b", "c"], "n_outputs": 3.5}},
    ],
)
def test_damaged_preprocessing_is_a_model_file_error(tmp_path, change):
    predictor = train(read_table("iris"))
    arrays, features = predictor.features.state()
    extra = {"features": features, "target": predictor.target.state()[1]} | change
    parameters = Parameters(predictor.network.architecture, predictor.network.parameters.flat)
    save_model(tmp_path / "m.safetensors", ModelFile(parameters, arrays, extra))
    with pytest.raises(ModelFileError, match="the preprocessing cannot be read"):
        Predictor.load(tmp_path / "m.safetensors", backend="numpy")


def test_changed_bits_and_truncation(tmp_path):
    path = tmp_path / "m.safetensors"
    train(
        Table("t", Schema(("a",)), np.eye(4)[:, :1], no_text(4), np.array(["yes", "no", "no", "yes"], dtype=object))
    ).save(path)
    whole = path.read_bytes()
    for i in range(0, len(whole), 3):
        for changed in (whole[:i], whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :]):
            path.write_bytes(changed)
            with pytest.raises(ModelFileError, match=r"m\.safetensors: "):
                Predictor.load(path)
