"""The conformance suite once more, for the cupy backend on the fake GPU: its host code and its kernels, run by the CPU.

Where there is a GPU the suite itself covers the backend; this is for the machines without one. Activations and losses
without CUDA code run composed, from array operations: one loss and two depths of each such activation, and one
activation with each such loss, are enough here.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from harness import fake_cupy

from fusedmlp.backends.cupy import CupyBackend
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS, CUDA_LOSSES
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.optimizers import OPTIMIZERS

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

from test_engines import *  # noqa: F403
from test_engines import ALPHA, check_against_oracle
from test_engines import test_training_follows_the_numpy_backend as check_training
from test_interface import (
    test_arrays_round_trip,  # noqa: F401
    test_description_names_device_and_versions,  # noqa: F401
    test_engines_say_what_they_are,  # noqa: F401
)
from test_primitives import *  # noqa: F403

from problems import COMBINATIONS, make_problem

COMPOSED = set(HIDDEN_ACTIVATIONS) - set(CUDA_ACTIVATIONS)


@pytest.mark.parametrize(
    ("number", "activation", "loss", "depth", "bias", "weighted"),
    [
        (number, activation, loss, depth, *flags)
        for number, (activation, loss, depth, *flags) in enumerate(COMBINATIONS)
        if depth <= 3
        and (activation not in COMPOSED or (loss == "squared_error" and depth > 1))
        and (loss in CUDA_LOSSES or activation == "tanh")
    ],
)
def test_every_combination(backend, number, activation, loss, depth, bias, weighted):
    """In place of the suite's own test: up to two hidden layers, and one dtype of each."""
    dtype = ("float64", "float32")[number % 2]
    problem = make_problem(activation, loss, depth, bias, weighted, dtype=dtype, backend=backend)
    check_against_oracle(problem, ALPHA if bias else 0.0)


@pytest.mark.parametrize(
    ("activation", "optimizer"), [*zip(HIDDEN_ACTIVATIONS, itertools.cycle(OPTIMIZERS), strict=False)]
)
def test_training_follows_the_numpy_backend(backend, activation, optimizer):
    """In place of the suite's own test: each activation with one optimizer."""
    check_training(backend, activation, optimizer)


@pytest.fixture(scope="module")
def backend(compiler):
    """In place of the suite's own fixture."""
    cupy = fake_cupy.make()
    with pytest.MonkeyPatch.context() as patch:
        fake_cupy.install(patch, cupy)
        yield CupyBackend()
    assert cupy.launches, "no test of the suite ran a kernel"
