"""Many networks at once on the fake GPU: the bits that each has alone, and the training that numpy makes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from harness import emulator
from harness.fake_pool import POOL

from fusedmlp import SGD, Adam, AdamW, Network, TrainingDivergedError, fit_many
from fusedmlp.backends.cupy import crowd_launches, resident_costs
from fusedmlp.engines import crowd
from fusedmlp.engines.crowd import Best, End, Stretch
from fusedmlp.engines.options import EpochOptions
from fusedmlp.engines.samples import Samples
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Parameters
from fusedmlp.training import many_run
from fusedmlp.training.interrupts import Interrupts

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


@pytest.fixture
def resident(emulated, monkeypatch):
    """The fake GPU, where every network that fits stays resident."""
    monkeypatch.setattr(resident_costs, "CAPTURED_STEP_SECONDS", np.inf)
    return emulated


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


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_the_bits_do_not_depend_on_the_order_of_threads(resident, order):
    with emulator.thread_order(order):
        net = fit(network(resident), X=X, Y=Y, epochs=2, validation_fraction=0.4, early_stopping=True)
    assert_close(net, fit(network("numpy"), X=X, Y=Y, epochs=2, validation_fraction=0.4, early_stopping=True), 1e-11)


@pytest.mark.parametrize("polls", [1, 2, 4, 8])
def test_an_interruption_leaves_whole_batches(resident, monkeypatch, polls):
    """Launches of two batches, five batches an epoch: of the second network, which validates, six."""
    monkeypatch.setattr(crowd_launches, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(crowd_launches, "FIRST_BATCHES", 2)
    monkeypatch.setattr(crowd_launches.Launches, "remember_pace", lambda self, stretches: None)
    count = []

    def poll(self):
        count.append(1)
        if len(count) == polls:
            raise KeyboardInterrupt

    monkeypatch.setattr(Interrupts, "poll", poll)
    nets = [network(resident, seed) for seed in range(2)]
    data = X[:, :50], Y[:, :50]
    validation = [None, (X[:, 50:], Y[:, 50:])]
    with pytest.raises(KeyboardInterrupt):
        fit_many(nets, *data, epochs=9, batch_size=10, validation_data=validation)
    batches = 0 if polls == 1 else polls  # the second launch and later ones have one batch
    for number, net in enumerate(nets):
        reference = network("numpy", number)
        state = OptimizerState(Adam(), np, reference.parameters)
        whole, rest = divmod(batches, 5 + number)
        losses = []
        for epoch in range(whole + 1):
            order = reference._generator.permutation(50) if epoch < whole or rest else np.arange(0)
            if epoch == whole:
                order = order[: 10 * min(rest, 5)]
            if len(order):
                loss = reference.engine.train_epoch(reference.parameters, state, *data, None, order, 10, EpochOptions())
                losses.append(loss)
        np.testing.assert_allclose(flat_of(net), flat_of(reference), rtol=0, atol=1e-12)
        np.testing.assert_allclose(net.history.loss, losses[:whole])
        assert len(net.history.validation_loss) == (whole if number else 0)
        assert net.history.stopped == f"interrupted in epoch {whole + 1}"
        assert net._generator.random() == reference._generator.random()


def stretch_of(net, epochs, **more):
    state = OptimizerState(Adam(), net.backend.xp, net.parameters)
    samples = Samples(*(net.backend.asarray(x) for x in (X, Y)))
    best = Best(net.parameters.flat.copy())
    return Stretch(net.engine, net.parameters, state, samples, None, 35, [0.01] * epochs, None, EpochOptions(), best)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "sum_squared_error"])
def test_an_l2_term_divided_by_weights(resident, cupy, loss):
    """As scikit-learn has it: in a stretch, in an epoch alone, and on numpy. A batch may have no weight at all."""
    weight = np.where(np.arange(70) < 40, 0, WEIGHT)[None]
    options = EpochOptions(alpha=0.7, penalty_by_weight=True, loss_factor=0.5, clip_norm=0.3)
    results = []
    for backend in (resident, resident, "numpy"):
        net = network(backend, loss=loss)
        arrays = [net.backend.asarray(x) for x in (X, Y, weight)]
        state = OptimizerState(Adam(), net.backend.xp, net.parameters)
        best = Best(net.parameters.flat.copy())
        stretch = Stretch(
            net.engine, net.parameters, state, Samples(*arrays), None, 35, [0.01] * 2, None, options, best
        )
        if not results:
            assert backend.crowd().takes(net.engine, Adam(), stretch.train, None, 35)
            backend.crowd().run([stretch], lambda: None)
        else:
            state.learning_rate = 0.01
            args = net.parameters, state, *arrays, None, 35, options
            stretch.losses = [net.engine.train_epoch(*args) for _ in range(2)]
        results.append((stretch.losses, flat_of(net)))
    assert set(cupy.launches) == {"resident_float64"}
    assert repr(results[0]) == repr(results[1])
    np.testing.assert_allclose(results[0][0], results[2][0], rtol=1e-11)
    np.testing.assert_allclose(results[0][1], results[2][1], rtol=0, atol=1e-11)


def test_meanwhile_is_called_once_before_the_launches_are_waited_for(resident, monkeypatch):
    monkeypatch.setattr(crowd_launches, "FIRST_BATCHES", 2)
    gpu_crowd, events = resident.crowd(), []
    stretches = [stretch_of(network(resident), 2), stretch_of(network(resident, layers=(6, 3, 1)), 2)]
    monkeypatch.setattr(
        crowd_launches.Launches,
        "wait",
        lambda self, wait=crowd_launches.Launches.wait: (events.append("w"), wait(self)),
    )
    assert all(gpu_crowd.takes(each.engine, Adam(), each.train, None, 35) for each in stretches)
    gpu_crowd.run(stretches, lambda: events.append("p"), lambda: events.append("m"))
    assert "".join(events).startswith("pmwwp")
    assert events.count("m") == 1
    assert [stretch.end for stretch in stretches] == [End.DONE] * 2
    assert [stretch.optimizer_state.t for stretch in stretches] == [4, 4]
    assert gpu_crowd.workers == 4  # two multiprocessors, two blocks each
    assert not gpu_crowd.can_share(stretches[0].engine, stretches[0].train, 35)

    def fails():
        raise ValueError("meanwhile")

    stretches = [stretch_of(network(resident), 3)]
    with pytest.raises(ValueError, match="meanwhile"):
        gpu_crowd.run(stretches, lambda: None, fails)
    assert stretches[0].end in (End.INTERRUPTED, End.DONE)
    assert stretches[0].optimizer_state.t >= 1
    assert len(stretches[0].losses) == stretches[0].optimizer_state.t // 2


def test_what_the_crowd_does_not_take_is_trained_in_turn(emulated, cupy):
    """Dropout, callbacks, samples in host memory, activations without CUDA code, steps that are long."""
    gpu_crowd = emulated.crowd()
    nets = [network(emulated, 0), network(emulated, 1, activation="gelu"), network(emulated, 2, layers=(6, 20000, 1))]
    samples = Samples(*(emulated.asarray(x) for x in (X, Y)))
    takes = [gpu_crowd.takes(net.engine, Adam(), samples, samples, 32) for net in nets]
    assert takes == [True, False, False]
    assert not gpu_crowd.takes(nets[0].engine, Adam(), samples, samples, 32, drops=True)
    emulated.resident_bytes = 0
    host = nets[0]._samples(X, Y, None)
    emulated.resident_bytes = None
    assert not gpu_crowd.takes(nets[0].engine, Adam(), host, None, 32)
    assert not gpu_crowd.takes(nets[0].engine, Adam(), samples, host, 32)
    made = [{}, {"activation": "gelu"}, {}, {}]
    options = [{}, {}, {"dropout": 0.3}, {"callbacks": [lambda training: None]}]
    arguments = [{"dropout": 0.0, "callbacks": [], "epochs": 2, "validation_fraction": 0.2} | each for each in options]
    check(emulated, made, arguments)
