"""fit_many: every network has the bits that it has when it is trained alone; errors, parts of the samples, Ctrl-C."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedmlp import (
    SGD,
    AdamW,
    Callback,
    Network,
    ReduceOnPlateau,
    StepDecay,
    TrainingDivergedError,
    TrainingState,
    fit_many,
)
from fusedmlp.training import many_run
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
    monkeypatch.setattr(many_run, "_LONGEST_STRETCH", 4)
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


# Errors ---------------------------------------------------------------------------------------------------------------


def one_that_diverges(backend, **arguments):
    networks = [network(backend, loss="squared_error", seed=seed, activation="identity") for seed in range(3)]
    return networks, {"optimizer": [SGD(0.01), SGD(1e20), SGD(0.01)], "epochs": 4, **arguments}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_diverges_does_not_end_the_others(backend):
    networks, arguments = one_that_diverges(backend)
    each = [{"X": X, "Y": Y, "epochs": 4, "optimizer": optimizer} for optimizer in arguments["optimizer"]]
    references, expected = alone(networks, each)
    histories = fit_many(networks, X, Y, **arguments)
    assert_all_same(networks, histories, references, expected)
    with pytest.raises(TrainingDivergedError) as caught:
        network(backend, loss="squared_error", seed=1, activation="identity").fit(**each[1])
    assert [history.error for history in histories] == [None, str(caught.value), None]
    assert histories[1].stopped == "diverged in epoch 1"


@pytest.mark.parametrize("backend", BACKENDS)
def test_or_it_ends_them(backend):
    networks, arguments = one_that_diverges(backend, on_error="raise")
    with pytest.raises(TrainingDivergedError, match=r"^networks\[1\]: the loss became"):
        fit_many(networks, X, Y, **arguments)
    assert all(np.isfinite(net.parameters.flat).all() for net in networks)
    assert networks[1].history.error


BAD = {
    "networks: expected at least one": lambda n: ([], {}),
    "networks: expected a sequence": lambda n: (n[0], {}),
    "networks[1]: expected a Network; got 'net'": lambda n: ([n[0], "net"], {}),
    "networks[2]: expected another network; got networks[0] again": lambda n: ([n[0], n[1], n[0]], {}),
    "networks[1]: backend: expected that of networks[0], 'numba-cpu'; got 'numpy'": lambda n: (
        [n[0], network("numpy")],
        {},
    ),
    "networks[1]: dtype: expected that of networks[0], 'float32'; got 'float64'": lambda n: (
        [n[0], network(dtype="float64")],
        {},
    ),
    "epochs: expected 3 values, one per network; got 2": lambda n: (n, {"epochs": [1, 2]}),
    "learning_rate: expected 3 values": lambda n: (n, {"learning_rate": np.ones(4)}),
    "validation_data: expected 3 values": lambda n: (n, {"validation_data": [(X, Y)]}),
    "sample_weight: expected 3 values": lambda n: (n, {"sample_weight": [WEIGHT, None]}),
    "Y: expected 3 values": lambda n: (n, {"Y": [Y, Y]}),
    "callbacks: expected 3 values": lambda n: (n, {"callbacks": [[], []]}),
    "networks[1]: learning_rate: expected a number in (0, inf); got -1.0": lambda n: (
        n,
        {"learning_rate": [1.0, -1.0, 1.0]},
    ),
    "networks[2]: batch_size: expected a whole number >= 1; got 0": lambda n: (n, {"batch_size": [1, 2, 0]}),
    "networks[0]: dropout: expected a number, or 2 of them": lambda n: (n, {"dropout": (0.1, 0.2, 0.3)}),
    "networks[1]: validation_fraction": lambda n: (n, {"validation_fraction": [0.1, 0.999, 0.1]}),
    "networks[0]: validation_fraction: expected 0 where validation_samples is given": lambda n: (
        n,
        {"validation_fraction": 0.1, "validation_samples": [[1]] * 3},
    ),
    "networks[0]: validation_samples: expected None where validation_data is given": lambda n: (
        n,
        {"validation_data": (X, Y), "validation_samples": [[1]] * 3},
    ),
    "samples: expected a list of 3 arrays of indices": lambda n: (n, {"samples": np.arange(3)}),
    "samples: expected 3 arrays of indices, one per network; got 1": lambda n: (n, {"samples": [[1]]}),
    "networks[1]: samples: expected indices from 0 to 89; got 90": lambda n: (n, {"samples": [None, [3, 90], None]}),
    "networks[1]: samples: expected indices from 0 to 89; got -1": lambda n: (n, {"samples": [None, [3, -1], None]}),
    "networks[2]: samples: expected at least one index": lambda n: (n, {"samples": [None, None, []]}),
    "networks[0]: samples: expected whole numbers on one axis": lambda n: (
        n,
        {"samples": [np.ones(90, bool), None, None]},
    ),
    "networks[0]: validation_samples: expected whole numbers": lambda n: (
        n,
        {"validation_samples": [[0.5], None, None]},
    ),
    "networks[1]: samples: the weights of the 2 samples are all 0": lambda n: (
        n,
        {"samples": [None, [0, 1], None], "sample_weight": np.arange(90) > 1},
    ),
    "networks[1]: state: expected a TrainingState": lambda n: (n, {"state": [None, 3, None]}),
    "networks[2]: state: expected a state of its own; networks[0]": lambda n: (
        n,
        {"state": (lambda s: [s, None, s])(TrainingState())},
    ),
    "networks[1]: random_state: expected a generator of its own": lambda n: (
        n,
        {"random_state": np.random.default_rng(1)},
    ),
    "networks[0]: Y: expected shape": lambda n: (n, {"Y": Y[:, :5]}),
    "networks[0]: X: expected shape": lambda n: (n, {"X": X[:5]}),
    "on_error: expected one of record, raise; got 'ignore'": lambda n: (n, {"on_error": "ignore"}),
    "verbose: expected True or False; got 2": lambda n: (n, {"verbose": 2}),
    "networks[0]: weights: expected finite numbers": lambda n: ([spoiled(), *n], {}),
}


def spoiled():
    net = network(seed=9)
    net.parameters.flat[3] = np.nan
    return net


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_found_before_anything_is_trained(message):
    networks = [network(seed=seed) for seed in range(3)]
    before = [(net.parameters.flat.copy(), copy.deepcopy(net._generator)) for net in networks]
    given_networks, arguments = BAD[message](networks)
    with pytest.raises(ValueError, match=r"^" + re.escape(message)):
        fit_many(given_networks, **({"X": X, "Y": Y, "epochs": 1} | arguments))
    for net, (flat, generator) in zip(networks, before, strict=True):
        assert np.array_equal(net.parameters.flat, flat)
        assert net._generator.random() == generator.random()
        assert net.history is None
        net.fit(X, Y, epochs=1)  # the locks are open


def test_a_network_that_is_being_trained_is_named():
    networks = [network(seed=seed) for seed in range(2)]
    caught = []

    def nested(training):
        try:
            fit_many(networks, X, Y, epochs=1)
        except RuntimeError as error:
            caught.append(str(error))

    networks[1].fit(X, Y, epochs=1, callbacks=[nested])
    assert caught
    assert caught[0].startswith("networks[1]: fit: this network is being trained already")


# Ctrl-C ---------------------------------------------------------------------------------------------------------------

LONG_TRAININGS = """
import sys, time
import numpy as np
from fusedmlp import Network, fit_many

