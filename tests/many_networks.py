"""Networks for the tests of fit_many, and the comparison with those that are trained alone."""

from __future__ import annotations

import contextlib
import copy

import numpy as np

from fusedmlp import (
    Network,
    TrainingDivergedError,
)
from machine import require

GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(6, 90))
Y = (GENERATOR.random((1, 90)) < 0.4).astype(float)
WEIGHT = np.linspace(0.1, 2, 90)
BACKENDS = ["numpy", "numba-cpu"]


def network(backend="numba-cpu", layers=(6, 8, 1), activation="tanh", loss="binary_cross_entropy", seed=3, **others):
    return Network(layers, activation, loss, backend=require(backend), random_state=seed, **others)


def alone(networks, arguments):
    """Copies of the networks, trained one after the other by `fit`: (copies, histories)."""
    copies = copy.deepcopy(networks)
    for net, each in zip(copies, arguments, strict=True):
        with contextlib.suppress(TrainingDivergedError):
            net.fit(**each)
    return copies, [net.history for net in copies]


def assert_same(net, history, reference, expected, draws=True):
    """The same weights, history and generator, to the bit."""
    np.testing.assert_array_equal(net.parameters.flat, reference.parameters.flat)
    for name in ("loss", "validation_loss", "learning_rate", "best_epoch", "stopped", "samples", "error"):
        assert repr(getattr(history, name)) == repr(getattr(expected, name)), name  # NaN is NaN
    assert net.history is history
    assert len(history.seconds) == len(history.loss)
    if draws:
        assert net._generator.random() == reference._generator.random()


def assert_all_same(networks, histories, references, expected):
    for each in zip(networks, histories, references, expected, strict=True):
        assert_same(*each)
