"""Fixtures of the CUDA tests: CupyBackend on a fake GPU, and the hardware where there is one."""

from __future__ import annotations

import math

import pytest
from harness import emulator, fake_cupy, fake_streams
from harness.loaded import check_loaded

from fusedmlp.backends import selection
from fusedmlp.backends.cupy import CupyBackend, resident_costs
from machine import require


@pytest.fixture(scope="session")
def compiler():
    """g++, or a visible skip."""
    if emulator.COMPILER is None:
        pytest.skip("g++ is not installed: the kernels cannot be run on the CPU")
    return emulator.COMPILER


@pytest.fixture
def cupy(compiler, monkeypatch):
    """A fake CuPy in place of the real one; `cupy.launches` names the kernels that were launched."""
    fake = fake_cupy.make()
    fake_cupy.POOL.forget_free_blocks()
    monkeypatch.setattr(fake_streams, "violations", [])
    fake_cupy.install(monkeypatch, fake)
    monkeypatch.setattr(selection, "_instances", {})
    yield fake
    fake_cupy.POOL.set_limit(0)
    fake_cupy.POOL.refuse = None
    assert fake_streams.violations == []


@pytest.fixture
def emulated(cupy):
    """CupyBackend on the fake CuPy."""
    return CupyBackend()


@pytest.fixture
def resident(emulated, monkeypatch):
    """The fake GPU, where every network that fits stays resident."""
    monkeypatch.setattr(resident_costs, "CAPTURED_STEP_SECONDS", math.inf)
    return emulated


@pytest.fixture
def never_resident(monkeypatch):
    """Small networks train by captured steps too."""
    monkeypatch.setattr(resident_costs, "CAPTURED_STEP_SECONDS", 0)


@pytest.fixture(params=emulator.ORDERS)
def thread_order(request):
    """Run the test under every order of the CUDA threads."""
    with emulator.thread_order(request.param):
        yield request.param


@pytest.fixture
def shuffled():
    """Run the test under a random order of the CUDA threads: enough where they have nothing to do with each other."""
    with emulator.thread_order("shuffled"):
        yield


@pytest.fixture(scope="session")
def gpu():
    """CupyBackend on a real GPU, or a visible skip; a failure where FUSEDMLP_REQUIRE_BACKENDS names cupy.

    At the end all kernels that this process has loaded are checked: tests may be spread over several processes.
    """
    backend = require("cupy")
    yield backend
    check_loaded(backend.launcher)
