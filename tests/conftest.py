"""Fixtures of the whole suite: the backends, as this machine has them."""

from __future__ import annotations

import gc
import os
import signal

# Before numpy is imported, here and in the processes that tests start. OpenBLAS's threads keep spinning after a
# product; with two processes of tests on two cores they take half of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell lets its background jobs ignore Ctrl-C, and with them all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

from fusedmlp.backends import selection
from machine import require

settings.register_profile(
    "suite", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_addoption(parser):
    """How often tests/soak tries each thing; see its conftest.py."""
    parser.addoption("--soak", action="store_true", help="try each thing many times (make soak)")
    for name in ("kills", "flips", "step", "fits", "forks", "tables", "deaths"):
        parser.addoption(f"--soak-{name}", type=int, help=f"{name} of tests/soak")


def pytest_collection_finish():
    """Leave thousands of tests, and what they import, alone: else every collection of garbage goes through them all."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=list(selection.registry()), scope="session")
def backend(request):
    """Every backend in turn."""
    return require(request.param)


@pytest.fixture(autouse=True)
def _no_outside_choice(monkeypatch):
    """Tests choose their backend themselves."""
    for variable in (selection.ENVIRONMENT_VARIABLE, selection.PRECISION_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(selection, "_process_choices", [])
