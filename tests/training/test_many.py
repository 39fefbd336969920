"""fit_many: every network has the bits that it has when it is trained alone; errors, parts of the samples, Ctrl-C."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fusedmlp import SGD, AdamW, Network, ReduceOnPlateau, StepDecay, fit_many
from machine import require

GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(6, 90))
Y = (GENERATOR.random((1, 90)) < 0.4).astype(float)
WEIGHT = np.linspace(0.1, 2, 90)
BACKENDS = ["numpy", "numba-cpu"]


def network(backend, hidden=8, loss="binary_cross_entropy", seed=3, dtype="float32"):
    return Network([6, hidden, 1], "tanh", loss, backend=require(backend), dtype=dtype, random_state=seed)


def alone(networks, arguments):
    """Copies of the networks, trained one after the other by `fit`: (copies, histories)."""
    copies = copy.deepcopy(networks)
    return copies, [net.fit(**each) for net, each in zip(copies, arguments, strict=True)]


def assert_same(networks, histories, references, expected):
    for net, history, reference, wanted in zip(networks, histories, references, expected, strict=True):
        np.testing.assert_array_equal(net.parameters.flat, reference.parameters.flat)
        assert history.loss == wanted.loss
        assert history.validation_loss == wanted.validation_loss
        assert history.learning_rate == wanted.learning_rate
        assert (history.best_epoch, history.stopped, history.samples) == (
            wanted.best_epoch,
            wanted.stopped,
            wanted.samples,
        )
        assert net.history is history
        assert len(history.seconds) == len(history.loss)
        # What is drawn next is what would be drawn after the training alone.
        assert net._generator.random() == reference._generator.random()


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_have_a_value_per_network(backend):
    networks = [network(backend, seed=seed) for seed in range(4)]
    lists = {
        "optimizer": ["adam", SGD(0.1, 0.9, nesterov=True), AdamW(), "momentum"],
        "epochs": [3, 5, 2, 4],
        "batch_size": (32, 16, 90, 7),
        "learning_rate": np.array([0.01, 0.02, 0.03, 0.04]),
        "schedule": ["cosine", StepDecay(2), "constant", lambda epoch, rate: rate / (epoch + 1)],
        "alpha": [0.0, 0.1, 0.0, 1.0],
        "shuffle": [True, False, True, True],
        "early_stopping": [False, True, False, True],
        "validation_fraction": [0.0, 0.25, 0.1, 0.0],
        "clip_norm": [None, 0.1, None, 0.5],
        "dropout": [0.0, 0.5, (0.2, 0.4), 0.0],
        "sample_weight": [None, WEIGHT, None, WEIGHT],
        "random_state": [1, None, 2, np.random.RandomState(4)],
        "callbacks": [[], [ReduceOnPlateau()], [], []],
    }
    arguments = [{"X": X, "Y": Y} | {name: values[i] for name, values in lists.items()} for i in range(len(networks))]
    arguments = copy.deepcopy(arguments)
    arguments = [{**each, "learning_rate": float(each["learning_rate"])} for each in arguments]
    references, expected = alone(networks, arguments)
    histories = fit_many(networks, X, Y, **lists)
    assert_same(networks, histories, references, expected)
