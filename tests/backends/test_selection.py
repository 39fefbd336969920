"""Which backend runs: argument > use_backend > FUSEDMLP_BACKEND > default, and never a silent fallback."""

from __future__ import annotations

import logging
import threading

import pytest

from fusedmlp import BackendUnavailableError, Network, available_backends, get_backend, use_backend
from fusedmlp.backends import selection
from fusedmlp.backends.numpy_backend import NumpyBackend

VARIABLE = "FUSEDMLP_BACKEND"


@pytest.fixture
def no_gpu(monkeypatch):
    """cupy is unavailable, whatever this machine has."""
    cupy = selection.backend_class("cupy")
    monkeypatch.setattr(cupy, "unavailable_reason", classmethod(lambda cls: "no GPU here; pip install a GPU"))
    monkeypatch.delitem(selection._instances, "cupy", raising=False)


@pytest.fixture
def gpu(monkeypatch):
    """cupy is available: numpy's arithmetic under its name."""

    class Gpu(NumpyBackend):
        name = "cupy"

    monkeypatch.setitem(selection._instances, "cupy", Gpu())


def test_default_is_numba_cpu_even_with_a_gpu(gpu):
    assert get_backend().name == "numba-cpu"
    assert Network([2, 1]).backend.name == "numba-cpu"


def test_order_of_precedence(monkeypatch):
    monkeypatch.setenv(VARIABLE, "numpy")
    assert get_backend().name == "numpy"
    use_backend("numba-cpu")
    assert get_backend().name == "numba-cpu"
    with use_backend("numpy") as backend:
        assert backend.name == get_backend().name == "numpy"
        assert get_backend("numba-cpu").name == "numba-cpu"
    assert get_backend().name == "numba-cpu"
    with use_backend(None):
        assert get_backend().name == "numpy"
    assert get_backend().name == "numba-cpu"
    use_backend(None)
    assert get_backend().name == "numpy"


def test_nested_blocks_and_exceptions():
    with use_backend("numpy"):
        with pytest.raises(RuntimeError), use_backend("numba-cpu"):
            assert get_backend().name == "numba-cpu"
            raise RuntimeError
        assert get_backend().name == "numpy"
    assert get_backend().name == "numba-cpu"


def test_a_block_holds_for_its_thread_a_statement_for_the_process():
    def elsewhere():
        names = []
        thread = threading.Thread(target=lambda: names.append(get_backend().name))
        thread.start()
        thread.join()
        return names[0]

    with use_backend("numpy"):
        assert elsewhere() == "numba-cpu"
    use_backend("numpy")
    assert elsewhere() == "numpy"


def test_blocks_of_several_threads_do_not_mix():
    barrier, wrong = threading.Barrier(4), []

    def work(name):
        for _ in range(50):
            barrier.wait()
            with use_backend(name):
                if get_backend().name != name:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("numpy", "numba-cpu") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert get_backend().name == "numba-cpu"


@pytest.mark.parametrize("value", ["", "  "])
def test_empty_is_unset(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    assert get_backend().name == "numba-cpu"
    assert get_backend("").name == "numba-cpu"


def test_auto(no_gpu, monkeypatch):
    assert get_backend("auto").name == "numba-cpu"
    monkeypatch.setattr(selection.backend_class("numba-cpu"), "unavailable_reason", classmethod(lambda cls: "broken"))
    monkeypatch.setattr(selection, "_instances", {})
    assert get_backend("auto").name == "numpy"


def test_auto_takes_the_gpu(gpu):
    assert get_backend("auto").name == "cupy"


def test_lists_are_orders_of_preference(no_gpu):
    assert get_backend("cupy,numpy").name == "numpy"
    assert get_backend("cupy, numba-cpu,numpy").name == "numba-cpu"
    assert get_backend("numpy,cupy").name == "numpy"


@pytest.mark.parametrize("spec", ["nunpy", "numpy,gpu", "NumPy", "numpy,", ",", "auto,tpu"])
def test_unknown_names_are_listed(spec, monkeypatch):
    with pytest.raises(ValueError, match="numpy, numba-cpu, cupy, auto"):
        get_backend(spec)
    monkeypatch.setenv(VARIABLE, spec)
    with pytest.raises(ValueError, match=f"{VARIABLE}: unknown backend"):
        Network([2, 1])


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="expected the name of a backend"):
        get_backend(3)


def test_unavailable_is_an_error_with_the_reason(no_gpu, monkeypatch):
    for choose in (lambda: get_backend("cupy"), lambda: Network([2, 1], backend="cupy"), lambda: use_backend("cupy")):
        with pytest.raises(BackendUnavailableError, match="cupy.*no GPU here; pip install"):
            choose()
    assert get_backend().name == "numba-cpu"
    monkeypatch.setenv(VARIABLE, "cupy")
    with pytest.raises(BackendUnavailableError, match="no GPU"):
        Network([2, 1])


def test_a_list_of_unavailable_backends_names_every_reason(no_gpu, monkeypatch):
    monkeypatch.setattr(selection.backend_class("numba-cpu"), "unavailable_reason", classmethod(lambda cls: "broken"))
    monkeypatch.setattr(selection, "_instances", {})
    with pytest.raises(BackendUnavailableError, match="no GPU here.*broken"):
        get_backend("cupy,numba-cpu")


def test_available_backends(no_gpu):
    assert available_backends() == ["numpy", "numba-cpu"]


def test_one_object_per_name_and_objects_pass_through():
    assert get_backend("numpy") is get_backend("numpy")
    assert get_backend(get_backend("numpy")) is get_backend("numpy")


def test_resolved_when_made_never_later(monkeypatch):
    net = Network([2, 1])
    monkeypatch.setenv(VARIABLE, "numpy")
    assert net.backend.name == "numba-cpu"
    assert Network([2, 1]).backend.name == "numpy"


def test_the_choice_is_logged(caplog, monkeypatch):
    monkeypatch.setenv(VARIABLE, "numpy")
    with caplog.at_level(logging.INFO, logger="fusedmlp"):
        Network([2, 1])
    assert "backend numpy (FUSEDMLP_BACKEND=numpy)" in caplog.text
