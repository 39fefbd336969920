"""Ensembles: their members are those that one trains by oneself, their average and its spread, their files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, make_multilabel_classification
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import check_estimator

import fusedmlp
from fusedmlp import MLPClassifier, MLPEnsembleClassifier, MLPEnsembleRegressor, MLPRegressor, ModelFileError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, y = (part[:300] for part in load_digits(return_X_y=True))
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
SMALL = {"hidden_layer_sizes": (8,), "max_iter": 8}


@pytest.fixture(autouse=True, params=["numba-cpu", "numpy"])
def backend(request):
    with fusedmlp.use_backend(request.param):
        yield request.param


def seeds(random_state, n):
    return [int(seed) for seed in check_random_state(random_state).randint(np.iinfo(np.int32).max, size=n)]


def test_members_are_those_that_are_trained_alone():
    ensemble = MLPEnsembleClassifier(3, random_state=1, **SMALL).fit(X, y)
    alone = [MLPClassifier(random_state=seed, **SMALL).fit(X, y) for seed in seeds(1, 3)]
    for member, expected in zip(ensemble.estimators_, alone, strict=True):
        for got, W in zip(member.coefs_, expected.coefs_, strict=True):
            np.testing.assert_array_equal(got, W)
    probabilities = [member.predict_proba(X) for member in alone]
    np.testing.assert_allclose(ensemble.predict_proba(X), np.mean(probabilities, axis=0), rtol=1e-12)
    np.testing.assert_allclose(ensemble.predict_std(X), np.std(probabilities, axis=0), atol=1e-12)
    np.testing.assert_array_equal(ensemble.predict(X), np.mean(probabilities, axis=0).argmax(axis=1))
    assert ensemble.n_iter_ == 8
    p, mean = np.array(probabilities), np.mean(probabilities, axis=0)
    expected = (p * np.log(p / mean)).sum(axis=2).mean(axis=0)
    np.testing.assert_allclose(ensemble.disagreement(X), expected, atol=1e-12)


def test_an_ensemble_of_one_does_not_disagree():
    one = MLPEnsembleClassifier(1, random_state=0, **SMALL).fit(X, y > 4)
    assert one.predict_proba(X).shape == (300, 2)
    np.testing.assert_array_equal(one.disagreement(X), 0)
    np.testing.assert_array_equal(one.predict_std(X), 0)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_bootstrap_is_the_training_on_the_drawn_rows(early_stopping):
    settings = {**SMALL, "early_stopping": early_stopping}
    ensemble = MLPEnsembleRegressor(2, bootstrap=True, random_state=0, **settings)
    table, target = load_diabetes(return_X_y=True)
    ensemble.fit(table, target)
    drawn = [member.coefs_[0] for member in ensemble.estimators_]
    whole = MLPEnsembleRegressor(2, random_state=0, **settings).fit(table, target)
    assert all(np.abs(W - V.coefs_[0]).max() > 1e-3 for W, V in zip(drawn, whole.estimators_, strict=True))
    again = clone(ensemble).fit(table, target)
    np.testing.assert_array_equal(again.predict(table), ensemble.predict(table))
    if not early_stopping:  # the seed draws the weights first, then the rows
        seed = seeds(0, 2)[0]
        generator = np.random.RandomState(seed)
        for rows, columns in ((10, 8), (8, 1)):
            bound = np.sqrt(6 / (rows + columns))
            generator.uniform(-bound, bound, (rows, columns)), generator.uniform(-bound, bound, columns)
        rows = generator.randint(len(target), size=len(target))
        by_weights = MLPRegressor(random_state=seed, shuffle=False, **settings).fit(table[rows], target[rows])
        unshuffled = MLPEnsembleRegressor(2, bootstrap=True, random_state=0, shuffle=False, **settings)
        np.testing.assert_allclose(unshuffled.fit(table, target).estimators_[0].coefs_[0], by_weights.coefs_[0], 1e-9)


def test_many_rows_are_predicted_in_chunks(monkeypatch):
    from fusedmlp.estimators import ensembles

    ensemble = MLPEnsembleRegressor(2, random_state=0, **SMALL).fit(X, y)
    whole, spread = ensemble.predict(X), ensemble.predict_std(X)
    monkeypatch.setattr(ensembles, "_CHUNK_BYTES", 1)
    np.testing.assert_allclose(ensemble.predict(X), whole, rtol=1e-12)
    np.testing.assert_allclose(ensemble.predict_std(X), spread, rtol=1e-9)


@pytest.mark.parametrize("labels", [y, NAMES[y], y > 4, make_multilabel_classification(300, 64, random_state=0)[1]])
def test_a_classifier_in_a_file(tmp_path, labels):
    ensemble = MLPEnsembleClassifier(2, random_state=0, class_weight=None, **SMALL).fit(X, labels)
    ensemble.save(tmp_path / "ensemble.safetensors")
    loaded = MLPEnsembleClassifier.load(tmp_path / "ensemble.safetensors")
    np.testing.assert_array_equal(loaded.predict(X), ensemble.predict(X))
    np.testing.assert_array_equal(loaded.predict_proba(X), ensemble.predict_proba(X))
    np.testing.assert_array_equal(loaded.classes_, ensemble.classes_)
    assert loaded.classes_.dtype == ensemble.classes_.dtype
    assert loaded.get_params() == {**ensemble.get_params()}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ensemble)).predict(X), ensemble.predict(X))


def test_files_of_another_kind_and_what_a_file_cannot_hold(tmp_path):
    path = tmp_path / "ensemble.safetensors"
    ensemble = MLPEnsembleRegressor(2, random_state=0, **SMALL).fit(X, y)
    ensemble.save(path)
    np.testing.assert_array_equal(MLPEnsembleRegressor.load(path).predict(X), ensemble.predict(X))
    with pytest.raises(ModelFileError, match="expected a MLPEnsembleClassifier; the file has a MLPEnsembleRegressor"):
        MLPEnsembleClassifier.load(path)
    ensemble.scoring = lambda *_: 0
    before = path.read_bytes()
    with pytest.raises(ValueError, match="scoring: expected a number, a text"):
        ensemble.save(path)
    assert path.read_bytes() == before


def test_warm_start_goes_on():
    ensemble = MLPEnsembleClassifier(2, random_state=0, warm_start=True, **SMALL).fit(X, y)
    first = ensemble.estimators_[0].loss_
    assert ensemble.fit(X, y).estimators_[0].loss_ < first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_members": 0}, "'n_members' parameter"),
        ({"alpha": -1}, "'alpha' parameter"),
        ({"bootstrap": 2}, "bootstrap"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLPEnsembleClassifier(**arguments).fit(X, y)


def test_unknown_parameters():
    with pytest.raises(TypeError, match="MLPEnsembleClassifier has no parameter 'alhpa'"):
        MLPEnsembleClassifier(alhpa=1)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", ["numba-cpu"], indirect=True)
@pytest.mark.parametrize(
    "ensemble", [MLPEnsembleClassifier(2), MLPEnsembleRegressor(2)], ids=["classifier", "regressor"]
)
def test_checks_of_estimators(ensemble):
    results = check_estimator(ensemble, on_skip=None, on_fail=None)
    assert {row["check_name"]: str(row["exception"]) for row in results if row["status"] == "failed"} == {}
