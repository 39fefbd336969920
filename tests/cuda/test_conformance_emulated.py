"""The conformance suite once more, for the cupy backend on the fake GPU: its host code and its kernels, run by the CPU.

Where there is a GPU the suite itself covers the backend; this is for the machines without one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import fake_cupy

from fusedmlp.backends.cupy import CupyBackend

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

from test_engines import *  # noqa: F403
from test_interface import (
    test_arrays_round_trip,  # noqa: F401
    test_description_names_device_and_versions,  # noqa: F401
    test_engines_say_what_they_are,  # noqa: F401
)
from test_primitives import *  # noqa: F403


@pytest.fixture(scope="module")
def backend(compiler):
    """In place of the suite's own fixture."""
    cupy = fake_cupy.make()
    with pytest.MonkeyPatch.context() as patch:
        fake_cupy.install(patch, cupy)
        yield CupyBackend()
    assert cupy.launches, "no test of the suite ran a kernel"
