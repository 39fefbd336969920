"""A training that goes on by its state has the bits of one that was not interrupted."""

from __future__ import annotations

import numpy as np
import pytest

from fusedmlp import Network, ReduceOnPlateau, TrainingState
from fusedmlp.model.optimizers import OPTIMIZERS, Optimizer
from fusedmlp.training.schedules import SCHEDULES
from machine import require

GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(6, 90))
Y = (GENERATOR.random((1, 90)) < 0.4).astype(float)


def network(backend="numpy"):
    return Network([6, 8, 1], backend=require(backend), dtype="float64", random_state=3)


def fit(net, epochs, state, **arguments):
    arguments = {"batch_size": 16, "state": state} | arguments
    return net.fit(X, Y, epochs=epochs, **arguments)


def assert_same(once, twice, state, other):
    assert np.array_equal(once.parameters.flat, twice.parameters.flat)
    assert other.steps == state.steps
    assert other.epoch == state.epoch
    for name in ("loss", "validation_loss", "learning_rate", "best_epoch", "stopped"):
        assert getattr(state.history, name) == getattr(other.history, name)


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_five_and_five_epochs_are_ten(optimizer, schedule, backend):
    arguments = {"optimizer": optimizer, "schedule": schedule, "sample_weight": np.linspace(0.5, 2, 90)}
    once, twice = network(backend), network(backend)
    state, other = TrainingState(planned_epochs=10), TrainingState(planned_epochs=10)
    fit(once, 10, state, **arguments)
    fit(twice, 5, other, **arguments)
    fit(twice, 5, other, **arguments)
    assert_same(once, twice, state, other)


@pytest.mark.parametrize(
    "arguments",
    [
        {"validation_fraction": 0.2, "early_stopping": True, "patience": 3, "learning_rate": 0.2},
        {"early_stopping": True, "patience": 2, "tolerance": 0.01},
        {"dropout": [0.1, 0.5], "clip_norm": 0.1, "optimizer": "adamw", "alpha": 0.01},
        {"callbacks": [ReduceOnPlateau(patience=1, tolerance=0.02)]},
        {"shuffle": False, "batch_size": 90, "optimizer": "nesterov"},
    ],
    ids=["validation", "early-stopping", "dropout", "plateau", "full-batch"],
)
@pytest.mark.parametrize("split", [1, 4, 9])
def test_whatever_a_training_remembers(arguments, split):
    once, twice = network(), network()
    state, other = TrainingState(), TrainingState()
    fit(once, 10, state, **arguments)
    fit(twice, split, other, **arguments)
    if other.epoch == split and not other.history.stopped.startswith("no improvement"):
        other = TrainingState.from_dict(other.to_dict())  # as from a file
    fit(twice, 10 - split, other, **arguments)
    assert_same(once, twice, state, other)


def test_a_state_is_plain_data():
    state = TrainingState()
    fit(network(), 2, state, validation_fraction=0.2, dropout=0.2)

    def check(value):
        if isinstance(value, dict):
            assert all(isinstance(name, str) for name in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or isinstance(value, int | float | str | np.ndarray)

    check(state.to_dict())


@pytest.mark.parametrize("generator", [np.random.RandomState(3), np.random.Generator(np.random.MT19937(2))])
def test_every_generator_is_written_and_read(generator):
    state = TrainingState(generator=generator)
    fit(network(), 1, state)
    again = TrainingState.from_dict(state.to_dict())
    assert np.array_equal(again.generator.permutation(50), state.generator.permutation(50))


def test_a_state_of_another_training_is_refused():
    state = TrainingState()
    fit(network(), 1, state, validation_fraction=0.2)
    with pytest.raises(ValueError, match="optimizer: expected that of the state"):
        fit(network(), 1, state, optimizer="sgd")
    with pytest.raises(ValueError, match="random_state: expected None"):
        fit(network(), 1, state, random_state=3)
    with pytest.raises(ValueError, match="state: expected moments of 9 parameters"):
        Network([8, 1], backend="numpy").fit(np.ones((8, 4)), np.ones(4), epochs=1, state=state)
    with pytest.raises(ValueError, match="state: expected the 90 samples of the calls before; got 50"):
        network().fit(X[:, :50], Y[:, :50], epochs=1, validation_fraction=0.2, state=state)
    with pytest.raises(ValueError, match="state: expected a TrainingState"):
        fit(network(), 1, {"epoch": 3})


def test_an_optimizer_of_ones_own_cannot_be_written():
    class Mine(Optimizer):
        def update(self, xp, state, theta, gradient):
            theta -= 0.1 * gradient

    state = TrainingState()
    fit(network(), 1, state, optimizer=Mine(0.1))
    with pytest.raises(ValueError, match="optimizer: expected one of SGD, Adam, AdamW to write"):
        state.to_dict()
