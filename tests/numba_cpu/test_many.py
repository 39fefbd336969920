"""Many trainings at once on numba-cpu: that they are, what their steps are, memory, and the choice by sizes."""

from __future__ import annotations

import copy
import gc
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from fusedmlp import SGD, Adam, AdamW, Network, TrainingState, fit_many
from fusedmlp.backends.numba_cpu import jobs, many
from fusedmlp.backends.numba_cpu.epochs import Epoch, step_tables
from fusedmlp.backends.numba_cpu.kernels.many import INTERRUPTED, compiled_epoch_loss
from fusedmlp.backends.numba_cpu.machine.buffers import address_of
from fusedmlp.backends.numba_cpu.work_sizes import WorkSizes
from fusedmlp.backends.numba_cpu.workers import threads
from fusedmlp.engines.crowd import Best, End, Stretch
from fusedmlp.engines.options import PLAIN
from fusedmlp.engines.samples import as_samples
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.training import loop
from machine import require

require("numba-cpu")
GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(6, 300)).astype(np.float32)
Y = (GENERATOR.random((1, 300)) < 0.4).astype(np.float32)


def networks(n, layers=(6, 8, 1), **arguments):
    return [Network(layers, "tanh", random_state=seed, backend="numba-cpu", **arguments) for seed in range(n)]


def test_no_epoch_of_many_small_networks_is_run_by_python(monkeypatch):
    def forbidden(*arguments):
        raise AssertionError("an epoch in Python")

    monkeypatch.setattr(loop.Training, "_train_epoch", forbidden)
    histories = fit_many(
        networks(5),
        X,
        Y,
        epochs=[3, 4, 5, 6, 70],
        optimizer=["sgd", "momentum", "nesterov", "adam", "adamw"],
        schedule=lambda epoch, rate: rate / (1 + epoch),
        early_stopping=[True, False, False, True, False],
        validation_fraction=0.2,
        clip_norm=[None, 1.0, None, None, 1.0],
        dropout=[0.0, 0.2, 0.0, 0.0, (0.1, 0.3)],
        alpha=0.1,
        state=[TrainingState() for _ in range(5)],
    )
    assert [history.epochs for history in histories][1:3] == [4, 5]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_bits_do_not_depend_on_the_number_of_workers(count, monkeypatch):
    monkeypatch.setattr(threads, "_count", count)
    arguments = {"epochs": 6, "batch_size": 300, "dropout": 0.2, "clip_norm": 1.0}
    nets = networks(5, (6, 64, 1))
    references = copy.deepcopy(nets)
    fit_many(nets, X, Y, **arguments)
    for net, reference in zip(nets, references, strict=True):
        reference.fit(X, Y, **arguments)
        np.testing.assert_array_equal(net.parameters.flat, reference.parameters.flat)


@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, 0.9), SGD(0.1, 0.9, True), Adam(), AdamW(weight_decay=0.1)])
@pytest.mark.parametrize("batches", [1, 2, 18, 700])
@pytest.mark.parametrize("steps", [0, 1000, 1023, 12345])
def test_the_steps_of_a_stretch_are_those_of_its_epochs(optimizer, batches, steps):
    net = networks(1)[0]
    state = OptimizerState(optimizer, np, net.parameters)
    state.t = steps
    rates = [0.1, 0.05, 0.0, 0.3]
    tables = step_tables(state, rates, batches)
    for epoch, rate in enumerate(rates):
        state.learning_rate, state.t = rate, steps + epoch * batches
        alone = Epoch(PLAIN, state, batches, np.empty(0), np.empty(0), np.empty(0))
        (kept,) = alone._kept
        np.testing.assert_array_equal(tables[:, epoch], kept)


def test_the_loss_of_an_epoch():
    losses = np.random.default_rng(0).random(7)
    before = np.array([0.0])
    numbers = address_of(before), address_of(losses), 0, 7, 32, 200
    mean, total = (compiled_epoch_loss()(*numbers, flag) for flag in (1, 0))
    np.testing.assert_allclose(mean, (losses[:6].sum() * 32 + losses[6] * 8) / 200, rtol=1e-14)
    np.testing.assert_allclose(total, losses.sum(), rtol=1e-14)


def test_why_a_job_ended_is_what_the_stretch_says():
    assert End(INTERRUPTED) is End.INTERRUPTED
    assert [end.value for end in End] == list(range(5))


def test_large_networks_are_shared_and_small_ones_are_not():
    def shared(layers, batch_size, m, workers=2):
        return WorkSizes(Architecture(layers)).better_shared(batch_size, np.empty((layers[0], m), np.float32), workers)

    assert not shared([30, 64, 1], 32, 569)
    assert not shared([64, 100, 10], 200, 1797)
    assert not shared([784, 128, 10], 200, 10_000)
    assert not shared([30, 64, 1], 100_000, 100_000)
    assert not shared([784, 2048, 10], 32, 10_000)  # no parts to share
    assert shared([784, 2048, 10], 10_000, 10_000)
    assert shared([784, 512, 10], 60_000, 60_000, workers=16)  # the slots of sixteen batches


def test_networks_that_are_better_shared_go_in_turn(monkeypatch):
    monkeypatch.setattr(WorkSizes, "better_shared", lambda *arguments: True)
    monkeypatch.setattr(many.CpuCrowd, "run", None)
    nets = networks(2)
    references = copy.deepcopy(nets)
    fit_many(nets, X, Y, epochs=2)
    for net, reference in zip(nets, references, strict=True):
        reference.fit(X, Y, epochs=2)
        np.testing.assert_array_equal(net.parameters.flat, reference.parameters.flat)


