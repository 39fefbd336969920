"""What a network allows of float32 products: argument > FUSEDMLP_PRECISION > strict. A permission, on any backend."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from fusedmlp import Network
from fusedmlp.backends.numpy_backend import NumpyBackend
from fusedmlp.backends.selection import PRECISION_VARIABLE, resolve_precision

X = np.random.default_rng(0).normal(size=(3, 20))
Y = (np.arange(20) % 2)[None]


class TensorCores(NumpyBackend):
    """A backend of two precisions; it says which it is asked for, and computes alike."""

    def __init__(self, precision="strict"):
        self.precision = precision

    def at_precision(self, precision):
        return self if precision == self.precision else TensorCores(precision)


def test_order_of_precedence(monkeypatch):
    assert resolve_precision() == "strict"
    for empty in ("", "  "):
        monkeypatch.setenv(PRECISION_VARIABLE, empty)
        assert resolve_precision() == "strict"
    monkeypatch.setenv(PRECISION_VARIABLE, " tf32 ")
    assert resolve_precision() == "medium"
    assert resolve_precision("strict") == "strict"
    monkeypatch.setenv(PRECISION_VARIABLE, "strict")
    assert resolve_precision("tf32") == resolve_precision("medium") == "medium"
    assert resolve_precision("high") == "high"


@pytest.mark.parametrize("wrong", ["", "TF32", "half", 32, ["tf32"], True])
def test_wrong_values_are_named(wrong):
    with pytest.raises(ValueError, match="precision: expected one of strict, high, medium, tf32; got "):
        Network([3, 1], backend="numpy", precision=wrong)


def test_a_wrong_setting_is_named(monkeypatch):
    monkeypatch.setenv(PRECISION_VARIABLE, "fast")
    with pytest.raises(ValueError, match="FUSEDMLP_PRECISION: expected one of strict, high, medium, tf32; got 'fast'"):
        Network([3, 1], backend="numpy")
    Network([3, 1], backend="numpy", precision="strict")


@pytest.mark.parametrize("name", ["numpy", "numba-cpu"])
def test_without_tensor_cores_nothing_changes(name):
    strict = Network([3, 5, 1], backend=name, random_state=0, precision="strict")
    loss = strict.fit(X, Y, epochs=2).loss
    for asked, precision in (("high", "high"), ("medium", "medium"), ("tf32", "medium")):
        fast = Network([3, 5, 1], backend=name, random_state=0, precision=asked)
        assert fast.backend is strict.backend
        assert (fast.precision, fast.backend.precision) == (precision, "strict")
        assert fast.fit(X, Y, epochs=2).loss == loss
        assert np.array_equal(fast.parameters.flat, strict.parameters.flat)


def test_the_backend_is_told(monkeypatch):
    backend = TensorCores()
    assert Network([3, 1], backend=backend).backend is backend
    fast = Network([3, 1], backend=backend, precision="tf32")
    assert fast.backend.precision == fast.engine.backend.precision == "medium"
    for asked, precision in (("tf32", "medium"), ("high", "high")):
        monkeypatch.setenv(PRECISION_VARIABLE, asked)
        assert Network([3, 1], backend=backend).backend.precision == precision
    assert Network([3, 1], backend=backend, precision="strict").backend is backend


def test_networks_made_of_others(monkeypatch, tmp_path):
    """Copies keep it; a file does not hold it, so that who loads it says."""
    net = Network([3, 5, 1], backend="numpy", random_state=0, precision="tf32")
    monkeypatch.setenv(PRECISION_VARIABLE, "strict")
    for same in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), eval(repr(net), {"Network": Network})):
        assert same.precision == "medium"
    vars(net)["precision"] = "tf32"  # as networks that were pickled before it was another name
    assert pickle.loads(pickle.dumps(net)).precision == "medium"
    net.save(tmp_path / "model.safetensors")
    assert Network.load(tmp_path / "model.safetensors", backend="numpy").precision == "strict"
    assert Network.load(tmp_path / "model.safetensors", backend="numpy", precision="tf32").precision == "medium"
    assert Network.from_parameters(net.parameters, backend="numpy").precision == "strict"
    assert Network.from_parameters(net.parameters, backend="numpy", precision="tf32").precision == "medium"
