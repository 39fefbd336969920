"""fit_many: every network has the bits that it has when it is trained alone; parts of the samples."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedmlp import (
    SGD,
    AdamW,
    Callback,
    ReduceOnPlateau,
    StepDecay,
    TrainingState,
    fit_many,
)
from fusedmlp.engines import crowd
from fusedmlp.training import many_run
from many_networks import BACKENDS, WEIGHT, X, Y, alone, assert_all_same, network

# The same bits --------------------------------------------------------------------------------------------------------


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
        "Y": [Y, 1 - Y, Y, Y],
    }
    arguments = [{"X": X} | {name: values[i] for name, values in lists.items()} for i in range(4)]
    arguments = copy.deepcopy([{**each, "learning_rate": float(each["learning_rate"])} for each in arguments])
    references, expected = alone(networks, arguments)
    histories = fit_many(networks, X, **lists)
    assert_all_same(networks, histories, references, expected)


RATES = st.sampled_from([0.0, 0.3, (0.1, 0.0), (0.0, 0.5)])
SETTINGS = st.fixed_dictionaries(
    {
        "optimizer": st.sampled_from(["sgd", "momentum", "nesterov", "adam", "adamw"]),
        "epochs": st.integers(1, 12),
        "batch_size": st.sampled_from([1, 7, 16, 32, 89, 90, 200]),
        "learning_rate": st.sampled_from([None, 0.001, 0.05]),
        "schedule": st.sampled_from(["constant", "step", "exponential", "inverse-scaling", "cosine"]),
        "sample_weight": st.sampled_from([None, WEIGHT]),
        "alpha": st.sampled_from([0.0, 0.5]),
        "shuffle": st.booleans(),
        "validation_fraction": st.sampled_from([0.0, 0.2]),
        "early_stopping": st.booleans(),
        "patience": st.integers(1, 3),
        "tolerance": st.sampled_from([0.0, 1e-4, 0.05]),
        "random_state": st.integers(0, 9),
        "clip_norm": st.sampled_from([None, 0.05]),
        "dropout": RATES,
    }
)
NETWORKS = st.fixed_dictionaries(
    {
        "layers": st.sampled_from([(6, 8, 1), (6, 17, 1)]),
        "activation": st.sampled_from(["tanh", "relu", "gelu", "sigmoid"]),
        "loss": st.sampled_from(["binary_cross_entropy", "squared_error", "sum_squared_error"]),
        "seed": st.integers(0, 9),
    }
)


@pytest.mark.parametrize(
    ("backend", "dtype"), [("numpy", "float64"), ("numba-cpu", "float32"), ("numba-cpu", "float64")]
)
@settings(max_examples=25)
@given(data=st.data())
def test_a_network_among_many_has_the_bits_it_has_alone(backend, dtype, data):
    drawn = data.draw(st.lists(st.tuples(NETWORKS, SETTINGS), min_size=1, max_size=6))
    networks = [network(backend, dtype=dtype, **each) for each, _ in drawn]
    arguments = [{"X": X, "Y": Y} | each for _, each in drawn]
    references, expected = alone(networks, arguments)
    lists = {name: [each[name] for _, each in drawn] for name in drawn[0][1]}
    assert_all_same(networks, fit_many(networks, X, Y, **lists), references, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_in_short_stretches_and_rounds(backend, monkeypatch):
    monkeypatch.setattr(crowd, "_LONGEST_STRETCH", 4)
    monkeypatch.setattr(many_run, "_MOST_BEGUN", 3)
    monkeypatch.setattr(many_run, "_ROUND_SECONDS", 0.0)
    networks = [network(backend, (6, 4 + seed, 1), seed=seed) for seed in range(7)]
    epochs = [1, 17, 3, 22, 2, 15, 16]
    stopping = {"early_stopping": True, "patience": 2, "tolerance": 0.005}
    options = {"optimizer": "adamw", "validation_fraction": 0.2, "dropout": 0.1, **stopping}
    arguments = [{"X": X, "Y": Y, "epochs": epochs[i], **options} for i in range(7)]
    references, expected = alone(networks, arguments)
    histories = fit_many(networks, X, Y, epochs=epochs, **options)
    assert_all_same(networks, histories, references, expected)
    stopped = [history for history in histories if history.stopped.startswith("no improvement")]
    assert any(history.epochs % 4 for history in stopped)  # in the middle of a stretch


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_data_are_one_tuple_or_a_list_of_them(backend):
    first, second = (X[:, :30], Y[:, :30]), (X[:, 40:], Y[:, 40:], WEIGHT[40:])
    for data in (first, [first, None, second]):
        networks = [network(backend, seed=seed) for seed in range(3)]
        each = data if isinstance(data, list) else [data] * 3
        arguments = [{"X": X, "Y": Y, "epochs": 4, "validation_data": one} for one in each]
        references, expected = alone(networks, arguments)
        assert_all_same(networks, fit_many(networks, X, Y, epochs=4, validation_data=data), references, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_go_on_in_many_calls(backend):
    networks = [network(backend, seed=seed) for seed in range(3)]
    options = {"early_stopping": True, "patience": 3, "validation_fraction": 0.2, "dropout": 0.2}
    references, expected = alone(networks, [{"X": X, "Y": Y, "epochs": 9, **options}] * 3)
    states = [TrainingState() for _ in networks]
    for epochs in (4, 3, 2):
        histories = fit_many(networks, X, Y, epochs=epochs, state=states, **options)
    for net, history, reference, wanted in zip(networks, histories, references, expected, strict=True):
        np.testing.assert_array_equal(net.parameters.flat, reference.parameters.flat)
        assert (history.loss, history.validation_loss) == (wanted.loss, wanted.validation_loss)


def test_sparse_inputs_are_shared():
    from scipy import sparse

    generator = np.random.default_rng(2)
    S = sparse.random(64, 400, 0.05, random_state=3, dtype="float32")
    T = (generator.random((1, 400)) < 0.5).astype("float32")
    for given_X in (S, S.toarray()):
        networks = [network(layers=(64, 16, 1), seed=seed) for seed in range(3)]
        options = {"epochs": 3, "validation_fraction": 0.25}
        references, expected = alone(networks, [{"X": given_X, "Y": T, **options}] * 3)
        assert_all_same(networks, fit_many(networks, given_X, T, **options), references, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_of_the_other_type_and_order(dtype):
    for given_X in (X.astype("float32"), np.asfortranarray(X), X[::-1, ::-1]):
        networks = [network(seed=seed, dtype=dtype) for seed in range(3)]
        references, expected = alone(networks, [{"X": given_X, "Y": Y, "epochs": 3}] * 3)
        assert_all_same(networks, fit_many(networks, given_X, Y, epochs=3), references, expected)


# Arguments that are sequences themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dropout", "each"),
    [
        ([0.1, 0.5], [0.1, 0.5]),  # as many as networks: one per network
        ((0.1, 0.5), [(0.1, 0.5)] * 2),  # a tuple of numbers is every network's
        ([(0.0, 0.5), 0.3], [(0.0, 0.5), 0.3]),
        (((0.0, 0.5), (0.3, 0.1)), [(0.0, 0.5), (0.3, 0.1)]),
        (np.array([0.1, 0.5]), [(0.1, 0.5)] * 2),
    ],
)
def test_which_dropout_is_a_list(dropout, each):
    networks = [network(seed=seed) for seed in range(2)]
    references, expected = alone(networks, [{"X": X, "Y": Y, "epochs": 2, "dropout": one} for one in each])
    assert_all_same(networks, fit_many(networks, X, Y, epochs=2, dropout=dropout), references, expected)


def test_weights_and_targets_that_are_lists_of_numbers_are_for_all():
    networks = [network(seed=seed) for seed in range(2)]
    references, expected = alone(networks, [{"X": X, "Y": Y, "epochs": 2, "sample_weight": WEIGHT}] * 2)
    histories = fit_many(networks, X, Y[0].tolist(), epochs=2, sample_weight=WEIGHT.tolist())
    assert_all_same(networks, histories, references, expected)


def test_callbacks_are_for_all_or_a_list_per_network():
    seen = []

    class Remembers(Callback):
        def on_epoch_end(self, training):
            seen.append((training.network, training.epoch))

    networks = [network(seed=seed) for seed in range(3)]
    fit_many(networks, X, Y, epochs=2, callbacks=iter([Remembers()]))
    assert seen == [(net, epoch) for net in networks for epoch in range(2)]
    seen.clear()
    fit_many(networks, X, Y, epochs=1, callbacks=[(), [Remembers()], ()])
    assert seen == [(networks[1], 0)]


# Parts of the samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_have_the_bits_of_copies(backend):
    parts = [np.arange(0, 60), np.random.default_rng(1).integers(0, 90, 90), None, np.arange(89, 40, -1, dtype="int32")]
    networks = [network(backend, seed=seed) for seed in range(4)]
    copies = [
        {"X": X, "Y": Y, "sample_weight": WEIGHT}
        if part is None
        else {"X": X[:, part], "Y": Y[:, part], "sample_weight": WEIGHT[part]}
        for part in parts
    ]
    options = {"epochs": 3, "validation_fraction": [0.0, 0.2, 0.0, 0.1]}
    references, expected = alone(
        networks,
        [
            each | {"epochs": 3, "validation_fraction": f}
            for each, f in zip(copies, options["validation_fraction"], strict=True)
        ],
    )
    histories = fit_many(networks, X, Y, sample_weight=WEIGHT, samples=parts, **options)
    assert_all_same(networks, histories, references, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_samples_are_columns_of_X(backend):
    folds = [np.arange(start, 90, 3) for start in range(3)]
    rest = [np.setdiff1d(np.arange(90), fold) for fold in folds]
    networks = [network(backend, seed=seed) for seed in range(3)]
    references, expected = alone(
        networks,
        [
            {"X": X[:, a], "Y": Y[:, a], "validation_data": (X[:, b], Y[:, b]), "epochs": 5, "early_stopping": True}
            for a, b in zip(rest, folds, strict=True)
        ],
    )
    histories = fit_many(networks, X, Y, epochs=5, early_stopping=True, samples=rest, validation_samples=folds)
    assert_all_same(networks, histories, references, expected)