def test_the_last_network_is_shared_where_its_batches_have_parts(monkeypatch):
    monkeypatch.setattr(threads, "_count", 2)
    seen = []
    run = loop.Training.run
    monkeypatch.setattr(loop.Training, "run", lambda self, *samples: seen.append(self.epoch) or run(self, *samples))
    wide = GENERATOR.normal(size=(64, 4000)).astype(np.float32)
    targets = (GENERATOR.random((1, 4000)) < 0.4).astype(np.float32)
    nets = networks(3, (64, 64, 1))
    references = copy.deepcopy(nets)
    fit_many(nets, wide, targets, epochs=[3, 3, 40], batch_size=2000)
    assert len(seen) == 1
    for net, reference, epochs in zip(nets, references, [3, 3, 40], strict=True):
        reference.fit(wide, targets, epochs=epochs, batch_size=2000)
        np.testing.assert_array_equal(net.parameters.flat, reference.parameters.flat)


@pytest.mark.parametrize("raiser", ["poll", "meanwhile"])
def test_an_exception_ends_all_between_two_batches(raiser):
    """The weights are those after as many steps as the optimizer's state counts."""
    wide = GENERATOR.normal(size=(30, 40_000)).astype(np.float32)
    targets = (GENERATOR.random((1, 40_000)) < 0.4).astype(np.float32)
    nets = networks(4, (30, 64, 1))
    references = copy.deepcopy(nets)
    started = time.monotonic()

    def raises():
        if raiser == "meanwhile" or time.monotonic() > started + 0.2:
            time.sleep(0.05)
            raise OSError(raiser)

    stretches = []
    for net in nets:
        samples = as_samples(wide, targets, None, net.architecture, net.backend)
        state = OptimizerState(SGD(0.01), np, net.parameters)
        best = Best(net.parameters.flat.copy())
        stretches.append(
            Stretch(net.engine, net.parameters, state, samples, None, 32, [0.01] * 1000, None, PLAIN, best)
        )
    crowd = nets[0].backend.crowd()
    with pytest.raises(OSError, match=raiser):
        crowd.run(stretches, raises if raiser == "poll" else lambda: None, raises if raiser == "meanwhile" else None)
    assert time.monotonic() - started < 5
    assert all(stretch.end is End.INTERRUPTED for stretch in stretches)
    for net, reference, stretch in zip(nets, references, stretches, strict=True):
        samples = as_samples(wide, targets, None, net.architecture, net.backend)
        state, steps = OptimizerState(SGD(0.01), np, reference.parameters), stretch.optimizer_state.t
        for _ in range(steps // 1250):
            reference.engine.train_epoch(reference.parameters, state, samples.X, samples.Y, None, None, 32)
        if steps % 1250:
            order = np.arange(steps % 1250 * 32)
            reference.engine.train_epoch(reference.parameters, state, samples.X, samples.Y, None, order, 32)
        np.testing.assert_array_equal(net.parameters.flat, reference.parameters.flat)
    assert sum(stretch.optimizer_state.t for stretch in stretches) > 0


# Memory ---------------------------------------------------------------------------------------------------------------

TEN_THOUSAND = """
import resource
import numpy as np
from fusedmlp import Network, fit_many
generator = np.random.default_rng(0)
X = generator.normal(size=(30, 569)).astype("float32")
Y = (generator.random((1, 569)) < 0.5).astype("float32")
networks = [Network([30, 16, 1], random_state=seed) for seed in range(10_000)]
fit_many(networks[:20], X, Y, epochs=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
histories = fit_many(networks, X, Y, epochs=1, validation_fraction=0.1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
assert all(history.epochs == 1 for history in histories)
"""


@pytest.mark.slow
def test_ten_thousand_networks_fit_into_little_memory():
    result = subprocess.run([sys.executable, "-c", TEN_THOUSAND], capture_output=True, text=True, check=True)
    n_parameters = Architecture([30, 16, 1]).n_parameters
    assert int(result.stdout) < 10_000 * 6 * 4 * n_parameters + 64e6


def test_workers_have_memory_for_the_largest_architecture_alone():
    """A search over sizes has a network of each: their tiles lie in the same memory."""
    nets = [Network([6, hidden, 1], "tanh", random_state=hidden) for hidden in range(20, 60)]
    fit_many(nets[:2], X, Y, epochs=1)
    gc.collect()
    before = _resident_bytes()
    fit_many(nets, X, Y, epochs=2)
    assert _resident_bytes() - before < 24e6


def _resident_bytes():
    try:
        with open(f"/proc/{os.getpid()}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        pytest.skip("this system does not say how much memory a process has")


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[], [3.0], [5.0] * 7, [9.0, 9.0, 4.0, 4.0, 4.0, 4.0, 1.0], [3.0, 2.0, 1.0]])
def test_neighbours_of_one_size_are_apart_and_sizes_stay_in_order(sizes, workers):
    order = jobs._apart(sizes, workers).tolist()
    assert sorted(order) == list(range(len(sizes)))
    assert [sizes[place] for place in order] == sizes
    if workers == 2 and len(sizes) == 7 and sizes[0] == sizes[-1]:
        assert order == [0, 4, 1, 5, 2, 6, 3]
