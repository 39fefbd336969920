"""fit: optimizers, batches, validation, early stopping, schedules, callbacks, history, and what goes wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.neural_network import _stochastic_optimizers as sklearn_optimizers

from fusedmlp import (
    SGD,
    Adam,
    Callback,
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    Network,
    ReduceOnPlateau,
    StepDecay,
    TrainingDivergedError,
)
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import OPTIMIZERS, OptimizerState
from fusedmlp.model.parameters import Parameters
from fusedmlp.training.schedules import SCHEDULES

rng = np.random.default_rng(0)
X = rng.normal(size=(4, 60))
Y = (X[:1] * X[1:2] > 0).astype(float)


def network(**changes):
    """A small network in float64 on numpy."""
    return Network(**{"layer_sizes": [4, 8, 1], "dtype": "float64", "backend": "numpy", "random_state": 0, **changes})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(0.05), lambda p: sklearn_optimizers.SGDOptimizer(p, 0.05, momentum=0, nesterov=False)),
        (SGD(0.05, 0.9), lambda p: sklearn_optimizers.SGDOptimizer(p, 0.05, momentum=0.9, nesterov=False)),
        (SGD(0.05, 0.9, True), lambda p: sklearn_optimizers.SGDOptimizer(p, 0.05, momentum=0.9, nesterov=True)),
        (Adam(), lambda p: sklearn_optimizers.AdamOptimizer(p)),
        (Adam(0.01, 0.8, 0.9, 1e-6), lambda p: sklearn_optimizers.AdamOptimizer(p, 0.01, 0.8, 0.9, 1e-6)),
    ],
)
def test_optimizers_take_the_steps_of_scikit_learn(ours, theirs):
    generator = np.random.default_rng(1)
    theta = generator.normal(size=50)
    expected = [theta.copy()]
    other = theirs(expected)
    state = OptimizerState(ours, np, Parameters(Architecture([49, 1]), theta))
    for _ in range(10):
        gradient = generator.normal(size=50)
        kept = gradient.copy()
        state.step(np, theta, gradient)
        other.update_params(expected, [gradient])
        assert np.array_equal(gradient, kept)
        np.testing.assert_allclose(theta, expected[0], rtol=1e-12, atol=1e-14)


def test_an_epoch_is_its_batches_by_hand():
    net, by_hand = network(), network()
    history = net.fit(X, Y, "sgd", epochs=2, batch_size=16, learning_rate=0.3, alpha=0.2, random_state=4)
    order_of = np.random.default_rng(4)
    for epoch in range(2):
        order, total = order_of.permutation(60), 0.0
        for start in range(0, 60, 16):
            batch = order[start : start + 16]
            J, gradients = by_hand.loss_and_gradients(X[:, batch], Y[:, batch], alpha=0.2)
            by_hand.parameters.flat[...] -= 0.3 * gradients.flat
            total += J * len(batch)
        assert history.loss[epoch] == pytest.approx(total / 60, rel=1e-12)
    np.testing.assert_allclose(net.parameters.flat, by_hand.parameters.flat, rtol=1e-12)


def test_without_shuffling_and_full_batch():
    net, by_hand = network(), network()
    net.fit(X, Y, SGD(0.1), epochs=1, batch_size=1000, shuffle=True)
    by_hand.parameters.flat[...] -= 0.1 * by_hand.loss_and_gradients(X, Y)[1].flat
    np.testing.assert_allclose(net.parameters.flat, by_hand.parameters.flat, rtol=1e-12)
    in_order = [network() for _ in range(2)]
    for net, seed in zip(in_order, (1, 2), strict=True):
        net.fit(X, Y, epochs=2, shuffle=False, random_state=seed)
    assert np.array_equal(in_order[0].parameters.flat, in_order[1].parameters.flat)


def test_sum_squared_error_reports_the_sum():
    net = network(loss="sum_squared_error", bias=False)
    expected = net.loss(X, Y)
    history = net.fit(X, Y, SGD(1e-12), epochs=1, batch_size=7)
    assert history.loss[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, Adam(0.01)])
def test_every_optimizer_learns(optimizer):
    rate = 0.01 if optimizer == "adam" else 0.3
    history = network(hidden_activation="tanh").fit(X, Y, optimizer, epochs=60, batch_size=10, learning_rate=rate)
    assert history.loss[-1] < 0.7 * history.loss[0]
    assert history.epochs == len(history.seconds) == len(history.learning_rate) == 60
    assert history.samples_per_second > 0
    assert history.stopped == "all 60 epochs done"
    assert history.validation_loss == []


def test_memory_order_of_X_does_not_matter():
    nets = [network() for _ in range(2)]
    for net, order in zip(nets, "CF", strict=True):
        net.fit(np.asarray(X, order=order), Y, epochs=3, random_state=0)
    np.testing.assert_allclose(nets[0].parameters.flat, nets[1].parameters.flat, rtol=1e-10)


def test_seeds():
    def flat(**seeds):
        net = network(random_state=seeds.get("net", 0))
        net.fit(X, Y, epochs=2, random_state=seeds.get("fit"))
        return net.parameters.flat

    assert np.array_equal(flat(), flat())
    assert np.array_equal(flat(fit=3), flat(fit=3))
    assert not np.array_equal(flat(fit=3), flat(fit=4))
    assert not np.array_equal(flat(net=1), flat(net=2))
    network(random_state=np.random.RandomState(0)).fit(X, Y, epochs=1, random_state=np.random.RandomState(0))


def test_a_second_fit_goes_on():
    net = network()
    first = net.fit(X, Y, epochs=20)
    second = net.fit(X, Y, epochs=20)
    assert second.loss[0] < first.loss[0]


def test_validation():
    given = network().fit(X, Y, epochs=3, validation_data=(X[:, :10], Y[:, :10]))
    assert len(given.validation_loss) == 3
    assert given.samples == 60
    net = network()
    split = net.fit(X, Y, epochs=3, validation_fraction=0.25, sample_weight=np.ones(60))
    assert len(split.validation_loss) == 3
    assert split.samples == 45
    # The weights of the samples held back go with them.
    weight, order = np.r_[np.zeros(20), np.linspace(1, 3, 40)], np.random.default_rng(7).permutation(60)[:15]
    net = network()
    drawn = net.fit(X, Y, epochs=1, validation_fraction=0.25, sample_weight=weight, random_state=7)
    by_hand = net.loss(X[:, order], Y[:, order], weight[order])
    assert drawn.validation_loss[0] == pytest.approx(by_hand, rel=1e-12)
    net = network()
    weighted = net.fit(X, Y, epochs=1, validation_data=(X, Y, np.r_[np.ones(10), np.zeros(50)]))
    assert weighted.validation_loss[0] == pytest.approx(net.loss(X[:, :10], Y[:, :10]), rel=1e-12)


def test_early_stopping_keeps_the_best_weights():
    generator = np.random.default_rng(5)
    noise = generator.normal(size=(4, 30)), generator.integers(0, 2, (1, 30))
    net = network(layer_sizes=[4, 50, 1])
    history = net.fit(
        *noise, epochs=500, learning_rate=0.03, validation_data=(X, Y), early_stopping=True, patience=5, tolerance=0
    )
    assert history.epochs < 500
    assert history.best_epoch == int(np.argmin(history.validation_loss))
    assert history.epochs == history.best_epoch + 1 + 5
    assert "no improvement" in history.stopped
    assert net.loss(X, Y) == pytest.approx(min(history.validation_loss), rel=1e-12)


def test_early_stopping_on_the_training_loss():
    history = network().fit(X, Y, SGD(1e-9), epochs=50, early_stopping=True, patience=3, tolerance=1e-3)
    assert history.epochs == 4


def test_schedules():
    assert [StepDecay(2, 0.1)(e, 1.0) for e in range(5)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert [ExponentialDecay(0.5)(e, 8.0) for e in range(4)] == [8, 4, 2, 1]
    assert [InverseScaling(1)(e, 6.0) for e in range(3)] == [6, 3, 2]
    assert [CosineDecay(2, 0.5)(e, 1.0) for e in range(4)] == pytest.approx([1, 0.75, 0.5, 0.5])
    for name in SCHEDULES:
        history = network().fit(X, Y, "sgd", epochs=9, learning_rate=0.2, schedule=name)
        assert history.learning_rate[0] == 0.2
        assert history.learning_rate[-1] == 0.2 if name == "constant" else history.learning_rate[-1] < 0.2
    history = network().fit(X, Y, "sgd", epochs=3, learning_rate=0.5, schedule=lambda epoch, rate: rate / (1 + epoch))
    assert history.learning_rate == pytest.approx([0.5, 0.25, 0.5 / 3])


def test_a_rate_of_zero_changes_nothing():
    net = network()
    before = net.parameters.flat.copy()
    net.fit(X, Y, "sgd", epochs=2, schedule=lambda epoch, rate: 0.0)
    assert np.array_equal(net.parameters.flat, before)


def test_reduce_on_plateau():
    history = network().fit(
        X, Y, SGD(1e-9), epochs=7, callbacks=[ReduceOnPlateau(factor=0.5, patience=2, tolerance=1e-3, smallest=0)]
    )
    assert history.learning_rate == pytest.approx([1e-9, 1e-9, 1e-9, 5e-10, 5e-10, 2.5e-10, 2.5e-10])
    floor = network().fit(X, Y, SGD(1e-9), epochs=7, callbacks=[ReduceOnPlateau(tolerance=1e-3, smallest=1e-9)])
    assert floor.learning_rate == [1e-9] * 7


def test_callbacks():
    calls = []

    class Recorder(Callback):
        def on_fit_begin(self, training):
            calls.append("begin")

        def on_epoch_end(self, training):
            calls.append(training.epoch)
            assert len(training.history.loss) == training.epoch + 1
            if training.epoch == 2:
                training.stop("enough")

        def on_fit_end(self, training):
            calls.append("end")

    losses = []
    history = network().fit(X, Y, epochs=10, callbacks=[Recorder(), lambda training: losses.append(training.epochs)])
    assert calls == ["begin", 0, 1, 2, "end"]
    assert losses == [10, 10, 10]
    assert history.stopped == "enough"

    def fail(training):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        network().fit(X, Y, epochs=3, callbacks=[fail])


def test_divergence_stops_and_puts_the_best_weights_back():
    net = network(hidden_activation="identity", loss="squared_error")
    losses = []
    with pytest.raises(TrainingDivergedError, match=r"epoch \d+ at learning rate 100"):
        net.fit(X, Y, SGD(100.0), epochs=500, callbacks=[lambda training: losses.append(training.history.loss[-1])])
    assert all(map(math.isfinite, losses))
    assert np.isfinite(net.parameters.flat).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer: expected one of sgd, momentum, nesterov, adam, adamw; got 'lbfgs'"),
        ({"epochs": 0}, "epochs: expected a whole number >= 1; got 0"),
        ({"epochs": 1.5}, "epochs: expected a whole number"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1"),
        ({"batch_size": True}, "batch_size: expected a whole number"),
        ({"learning_rate": 0}, r"learning_rate: expected a number in \(0, inf\); got 0"),
        ({"learning_rate": np.nan}, "learning_rate: expected"),
        ({"schedule": "linear"}, "schedule: expected one of constant"),
        ({"schedule": lambda epoch, rate: -1}, "schedule: expected a number"),
        ({"schedule": lambda epoch, rate: "a"}, "schedule: expected a number"),
        ({"callbacks": print}, "callbacks: expected an iterable"),
        ({"shuffle": "no"}, "shuffle: expected True or False; got 'no'"),
        ({"early_stopping": 1}, "early_stopping: expected True or False"),
        ({"validation_data": (X, Y, np.ones(3))}, "validation_sample_weight: expected shape"),
        ({"alpha": -0.1}, r"alpha: expected a number in \[0, inf\)"),
        ({"validation_fraction": 1.0}, r"validation_fraction: expected a number in \[0, 1\); got 1.0"),
        ({"validation_fraction": 0.5, "validation_data": (X, Y)}, "validation_fraction: expected 0 where"),
        ({"validation_data": (X,)}, r"validation_data: expected \(X, Y\)"),
        ({"validation_data": (X.T, Y)}, "validation_X: expected shape"),
        ({"validation_data": (X, Y + 1)}, "validation_Y: binary_cross_entropy expects"),
        ({"patience": 0}, "patience: expected"),
        ({"tolerance": -1}, "tolerance: expected"),
        ({"callbacks": [3]}, "callbacks: expected"),
        ({"random_state": "x"}, "random_state: expected"),
    ],
)
def test_wrong_arguments_leave_the_network_as_it_was(arguments, message):
    net = network()
    before = net.parameters.flat.copy()
    with pytest.raises(ValueError, match=message):
        net.fit(X, Y, **arguments)
    assert np.array_equal(net.parameters.flat, before)


def test_too_few_samples_to_split():
    with pytest.raises(ValueError, match="validation_fraction: 0.9 of 1 samples leaves none"):
        network().fit(X[:, :1], Y[:, :1], validation_fraction=0.9)


@pytest.mark.parametrize("backend_name", ["numpy"])
def test_a_batch_whose_weights_are_all_zero_adds_nothing(backend_name):
    weight = np.r_[np.zeros(30), np.ones(30)]
    net, other = network(backend=backend_name), network(backend=backend_name)
    net.fit(X, Y, SGD(0.1), epochs=1, batch_size=30, sample_weight=weight, shuffle=False)
    # Sums are divided by the mean weight of all samples, ½, times those of the batch: twice the step.
    other.fit(X[:, 30:], Y[:, 30:], SGD(0.2), epochs=1, batch_size=30, shuffle=False)
    np.testing.assert_allclose(net.parameters.flat, other.parameters.flat, rtol=1e-12)
    with pytest.raises(ValueError, match="all weights of the 1 samples in the validation part are 0"):
        network().fit(X, Y, sample_weight=np.r_[1.0, np.zeros(59)], validation_fraction=0.01, random_state=3)


def test_divergence_in_the_very_last_step():
    net = network(hidden_activation="identity", loss="squared_error")
    before = net.parameters.flat.copy()
    with pytest.raises(TrainingDivergedError, match="the weights became NaN or infinite in epoch 1"):
        net.fit(X * 1e10, Y, SGD(1e300), epochs=1, batch_size=100)
    assert np.array_equal(net.parameters.flat, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-1), "learning_rate"),
        (lambda: SGD(momentum=1.0), "momentum"),
        (lambda: SGD(nesterov=True), "nesterov: needs momentum > 0"),
        (lambda: Adam(beta_1=1), "beta_1"),
        (lambda: Adam(beta_2=-0.1), "beta_2"),
        (lambda: Adam(epsilon=0), "epsilon"),
        (lambda: StepDecay(0), "epochs"),
        (lambda: StepDecay(gamma=0), "gamma"),
        (lambda: ExponentialDecay(2), "gamma"),
        (lambda: InverseScaling(0), "power"),
        (lambda: CosineDecay(final=2), "final"),
        (lambda: ReduceOnPlateau(factor=1), "factor"),
    ],
)
def test_wrong_descriptions(make, message):
    with pytest.raises(ValueError, match=message):
        make()
