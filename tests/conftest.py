"""Fixtures of the whole suite: the backends, as this machine has them."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from fusedmlp import backends

settings.register_profile(
    "suite", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def require(name):
    """The backend, or a visible skip; a failure where FUSEDMLP_REQUIRE_BACKENDS names it."""
    reason = backends.unavailable_reason(name)
    if reason is None:
        return backends.get_backend(name)
    if name in os.environ.get("FUSEDMLP_REQUIRE_BACKENDS", "").split(","):
        pytest.fail(f"FUSEDMLP_REQUIRE_BACKENDS names {name}: {reason}")
    return pytest.skip(f"{name}: {reason}")


@pytest.fixture(params=list(backends.REGISTRY), scope="session")
def backend(request):
    """Every backend in turn."""
    return require(request.param)


@pytest.fixture(autouse=True)
def _no_outside_choice(monkeypatch):
    """Tests choose their backend themselves."""
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_process_choices", [])
