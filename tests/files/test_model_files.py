"""Model files: the same bits come back, damage is found, and files of version 0.1.0 are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusedmlp import ModelFileError, Network, Predictor
from fusedmlp.data import Schema, Table
from fusedmlp.files.model_files import FORMAT, ModelFile, load_model, save_model
from fusedmlp.files.tensor_files import write_tensors

HERE = Path(__file__).parent


@pytest.fixture
def net():
    """A network to save."""
    return Network([3, 4, 2], "tanh", "squared_error", backend="numpy", random_state=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_round_trip(backend, tmp_path, dtype, bias):
    net = Network([3, 4, 2], "relu", "poisson", bias, dtype, backend, random_state=0)
    net.save(tmp_path / "net.safetensors")
    other = Network.load(tmp_path / "net.safetensors", backend="numpy")
    assert other.architecture == net.architecture
    assert np.array_equal(other.parameters.flat, backend.to_numpy(net.parameters.flat))
    assert Network.load(str(tmp_path / "net.safetensors"), backend=backend).backend is backend


def test_extras_are_kept(net, tmp_path):
    path = tmp_path / "net.safetensors"
    table = np.arange(6).reshape(2, 3)
    save_model(path, ModelFile(net._numpy_parameters(), {"table": table}, {"classes": ["a", "b"]}))
    model = load_model(path)
    assert np.array_equal(model.extra_tensors["table"], table)
    assert model.extra_tensors["table"].base is None or model.extra_tensors["table"].base.nbytes == table.nbytes
    assert model.extra == {"classes": ["a", "b"]}
    with pytest.raises(ValueError, match="extra_tensors: names that weights and biases have"):
        save_model(path, ModelFile(net._numpy_parameters(), {"W1": table}))


def test_changed_bits_and_truncation(net, tmp_path):
    path = tmp_path / "net"
    net.save(path)
    whole = path.read_bytes()
    for i in range(0, len(whole), 5):
        for changed in (whole[:i], whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :]):
            path.write_bytes(changed)
            with pytest.raises(ModelFileError, match="net: "):
                Network.load(path)


def test_a_network_of_version_0_1_0():
    path = HERE / "network_0_1_0.safetensors"
    with pytest.warns(
        UserWarning, match=r"network_0_1_0.*no checksum: damage would go unnoticed; save it again"
    ) as seen:
        net = Network.load(path, backend="numpy")
    assert seen[0].filename == __file__
    drawn = Network([2, 3, 1], "tanh", dtype="float64", backend="numpy", random_state=0)
    assert net.architecture == drawn.architecture
    assert np.array_equal(net.parameters.flat, drawn.parameters.flat)


def test_a_predictor_of_version_0_1_0(tmp_path):
    with pytest.warns(UserWarning, match="no checksum"):
        predictor = Predictor.load(HERE / "predictor_0_1_0.safetensors", backend="numpy")
    text = np.array([["a"], [None], ["b"]], dtype=object)
    table = Table("t", Schema(("n", "p"), ("s",)), np.array([[1.0, np.nan], [2.0, 5.0], [4.0, 7.0]]), text)
    probabilities = predictor.predict_proba(table)
    assert predictor.target.classes == ("no", "yes")
    # As version 0.1.0 computed them.
    expected = [0.3818764090538025, 0.5031632781028748, 0.4220486581325531]
    assert np.allclose(probabilities[:, 1], expected, rtol=1e-6)
    predictor.save(tmp_path / "new")
    assert np.array_equal(Predictor.load(tmp_path / "new", backend="numpy").predict_proba(table), probabilities)


GOOD = {"architecture": {"layer_sizes": [3, 2]}, "extra": {}}
TENSORS = {"W1": np.zeros((3, 2), np.float32), "b1": np.zeros((2, 1), np.float32)}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "the description of the network cannot be read"),
        ({"architecture": []}, "cannot be read"),
        ({"architecture": 1}, "cannot be read"),
        ({"architecture": {"layer_sizes": [3, -1]}}, "cannot be read: layer_sizes"),
        ({"architecture": {"layer_sizes": [3, 10**400]}}, "cannot be read: layer_sizes"),
        ({"architecture": {"layer_sizes": [3, 2], "hidden_activation": "os.system"}}, "hidden_activation"),
        ({"architecture": {"layer_sizes": [3, 2], "colour": 1}}, "cannot be read"),
        ({"architecture": {"layer_sizes": [10**6, 10**6]}}, "parameters; the file holds"),
        ({"extra": 3}, "cannot be read"),
    ],
)
def test_descriptions_that_lie(tmp_path, metadata, message):
    path = tmp_path / "file"
    write_tensors(path, FORMAT, TENSORS, GOOD)
    assert Network.load(path).architecture.layer_sizes == (3, 2)
    write_tensors(path, FORMAT, TENSORS, (GOOD if metadata else {}) | metadata)
    with pytest.raises(ModelFileError, match=message):
        Network.load(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W1": TENSORS["W1"], "x": np.zeros(2, np.float32)}, "expected a tensor b1"),
        ({"W1": TENSORS["W1"].T, "b1": TENSORS["b1"]}, r"expected W1 of shape \(3, 2\)"),
        ({"W1": np.zeros((3, 2)), "b1": TENSORS["b1"]}, "dtype float32; got .* float64"),
        ({"W1": TENSORS["W1"] + np.nan, "b1": TENSORS["b1"]}, "expected finite weights"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, message):
    write_tensors(tmp_path / "file", FORMAT, tensors, GOOD)
    with pytest.raises(ModelFileError, match=message):
        Network.load(tmp_path / "file")


def test_weights_that_are_not_finite_are_not_saved(net, tmp_path):
    net.weights[0][0, 0] = np.inf
    with pytest.raises(ValueError, match="expected finite numbers to save"):
        net.save(tmp_path / "file")
    assert not (tmp_path / "file").exists()
