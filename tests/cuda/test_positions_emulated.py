"""Epochs in parts on the fake GPU: resident networks, and captured steps."""

from __future__ import annotations

import sys
from itertools import cycle
from pathlib import Path

import pytest
from harness import fake_cupy

from fusedmlp.backends.cupy import CupyBackend, captured_engine
from fusedmlp.model.optimizers import OPTIMIZERS

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

from test_positions import OPTIONS, test_a_poll_that_ends_the_pass_leaves_where_it_was  # noqa: F401
from test_positions import test_parts_have_the_bits_of_the_whole as check_parts


@pytest.fixture(params=["resident", "captured"])
def backend(request, monkeypatch, compiler):
    """The cupy backend on the fake GPU, with one of the two ways to train."""
    fake_cupy.install(monkeypatch, fake_cupy.make())
    if request.param == "captured":
        monkeypatch.setattr(captured_engine, "stays_resident", lambda *_: False)
    return CupyBackend()


@pytest.mark.parametrize(("optimizer", "options"), [*zip(OPTIMIZERS, cycle(OPTIONS), strict=False)])
def test_parts_have_the_bits_of_the_whole(backend, optimizer, options):
    """In place of the suite's own test: each optimizer with some options."""
    check_parts(backend, optimizer, options, weighted=optimizer == "adam")