backend, hidden = sys.argv[1], int(sys.argv[2])
generator = np.random.default_rng(0)
X = generator.normal(size=(30, 20_000)).astype("float32")
Y = (generator.random((1, 20_000)) < 0.5).astype("float32")
networks = [Network([30, hidden, 1], backend=backend, random_state=seed) for seed in range(5)]
fit_many(networks, X[:, :64], Y[:, :64], epochs=1)
print("ready", flush=True)
before = [net.parameters.flat.copy() for net in networks]
try:
    fit_many(networks, X, Y, epochs=100_000)
except KeyboardInterrupt:
    print(time.time(), flush=True)
    for net, flat in zip(networks, before):
        changed = not np.array_equal(net.parameters.flat, flat)
        losses = len(net.history.loss)
        print(int(changed), losses, len(net.history.seconds), net.history.stopped, flush=True)
"""


@pytest.mark.parametrize(("backend", "hidden"), [("numpy", 64), ("numba-cpu", 64), ("numba-cpu", 2048)])
def test_ctrl_c_ends_all_and_keeps_what_was_done(backend, hidden):
    require(backend)
    command = [sys.executable, "-c", LONG_TRAININGS, backend, str(hidden)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        sent = time.time()
        os.kill(process.pid, signal.SIGINT)
        ended = float(process.stdout.readline())
        lines = [line.split(maxsplit=3) for line in process.stdout]
    assert ended - sent < 2.0  # 0.1 s on a machine with nothing else to do
    assert process.returncode == 0
    assert len(lines) == 5
    for changed, losses, seconds, stopped in lines:
        assert losses == seconds
        assert re.match(r"interrupted (in epoch \d+|before its first epoch)$", stopped.strip())
        assert changed == "1" or losses == "0"
    assert any(changed == "1" for changed, *_ in lines)


# Progress -------------------------------------------------------------------------------------------------------------


def test_one_line_for_every_tenth_of_all(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    networks, arguments = one_that_diverges("numba-cpu")
    fit_many(networks, X, Y, **arguments, verbose=True)
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith("12 of 12 epochs, ")
    assert lines[-1].endswith("3 of 3 networks")
