"""The GPU's crowd as a training uses it: launches and what is called between them, and which trainings it takes."""

from __future__ import annotations

import numpy as np
import pytest
from test_crowd import WEIGHT, X, Y, check, flat_of, network

from fusedmlp import Adam, fit_many
from fusedmlp.backends.cupy import crowd_launches
from fusedmlp.engines.crowd import Best, End, Stretch
from fusedmlp.engines.options import EpochOptions
from fusedmlp.engines.samples import Samples
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.training.interrupts import Interrupts


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


def stretch_of(net, epochs):
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
