"""Model files: bits that come back, old files that stay whole, and damage that is found."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusedmlp import ModelFileError, Network
from fusedmlp.files.model_files import ModelFile, load_model, save_model, write_atomically


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
    assert model.extra == {"classes": ["a", "b"]}
    with pytest.raises(ValueError, match="extra_tensors: names that weights and biases have"):
        save_model(path, ModelFile(net._numpy_parameters(), {"W1": table}))


def test_every_truncation_is_found(net, tmp_path):
    whole = tmp_path / "whole"
    net.save(whole)
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    for length in range(0, len(data), 7):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match="cut"):
            Network.load(cut)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a model",
        pickle.dumps({"W1": 1}),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        b"PK\x03\x04" + bytes(100),
        os.urandom(1000),
    ],
)
def test_other_files_are_refused(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="not a model file, or a truncated one"):
        Network.load(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        Network.load(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="expected a file; got a folder"):
        Network.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected a model file of format"),
        ({"architecture": "{"}, "the description of the network cannot be read"),
        ({"architecture": "[]"}, "cannot be read"),
        ({"architecture": json.dumps({"layer_sizes": [3, -1]})}, "cannot be read: layer_sizes"),
        ({"architecture": json.dumps({"layer_sizes": [3, 2], "hidden_activation": "os.system"})}, "hidden_activation"),
        ({"architecture": json.dumps({"layer_sizes": [3, 2], "colour": 1})}, "cannot be read"),
        ({"architecture": json.dumps({"layer_sizes": [10**6, 10**6]})}, "parameters; the file holds"),
        ({"extra": "3"}, "cannot be read"),
    ],
)
def test_descriptions_that_lie(tmp_path, change, message):
    tensors = {"W1": np.zeros((3, 2), np.float32), "b1": np.zeros((2, 1), np.float32)}
    good = {"format": "fusedmlp-1", "architecture": json.dumps({"layer_sizes": [3, 2]}), "extra": "{}"}
    path = tmp_path / "file"
    save_file(tensors, path, metadata=good)
    assert Network.load(path).architecture.layer_sizes == (3, 2)
    save_file(tensors, path, metadata=good | change)
    with pytest.raises(ModelFileError, match=message):
        Network.load(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W1": np.zeros((3, 2), np.float32), "x": np.zeros(2, np.float32)}, "expected a tensor b1"),
        ({"W1": np.zeros((2, 3), np.float32), "b1": np.zeros((2, 1), np.float32)}, r"expected W1 of shape \(3, 2\)"),
        ({"W1": np.zeros((3, 2), np.float64), "b1": np.zeros((2, 1), np.float32)}, "dtype float32; got .* float64"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, message):
    path = tmp_path / "file"
    metadata = {"format": "fusedmlp-1", "architecture": json.dumps({"layer_sizes": [3, 2]}), "extra": "{}"}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ModelFileError, match=message):
        Network.load(path)


def test_weights_that_are_not_finite(net, tmp_path):
    path = tmp_path / "file"
    save_file(
        {"W1": np.full((3, 2), np.nan, np.float32), "b1": np.zeros((2, 1), np.float32)},
        path,
        metadata={"format": "fusedmlp-1", "architecture": json.dumps({"layer_sizes": [3, 2]}), "extra": "{}"},
    )
    with pytest.raises(ModelFileError, match="expected finite weights"):
        Network.load(path)
    net.weights[0][0, 0] = np.inf
    with pytest.raises(ValueError, match="expected finite numbers to save"):
        net.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
def test_links_and_modes_are_kept(net, tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    net.save(target)
    target.chmod(0o600)
    link.symlink_to(target)
    net.weights[0][...] = 0
    net.save(link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert not Network.load(target, backend="numpy").weights[0].any()


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file_whole(net, tmp_path, monkeypatch, call, error):
    path = tmp_path / "net.safetensors"
    net.save(path)
    before = path.read_bytes()
    net.weights[0][...] = 0

    def fail(*args):
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        net.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    net.save(path)
    assert path.read_bytes() != before


def test_writing_into_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"")
