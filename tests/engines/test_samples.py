"""What becomes of X, Y and weights: errors that name them, and no copy of large ones."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from fusedmlp import Backend, BackendUnavailableError, Network, get_backend, register_backend
from fusedmlp.backends import selection
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.engines.samples import Samples
from fusedmlp.engines.splits import split
from machine import require

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(6, 60))
Y = (GENERATOR.random((1, 60)) < 0.4).astype(float)


def network(backend="numpy", dtype="float64", **arguments):
    return Network([6, 5, 1], backend=require(backend), dtype=dtype, random_state=0, **arguments)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "weight"),
    [("float32", 1e-40), ("float32", 2e-39), ("float32", 3e38), ("float64", 1e308), ("float64", 1e-310)],
)
@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_weights_whose_sum_cannot_be_divided_by(backend, dtype, weight):
    net = network(backend, dtype)
    for call in (net.loss, net.loss_and_gradients, net.fit):
        with pytest.raises(ValueError, match="sample_weight: expected"):
            call(X, Y, sample_weight=np.full(60, weight))


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_only_the_ratio_of_weights_counts(backend, scale):
    weight = np.linspace(0.5, 2, 60)
    nets = network(backend, "float32"), network(backend, "float32")
    for net, factor in zip(nets, (1.0, scale), strict=True):
        net.fit(X, Y, "sgd", 3, 16, sample_weight=weight * factor)
    np.testing.assert_allclose(nets[0].parameters.flat, nets[1].parameters.flat, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("batch_size", [1, 32, 1000])
def test_weights_keep_their_meaning_in_small_batches(backend, batch_size):
    """One bias, 10 % positives of weight 9: p = 0.5, whatever the batch size."""
    m = 1000
    labels = (np.arange(m) % 10 == 0).astype(float)
    net = Network([1, 1], backend=require(backend), dtype="float64", random_state=0)
    net.weights[0][...] = 0
    rate = 0.002 if batch_size == 1 else 0.05 if batch_size == 32 else 1.0
    net.fit(np.zeros((1, m)), labels, "sgd", 30, batch_size, learning_rate=rate, sample_weight=1 + 8 * labels)
    assert net.forward(np.zeros((1, 1))).item() == pytest.approx(0.5, abs=0.03)


def test_the_history_has_the_weighted_mean():
    weight = np.linspace(0, 3, 60)
    net = network()
    J = net.loss(X, Y, weight)
    assert net.fit(X, Y, "sgd", 1, 7, learning_rate=1e-12, sample_weight=weight).loss[0] == pytest.approx(J, rel=1e-9)


# Arrays of all kinds --------------------------------------------------------------------------------------------------


class Stubborn:
    def __array__(self, *arguments, **keywords):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def test_an_array_that_cannot_be_had():
    with pytest.raises(ValueError, match=r"X: expected an array of numbers; got Stubborn \(Can't call numpy"):
        network().forward(Stubborn())


@pytest.mark.parametrize("make", [memoryview, np.ndarray.tolist, lambda x: x.view(np.matrix), np.asfortranarray])
def test_other_ways_to_give_numbers(make):
    net = network()
    expected = net.loss_and_gradients(X, Y)
    J, gradients = net.loss_and_gradients(make(X), make(Y))
    assert expected[0] == pytest.approx(J, rel=1e-14)  # some BLAS sum in another order in another memory order
    np.testing.assert_allclose(gradients.flat, expected[1].flat, rtol=1e-12)
    net.trace(make(np.ascontiguousarray(X.T)), make(np.ascontiguousarray(Y.T)), rows=True)


# Large arrays ---------------------------------------------------------------------------------------------------------


def test_a_part_of_a_large_array_is_not_a_copy():
    samples = Samples(X, Y, np.ones((1, 60)))
    parts = np.arange(40, 60), np.arange(40)
    train, validation = split(samples, parts, largest_copy=X.nbytes - 1)
    assert train.X is X
    assert (train.m, validation.m) == (20, 40)
    assert np.array_equal(train.ordered(np.array([3, 0])), [43, 40])
    copied, _ = split(samples, parts, largest_copy=X.nbytes)
    assert copied.order is None
    assert np.array_equal(copied.X, X[:, 40:])


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_trainings_on_a_part_are_the_same_by_index_and_by_copy(backend, early_stopping, monkeypatch):
    results = []
    for workspace in (2**26, 1):
        monkeypatch.setattr(type(require(backend)), "workspace_bytes", workspace)
        net = network(backend)
        arguments = {"early_stopping": early_stopping, "sample_weight": np.linspace(0.5, 2, 60)}
        history = net.fit(X, Y, epochs=5, batch_size=16, validation_fraction=0.25, **arguments)
        results.append([*history.loss, *history.validation_loss, *net.parameters.flat])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9)


MEMORY = """
import resource, sys
import numpy as np
from fusedmlp import Network
path, backend = sys.argv[1:]
X = np.load(path, mmap_mode="r").T
net = Network([64, 8, 1], backend=backend, random_state=0)
Y = np.zeros(X.shape[1], np.float32)
net.fit(X[:, :999], Y[:999], epochs=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
print(peak())
net.fit(X, Y, epochs=1, batch_size=4096, validation_fraction=0.25, callbacks=[lambda training: print(peak())])
net.forward(X)
print(peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_a_memory_mapped_table_of_another_type_is_not_copied(backend, tmp_path):
    m = 500_000
    np.save(tmp_path / "X.npy", np.random.default_rng(0).random((m, 64)))  # 256 MB in float64
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "X.npy"), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, *later = (int(line) for line in done.stdout.split())
    assert max(later) - first < 90_000, "KiB of memory that is not the file's own"


# Pickles and backends from elsewhere ----------------------------------------------------------------------------------


class Elsewhere(Backend):
    """A backend that stands outside of the package, by the documented interface alone."""

    name = "elsewhere"

    @property
    def xp(self):
        return np

    def engine(self, architecture, fused=True):
        return ComposedEngine(self, architecture)


class Named(Network):
    """A subclass with an attribute of its own."""


def test_a_backend_from_elsewhere(monkeypatch):
    monkeypatch.setattr(selection, "REGISTRY", dict(selection.registry()))
    monkeypatch.setattr(selection, "_instances", {})
    net = Network([6, 5, 1], backend=Elsewhere(), random_state=0)
    assert pickle.loads(pickle.dumps(net)).backend.name == "elsewhere"  # not registered: it comes along

    register_backend("elsewhere", Elsewhere)
    assert get_backend("elsewhere,numpy").name == "elsewhere"
    assert {"device", "versions"} <= get_backend("elsewhere").describe().keys()
    net = Network([6, 5, 1], backend="elsewhere", random_state=0, dtype="float64")
    assert net.loss(X, Y) == pytest.approx(network().loss(X, Y))
    with pytest.raises(ValueError, match="there is a backend 'elsewhere' already"):
        register_backend("elsewhere", Elsewhere)


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        ("auto", Elsewhere, "name: expected"),
        ("a,b", Elsewhere, "name: expected"),
        ("", Elsewhere, "name: expected"),
        ("other", Elsewhere, "name: expected the name of the class, 'elsewhere'; got 'other'"),
        ("elsewhere", dict, "backend: expected a subclass of Backend"),
        ("numpy", "numpy:ndarray", "there is a backend 'numpy' already"),
    ],
)
def test_what_cannot_be_registered(name, backend, message):
    with pytest.raises(ValueError, match=message):
        register_backend(name, backend)


