"""Which backends this machine has."""

from __future__ import annotations

import os

import pytest

from fusedmlp.backends import selection


def require(name):
    """The backend, or a visible skip; a failure where FUSEDMLP_REQUIRE_BACKENDS names it."""
    reason = selection.unavailable_reason(name)
    if reason is None:
        return selection.get_backend(name)
    if name in os.environ.get("FUSEDMLP_REQUIRE_BACKENDS", "").split(","):
        pytest.fail(f"FUSEDMLP_REQUIRE_BACKENDS names {name}: {reason}")
    return pytest.skip(f"{name}: {reason}")
