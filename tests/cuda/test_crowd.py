"""Many networks at once on the fake GPU: the bits that each has alone, and the training that numpy makes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from harness import emulator
from harness.fake_pool import POOL

from fusedmlp import SGD, AdamW, Network, TrainingDivergedError, TrainingState, fit_many
from fusedmlp.backends.cupy import crowd_launches
from fusedmlp.engines import crowd
from fusedmlp.model.parameters import Parameters
from fusedmlp.training import many_run

GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(6, 70))
Y = (GENERATOR.random((1, 70)) < 0.4).astype(float)
WEIGHT = np.linspace(0.1, 2, 70)
TOLERANCE = {"float64": 1e-11, "float32": 2e-4}
HISTORY = ("loss", "validation_loss", "learning_rate", "best_epoch", "stopped", "samples", "error")
FIVE_RULES = [
    {"optimizer": SGD(0.3), "clip_norm": 0.05, "batch_size": 9, "alpha": 0.3},
    {
        "optimizer": SGD(0.1, 0.9),
        "schedule": "cosine",
        "sample_weight": WEIGHT,
        "batch_size": 33,
        "validation_data": (X, Y),
    },
    {"optimizer": SGD(0.1, 0.9, nesterov=True), "validation_fraction": 0.3, "alpha": 0.5, "sample_weight": WEIGHT},
    {"optimizer": "adam", "batch_size": 100, "validation_fraction": 0.1, "epochs": 5, "early_stopping": True},
    {
        "optimizer": AdamW(0.02),
        "batch_size": 16,
        "shuffle": False,
        "validation_data": (X[:, 5:50], Y[:, 5:50], WEIGHT[5:50]),
    },
]


def network(backend, seed=0, layers=(6, 8, 1), activation="tanh", loss="binary_cross_entropy", dtype="float64", **more):
    return Network(layers, activation, loss, dtype=dtype, backend=backend, random_state=seed, **more)


def flat_of(net):
    return net.backend.to_numpy(net.parameters.flat)


def assert_same(net, other, draws=True):
    """The same weights, history and generator, to the bit."""
    np.testing.assert_array_equal(flat_of(net), flat_of(other))
    for name in HISTORY:
        assert repr(getattr(net.history, name)) == repr(getattr(other.history, name)), name  # NaN is NaN
    assert not draws or net._generator.random() == other._generator.random()


def assert_close(net, reference, tolerance):
    np.testing.assert_allclose(flat_of(net), flat_of(reference), rtol=0, atol=tolerance)
    np.testing.assert_allclose(net.history.loss, reference.history.loss, rtol=tolerance)
    np.testing.assert_allclose(net.history.validation_loss, reference.history.validation_loss, rtol=tolerance)
    assert (net.history.stopped, net.history.best_epoch) == (reference.history.stopped, reference.history.best_epoch)


def fit(net, **arguments):
    with contextlib.suppress(TrainingDivergedError):
        net.fit(**arguments)
    return net


def check(backend, made, arguments, data=(X, Y), reference=True):
    """Train networks among each other, alone, and on numpy; the networks.

    Parameters
    ----------
    made : list of dict
        What each network is made of.
    arguments : list of dict
        Of `Network.fit`; what one of them lacks has its default.
    """
    arguments = [{"epochs": 3, "random_state": number} | each for number, each in enumerate(arguments)]
    many = [network(backend, number, **each) for number, each in enumerate(made)]
    defaults = {"batch_size": 32, "alpha": 0.0, "validation_fraction": 0.0, "early_stopping": False, "shuffle": True}
    defaults |= {"optimizer": "adam", "schedule": "constant", "patience": 10, "learning_rate": None}
    lists = {name: [each.get(name, defaults.get(name)) for each in arguments] for each in arguments for name in each}
    fit_many(many, *data, **lists)
    for number, net in enumerate(many):
        assert_same(net, fit(network(backend, number, **made[number]), X=data[0], Y=data[1], **arguments[number]))
        if reference:
            wanted = network("numpy", number, **(made[number] | {"dtype": "float64"}))
            tolerance = TOLERANCE[net.architecture.dtype]
            assert_close(net, fit(wanted, X=data[0], Y=data[1], **arguments[number]), tolerance)
    return many


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_rule(resident, cupy, dtype):
    """Each with options of its own; the loss is a mean or a sum."""
    check(resident, [{"dtype": dtype}] * 5, FIVE_RULES)
    summed = {"dtype": dtype, "loss": "sum_squared_error"}
    check(resident, [summed] * 5, [each | {"batch_size": 40, "alpha": 0.1, "clip_norm": 1.0} for each in FIVE_RULES])
    assert set(cupy.launches) >= {f"resident_{dtype}"}
    assert not any(name.startswith(("sgd", "adam")) for name in cupy.launches)


def test_networks_of_a_shape_share_a_launch(resident, cupy, monkeypatch):
    monkeypatch.setattr(crowd, "_STRETCH_SECONDS", 60)  # the emulator is slow
    monkeypatch.setattr(many_run, "_ROUND_SECONDS", np.inf)
    monkeypatch.setattr(crowd_launches, "POLL_SECONDS", 60)
    nets = [network(resident, seed) for seed in range(4)]
    histories = fit_many(nets, X, Y, epochs=[4, 2, 3, 4], batch_size=32, validation_fraction=0.2)
    assert cupy.launches == ["resident_float64"]
    assert [history.epochs for history in histories] == [4, 2, 3, 4]
    assert all(0 < seconds < 60 for history in histories for seconds in history.seconds)
    cupy.launches.clear()
    network(resident).fit(X, Y, epochs=5, batch_size=32)
    assert cupy.launches == ["resident_float64"]


SHAPES = [
    {"layers": (6, 1), "loss": "binary_cross_entropy"},
    {"layers": (6, 40, 1), "activation": "relu", "loss": "binary_cross_entropy"},
    {"layers": (6, 9, 11, 1), "activation": "sigmoid", "loss": "poisson"},
    {"layers": (6, 60, 1), "loss": "sum_squared_error"},
    {"layers": (6, 9, 11, 1), "activation": "sigmoid", "loss": "poisson", "bias": False},
    {"layers": (6, 60, 1), "loss": "squared_error"},
    {"layers": (6, 40, 1), "activation": "relu", "loss": "binary_cross_entropy"},
]


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_several_shapes_and_clusters(resident, monkeypatch, cupy, layout):
    """A block or a cluster for each, in streams of their own; all blocks of a cluster stop at the same epoch."""
    monkeypatch.setattr(type(resident.launcher), "shared_bytes", lambda self: 22_000)
    data = (np.asarray(X, order=layout) if layout != "strided" else np.repeat(X, 2, axis=1)[:, ::2]), Y
    options = {"batch_size": 20, "validation_fraction": 0.3, "early_stopping": True, "patience": 1, "epochs": 4}
    rates = [{"learning_rate": rate} for rate in (0.01, 0.03, 0.1, 0.3, 0.03, 0.5, 1.0)]
    nets = check(
        resident, [each | {"dtype": "float32"} for each in SHAPES], [options | each for each in rates], data, False
    )
    assert {"resident_float32", "resident_cluster_float32"} <= set(cupy.launches)
    assert {net.history.stopped[:2] for net in nets} == {"al", "no"}


def test_early_stopping_ends_networks_at_epochs_of_their_own(resident):
    options = {"early_stopping": True, "validation_fraction": 0.3, "epochs": 30, "batch_size": 25, "tolerance": 1e-4}
    options |= {"learning_rate": 0.003}
    each = [{"patience": 1}, {"patience": 3}, {"patience": 2, "validation_fraction": 0.0, "tolerance": 0.02}]
    each += [{"epochs": 5, "patience": 6}, {"tolerance": 0.3, "patience": 5}]
    nets = check(resident, [{}] * 5, [options | own for own in each])
    epochs = [net.history.epochs for net in nets]
    assert len(set(epochs)) == 5, epochs
    assert sum(net.history.stopped.startswith("no improvement") for net in nets) == 4


@pytest.mark.parametrize("order", ["C", "F"])
def test_folds_are_columns_of_one_table(resident, order):
    """Some columns come twice; sample weights and L2 terms by the parts."""
    table = np.asarray(X, order=order)
    parts = [np.r_[0:50], np.r_[60:70, 5:30, 5:10], np.r_[69:20:-1]]
    rest = [np.r_[50:70], np.r_[40:60], np.r_[3:17, 3]]
    options = {"epochs": 3, "batch_size": 16, "alpha": 0.1, "random_state": [1, 2, 3], "learning_rate": 0.05}
    options |= {"early_stopping": True, "shuffle": [True, False, True]}
    nets = [network(resident, seed) for seed in range(3)]
    del POOL.sizes[:]
    fit_many(nets, table, Y, sample_weight=WEIGHT, samples=parts, validation_samples=rest, **options)
    for number, (net, part, held) in enumerate(zip(nets, parts, rest, strict=True)):
        own = options | {"random_state": number + 1, "shuffle": options["shuffle"][number]}
        own |= {"X": table[:, part], "Y": Y[:, part], "sample_weight": WEIGHT[part]}
        own |= {"validation_data": (table[:, held], Y[:, held], WEIGHT[held])}
        assert_same(net, fit(network(resident, number), **own))
        assert_close(net, fit(network("numpy", number), **own), TOLERANCE["float64"])


def test_x_is_on_the_gpu_once(resident):
    table = np.repeat(X, 40, axis=1)
    targets = np.repeat(Y, 40, axis=1)
    nets = [network(resident, seed) for seed in range(4)]
    del POOL.sizes[:]
    fit_many(nets, table, targets, epochs=1, batch_size=1400, validation_fraction=0.25)
    assert sum(size > 0.7 * table.nbytes for size in POOL.sizes) == 1


def test_a_network_that_diverges_does_so_alone(resident):
    """By its loss in the middle of a stretch; by weights that the last step of an epoch made infinite."""
    optimizers = ["adam", SGD(1e200), SGD(1e305), SGD(0.1), SGD(30.0)]
    made = [{"loss": "squared_error"}] * 4 + [{"loss": "squared_error", "activation": "relu"}]
    options = [{"optimizer": each, "batch_size": 70, "epochs": 12} for each in optimizers]
    options[2]["learning_rate"] = 1e308
    nets = check(resident, made, options, (X, 3 + Y), reference=False)
    errors = [net.history.error for net in nets]
    assert [error is None for error in errors] == [True, False, False, True, False]
    assert errors[1].startswith("the loss became")
    assert errors[2].startswith("the weights became NaN or infinite")
    assert all(np.isfinite(flat_of(net)).all() for net in nets)


def test_a_training_loss_that_overflows_ends_a_training_whose_validation_loss_is_finite(resident):
    options = {"optimizer": SGD(1e-200), "validation_data": (X, Y), "epochs": 3}
    (net,) = check(resident, [{"loss": "squared_error"}], [options], (X, 1e170 * Y), reference=False)
    assert net.history.stopped == "diverged in epoch 1"
    assert np.isfinite(net.history.validation_loss).all()


def test_a_cluster_agrees_on_weights_that_one_block_has(resident, monkeypatch, cupy):
    """The first unit's activation is close to the largest number: its output weight, one block's, becomes infinite."""
    monkeypatch.setattr(type(resident.launcher), "shared_bytes", lambda self: 32_000)
    nets = [network(resident, 0, (6, 60, 1), "relu") for _ in range(3)]
    for net in nets:
        weights = flat_of(net)
        parameters = Parameters(net.architecture, weights)
        parameters.biases[0][0], parameters.weights[1][0] = 1e308, 1e-308
        net.parameters.flat[...] = net.backend.asarray(weights)
    options = {"epochs": 3, "batch_size": 70, "optimizer": SGD(0.1)}
    fit_many(nets[:2], X, 1 - Y, **options)
    fit(nets[2], X=X, Y=1 - Y, **options)
    assert "resident_cluster_float64" in cupy.launches
    for net in nets[:2]:
        assert_same(net, nets[2], draws=False)
        assert net.history.error.startswith("the weights became NaN or infinite in epoch 1")


def test_the_bits_do_not_depend_on_the_launches(resident, cupy, monkeypatch):
    """A launch may end anywhere: between batches to train on, among those to validate on."""
    options = {"epochs": 3, "batch_size": 12, "early_stopping": True, "validation_fraction": 0.5, "alpha": 0.1}
    options |= {"sample_weight": WEIGHT, "patience": 2, "learning_rate": 0.3}
    nets = [network(resident, seed) for seed in range(2)]
    fit_many(nets, X, Y, **options)
    monkeypatch.setattr(crowd_launches, "POLL_SECONDS", 0.0)
    for first in (1, 2, 4):
        monkeypatch.setattr(crowd_launches, "FIRST_BATCHES", first)
        cupy.launches.clear()
        again = [network(resident, seed) for seed in range(2)]
        fit_many(again, X, Y, **options)
        assert cupy.launches.count("resident_float64") > 8
        for net, other in zip(nets, again, strict=True):
            assert_same(net, other, draws=False)


def test_a_training_goes_on_and_may_be_watched(resident, cupy, capsys):
    """Seven epochs are three and four; progress shows each epoch; a schedule fails when its epoch comes."""
    options = {"batch_size": 20, "validation_fraction": 0.3, "early_stopping": True, "patience": 6}
    whole, parts, watched, failing = (network(resident) for _ in range(4))
    whole.fit(X, Y, epochs=7, **options)
    state = TrainingState()
    for epochs in (3, 4):
        fit_many([parts], X, Y, epochs=epochs, state=[state], **options)
    assert_same(whole, parts, draws=False)
    watched.fit(X, Y, epochs=7, verbose=True, **options)
    assert_same(whole, watched, draws=False)
    assert capsys.readouterr().err.count("epoch") == 7
    assert all(name != "adam_float64_packed" for name in cupy.launches)

    def schedule(epoch, rate):
        if epoch == 2:
            raise RuntimeError("no rate")
        return rate

    with pytest.raises(RuntimeError, match="no rate"):
        failing.fit(X, Y, epochs=7, schedule=schedule, **options)
    assert failing.history.loss == whole.history.loss[:2]


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_the_bits_do_not_depend_on_the_order_of_threads(resident, order):
    with emulator.thread_order(order):
        net = fit(network(resident), X=X, Y=Y, epochs=2, validation_fraction=0.4, early_stopping=True)
    assert_close(net, fit(network("numpy"), X=X, Y=Y, epochs=2, validation_fraction=0.4, early_stopping=True), 1e-11)
