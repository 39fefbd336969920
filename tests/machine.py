"""Which backends this machine has."""

from __future__ import annotations

import os

import pytest

from fusedmlp import backends


def require(name):
    """The backend, or a visible skip; a failure where FUSEDMLP_REQUIRE_BACKENDS names it."""
    reason = backends.unavailable_reason(name)
    if reason is None:
        return backends.get_backend(name)
    if name in os.environ.get("FUSEDMLP_REQUIRE_BACKENDS", "").split(","):
        pytest.fail(f"FUSEDMLP_REQUIRE_BACKENDS names {name}: {reason}")
    return pytest.skip(f"{name}: {reason}")