def test_pickles_keep_attributes_and_their_class():
    net = Named([6, 5, 1], backend="numpy", random_state=0)
    net.title, net.fit_seconds = "mine", [1, 2]
    net.fit(X, Y, epochs=2)
    again = pickle.loads(pickle.dumps(net))
    assert type(again) is Named
    assert (again.title, again.fit_seconds) == ("mine", [1, 2])
    assert again.history.loss == net.history.loss
    assert np.array_equal(again.parameters.flat, net.parameters.flat)
    net.fit(X, Y, epochs=1)
    again.fit(X, Y, epochs=1)
    assert np.array_equal(again.parameters.flat, net.parameters.flat)


def test_a_pickle_from_a_machine_with_another_backend(monkeypatch, caplog):
    data = pickle.dumps(network("numba-cpu"))
    monkeypatch.setattr(
        selection.backend_class("numba-cpu"), "unavailable_reason", classmethod(lambda cls: "there is no numba")
    )
    monkeypatch.setattr(selection, "_instances", {})
    monkeypatch.setenv("FUSEDMLP_BACKEND", "numpy")
    net = pickle.loads(data)
    assert net.backend.name == "numpy"
    assert "comes back on numpy: backend 'numba-cpu' is unavailable: there is no numba" in caplog.text
    monkeypatch.delenv("FUSEDMLP_BACKEND")
    with pytest.raises(BackendUnavailableError):  # the default is not there either
        pickle.loads(data)
