"""Networks that stay in shared memory for whole epochs, on the fake GPU: the training that numpy makes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from harness import emulator

from fusedmlp import Network
from fusedmlp.backends.cupy.captured_steps import CapturedSteps
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS, CUDA_LOSSES, CUDA_RULES
from fusedmlp.backends.cupy.resident import ResidentEpochs
from fusedmlp.backends.cupy.resident_plan import plan_of
from fusedmlp.engines.options import EpochOptions
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import Adam, OptimizerState, as_optimizer

TOLERANCE = {"float64": 1e-11, "float32": 2e-4}


def targets(rng, loss, n_out, m):
    if loss == "categorical_cross_entropy":
        return np.eye(n_out)[rng.integers(0, n_out, m)].T
    if loss == "squared_error":
        return rng.normal(size=(n_out, m))
    return rng.integers(0, 5 if loss == "poisson" else 2, (n_out, m)).astype(float)


def trained(backend, sizes, m, *, activation="tanh", loss="binary_cross_entropy", dtype="float64", **arguments):
    """(parameters, losses, the object that runs the epochs) of a training."""
    rng = np.random.default_rng([*sizes, m])
    X, Y = rng.normal(size=(sizes[0], m)), targets(rng, loss, sizes[-1], m)
    if arguments.pop("weighted", False):
        arguments["sample_weight"] = rng.uniform(0, 2, m)
    if arguments.pop("fortran", False):
        X = np.asfortranarray(X)
    made = {"bias": arguments.pop("bias", True), "precision": arguments.pop("precision", None)}
    net = Network(sizes, activation, loss, dtype=dtype, backend=backend, random_state=0, **made)
    kept = []
    arguments = {"epochs": 2, "batch_size": 32} | arguments
    history = net.fit(X, Y, callbacks=[lambda training: kept.append(training.optimizer_state)], **arguments)
    (steps,) = net.engine._steps.get(kept[0], [None]) if hasattr(net.engine, "_steps") else [None]
    return net.backend.to_numpy(net.parameters.flat), np.array(history.loss), steps


def check(backend, sizes, m, **arguments):
    dtype = arguments.get("dtype", "float64")
    flat, losses, epochs = trained(backend, sizes, m, **arguments)
    assert isinstance(epochs, ResidentEpochs)
    expected, expected_losses, _ = trained("numpy", sizes, m, **(arguments | {"dtype": "float64"}))
    np.testing.assert_allclose(flat, expected, rtol=0, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE[dtype])


SIZES = [(5, 20, 1), (3, 40, 3), (7, 20, 7), (4, 9, 11, 3), (30, 64, 1), (17, 33, 18, 16)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_shapes(resident, sizes, dtype):
    number = SIZES.index(sizes)
    with emulator.thread_order(emulator.ORDERS[number % 3]):
        check(resident, sizes, 85, dtype=dtype, fortran=number % 2 == 0, bias=number % 4 != 1)


TRAININGS = {
    "adam": {"batch_size": 10},
    "remainder, weights, L2": {"weighted": True, "alpha": 0.3, "optimizer": "nesterov"},
    "in order": {"batch_size": 64, "shuffle": False, "optimizer": "momentum", "learning_rate": 0.1},
    "all at once": {"batch_size": 1000, "alpha": 0.1},
    "of a sum, by a schedule": {"batch_size": 50, "loss": "sum_squared_error", "schedule": "cosine", "weighted": True},
    "adamw, clipped": {"optimizer": "adamw", "clip_norm": 0.1, "alpha": 0.3, "weighted": True},
    "clipped": {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.05},
    "half of the samples": {"batch_size": 20, "validation_fraction": 0.5, "early_stopping": True},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_options(resident, name):
    sizes = SIZES[list(TRAININGS).index(name) % 4]
    check(resident, sizes, 85, **TRAININGS[name])


@pytest.mark.parametrize("loss", CUDA_LOSSES)
def test_activations_losses_and_rules(resident, loss):
    """Every loss with wide and narrow last layers; which activation and rule meet it makes no difference."""
    number = CUDA_LOSSES.index(loss)
    pairs = itertools.product((2, 6), range(2))
    for i, (n_out, _) in enumerate(pairs, 4 * number):
        activation, rule = CUDA_ACTIVATIONS[i % len(CUDA_ACTIVATIONS)], CUDA_RULES[i % len(CUDA_RULES)]
        check(resident, (4, 18, n_out), 50, activation=activation, loss=loss, optimizer=rule, learning_rate=0.01)


def plan(sizes, batch_size, most, optimizer="adam", dtype="float32", clusters=False):
    return plan_of(Architecture(sizes, dtype=dtype), as_optimizer(optimizer), batch_size, most, clusters)


@pytest.mark.parametrize("most", [17_000, 15_500], ids=["two tiles of X", "one tile of X"])
def test_batches_of_several_tiles(resident, monkeypatch, most, thread_order):
    """A batch that has no room as a whole: its gradients are summed over tiles; the last one is short."""
    monkeypatch.setattr(type(resident.launcher), "shared_bytes", lambda self: most)
    flat, losses, epochs = trained(resident, (5, 20, 2), 150, batch_size=120, dtype="float32", weighted=True)
    assert epochs.plan.samples == 32
    expected, expected_losses, _ = trained("numpy", (5, 20, 2), 150, batch_size=120, weighted=True)
    np.testing.assert_allclose(flat, expected, rtol=0, atol=TOLERANCE["float32"])
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE["float32"])


CLUSTERS = [((5, 60, 1), 2, 19_000), ((7, 100, 7), 4, 38_500), ((4, 120, 3), 8, 18_500), ((9, 250, 2), 6, 31_000)]


@pytest.mark.parametrize("name", ["adam", "remainder, weights, L2", "adamw, clipped", "all at once"])
@pytest.mark.parametrize(("sizes", "blocks", "most"), CLUSTERS, ids=str)
def test_clusters(resident, monkeypatch, sizes, blocks, most, name):
    """Networks that are too large for one block; the last one may have fewer units, or units that are filled up."""
    monkeypatch.setattr(type(resident.launcher), "shared_bytes", lambda self: most)
    arguments = {"dtype": "float32"} | TRAININGS[name]
    with emulator.thread_order(emulator.ORDERS[(blocks + len(name)) % 3]):
        flat, losses, epochs = trained(resident, sizes, 85, **arguments)
    assert epochs.plan.blocks == blocks or name != "adam"
    assert epochs.plan.blocks > 1
    expected, expected_losses, _ = trained("numpy", sizes, 85, **TRAININGS[name])
    np.testing.assert_allclose(flat, expected, rtol=0, atol=TOLERANCE["float32"])
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE["float32"])


def test_bits_do_not_depend_on_the_order_of_threads(resident):
    results = []
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            results.append(trained(resident, (9, 33, 12, 2), 90, dtype="float32", weighted=True, alpha=0.1)[:2])
    for flat, losses in results[1:]:
        assert np.array_equal(flat, results[0][0])
        assert np.array_equal(losses, results[0][1])


@pytest.mark.parametrize(("sizes", "most"), [((20, 40, 6), None), ((7, 100, 7), 38_500)], ids=["block", "cluster"])
def test_high_is_close_to_strict_and_tf32_is_not(resident, cupy, monkeypatch, sizes, most):
    if most is not None:
        monkeypatch.setattr(type(resident.launcher), "shared_bytes", lambda self: most)
    expected, *_ = trained("numpy", sizes, 64, dtype="float64", optimizer="sgd")
    errors = {}
    for precision, arithmetic in (("strict", "float32"), ("high", "tf32x3"), ("medium", "tf32")):
        flat, _, epochs = trained(resident, sizes, 64, dtype="float32", precision=precision, optimizer="sgd")
        assert isinstance(epochs, ResidentEpochs)
        assert cupy.launches[-1] == f"resident{'_cluster' if most else ''}_{arithmetic}"
        errors[precision] = np.abs(flat - expected).max()
    assert errors["strict"] < 1e-6
    assert errors["high"] < 3 * errors["strict"]
    assert errors["medium"] > 10 * errors["high"]


def test_an_epoch_is_polled_between_launches(resident, monkeypatch):
    """All steps of a launch are taken and counted; an exception leaves the parameters after the last one."""
    monkeypatch.setattr("fusedmlp.backends.cupy.resident.FIRST_BATCHES", 2)
    monkeypatch.setattr("fusedmlp.backends.cupy.resident.POLL_SECONDS", 0)
    net = Network((5, 20, 1), dtype="float64", backend=resident, random_state=0)
    reference = Network((5, 20, 1), dtype="float64", backend="numpy", random_state=0)
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(5, 90)), rng.integers(0, 2, (1, 90)).astype(float)
    polls = []

    def poll():
        polls.append(state.t)
        if len(polls) == 3:
            raise KeyboardInterrupt

    state = OptimizerState(Adam(), net.backend.xp, net.parameters)
    arrays = [net.backend.asarray(x, "float64") for x in (X, Y)]
    with pytest.raises(KeyboardInterrupt):
        net.engine.train_epoch(net.parameters, state, *arrays, None, None, 10, EpochOptions(poll=poll))
    assert polls == [2, 3, 4]
    assert state.t == 4
    other = OptimizerState(Adam(), np, reference.parameters)
    reference.engine.train_epoch(reference.parameters, other, X[:, :40], Y[:, :40], None, None, 10, EpochOptions())
    got = net.backend.to_numpy(net.parameters.flat)
    np.testing.assert_allclose(got, reference.parameters.flat, rtol=0, atol=1e-12)


def test_what_does_not_fit_or_does_not_pay_is_captured(emulated):
    """A block's 227 KiB hold some 12,000 parameters with Adam's moments; long steps need all multiprocessors."""
    assert plan((100, 100, 1), 32, 227 * 1024) is not None
    assert plan((100, 120, 1), 32, 227 * 1024) is None
    assert plan((100, 120, 1), 32, 227 * 1024, "sgd") is not None
    assert plan((30, 64, 1), 32, 64 * 1024, dtype="float64") is None
    assert plan((100, 120, 1), 32, 227 * 1024, clusters=True).blocks == 2
    assert plan((100, 800, 1), 32, 227 * 1024, clusters=True).blocks == 8
    assert plan((100, 900, 1), 32, 227 * 1024, clusters=True) is None
    assert plan((100, 60, 60, 1), 32, 227 * 1024, clusters=True) is not None
    assert plan((100, 60, 90, 1), 32, 227 * 1024, clusters=True) is None
    assert isinstance(trained(emulated, (30, 64, 1), 64)[2], ResidentEpochs)
    assert isinstance(trained(emulated, (30, 64, 1), 600, batch_size=500)[2], CapturedSteps)
