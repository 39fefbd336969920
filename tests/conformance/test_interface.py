"""The seam itself: signatures do not drift, every backend is complete, and the helper that compares can fail."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from compare import assert_close
from fusedmlp.backends import selection
from fusedmlp.backends.base import Backend
from fusedmlp.engines.base import Engine


@pytest.mark.parametrize("name", list(selection.registry()))
def test_overrides_have_the_signature_of_the_base_class(name):
    cls = selection.backend_class(name)
    assert issubclass(cls, Backend)
    assert cls.name == name
    assert not inspect.isabstract(cls)
    for attribute, method in inspect.getmembers(Backend, inspect.isfunction):
        expected = [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
        actual = [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, attribute)).parameters.values()]
        assert actual == expected, f"{name}.{attribute}"


def test_arrays_round_trip(backend):
    x = np.arange(6.0).reshape(2, 3)
    native = backend.asarray(x)
    assert backend.owns(native)
    assert backend.asarray(native) is native
    assert np.array_equal(backend.to_numpy(native), x)
    assert backend.asarray(x, dtype="float32").dtype == np.float32
    assert backend.empty((3, 4), "float32").shape == (3, 4)
    backend.synchronize()


def test_description_names_device_and_versions(backend):
    described = backend.describe()
    assert {"device", "versions"} <= described.keys()
    assert all(isinstance(value, str) and value for value in described.values())


def test_engines_say_what_they_are(backend):
    from fusedmlp.model.architecture import Architecture

    for fused in (True, False):
        engine = backend.engine(Architecture((2, 3, 1)), fused=fused)
        assert isinstance(engine, Engine)
        assert engine.kind in ({"composed", "fused"} if fused else {"composed"})


class TestCompare:
    """assert_close must fail on a wrong kernel."""

    expected = np.linspace(-1, 1, 12).reshape(3, 4)

    def test_accepts_what_is_right(self):
        assert_close(self.expected.astype(np.float32), self.expected)
        assert_close(self.expected, self.expected, elementwise=True)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda x: x + 1e-4,
            lambda x: x.T,
            lambda x: x * np.nan,
            lambda x: np.where(x > 0.9, np.inf, x),
            lambda x: x.astype(np.float16),
            lambda x: x.astype(int),
            lambda x: x * (1 - x),  # a derivative of the wrong activation
            lambda x: x[:, ::-1],
            lambda x: np.zeros_like(x),
        ],
    )
    def test_rejects_what_is_wrong(self, wrong):
        with pytest.raises(AssertionError):
            assert_close(wrong(self.expected), self.expected)

    def test_elementwise_sees_small_elements(self):
        expected = np.array([1.0, 1e-10])
        actual = np.array([1.0, 1.01e-10])
        assert_close(actual, expected, tolerance=1e-9)
        with pytest.raises(AssertionError):
            assert_close(actual, expected, elementwise=True)
