"""fit_many: errors, bad input, Ctrl-C and progress."""

from __future__ import annotations

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

from fusedmlp import (
    SGD,
    TrainingDivergedError,
    TrainingState,
    fit_many,
)
from machine import require
from many_networks import BACKENDS, WEIGHT, X, Y, alone, assert_all_same, network

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
