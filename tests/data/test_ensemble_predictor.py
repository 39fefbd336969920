"""A predictor of several networks: its outputs are their mean, its loss is that of the mean, and one file holds all."""

from __future__ import annotations

import numpy as np
import pytest

from fusedmlp import ModelFileError, Predictor
from fusedmlp.files.model_files import load_model, save_model
from fusedmlp.model.activations import OUTPUT_ACTIVATIONS
from fusedmlp.model.losses import LOSSES, loss_named, loss_of_outputs
from problems import targets


@pytest.fixture(scope="module")
def ensemble():
    return Predictor.train("wine", members=3, hidden=(8,), epochs=5)


def test_members_are_those_that_are_trained_alone(ensemble):
    for number, member in enumerate(ensemble.members):
        alone = Predictor.train("wine", hidden=(8,), epochs=5, random_state=number).network
        np.testing.assert_array_equal(member.parameters.flat, alone.parameters.flat)
    assert "13-8-3 x 3" in repr(ensemble)


def test_a_file_holds_all(ensemble, tmp_path):
    path = tmp_path / "wine.safetensors"
    ensemble.save(path)
    loaded = Predictor.load(path)
    np.testing.assert_array_equal(loaded.predict_proba("wine"), ensemble.predict_proba("wine"))
    assert loaded.evaluate("wine") == ensemble.evaluate("wine")
    assert loaded.fit("wine", epochs=2).epochs == 2
    assert len({member.history.loss[-1] for member in loaded.members}) == 3


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "count"])
def test_damaged_files(ensemble, tmp_path, damage):
    path = tmp_path / "wine.safetensors"
    ensemble.save(path)
    model = load_model(path)
    if damage == "missing":
        del model.extra_tensors["member3"]
    elif damage == "shape":
        model.extra_tensors["member3"] = model.extra_tensors["member3"][:-1]
    elif damage == "nan":
        model.extra_tensors["member2"][0] = np.nan
    else:
        model.extra["members"] = "many"
    save_model(path, model)
    with pytest.raises(ModelFileError, match="cannot be read"):
        Predictor.load(path)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_outputs_is_that_of_their_logits(name):
    rng = np.random.default_rng(0)
    loss, Z = loss_named(name), rng.normal(size=(3, 40))
    Y = targets(name, 3, 40, rng)
    A = OUTPUT_ACTIVATIONS[loss.output_activation](np, Z, np.empty_like(Z))
    j = loss.per_sample(np, Z if loss.output_activation != "softmax" else np.log(A), Y)
    assert loss_of_outputs(name, A, Y) == pytest.approx(j.mean() if loss.reduction == "mean" else j.sum(), rel=1e-9)
