"""The libraries of the benchmarks against float64: every activation and loss, both dtypes, Adam by its two formulas."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a package of the checkout, not of the wheel

from bench.measure import WrongResultError
from bench.peers import check, registry
from bench.peers.cases import CHECKED_STEPS, Case
from bench.peers.device import Cpu
from bench.peers.gpu_cases import GROUPS
from bench.peers.problem import KINK, draw
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES

NETWORKS = [(activation, "binary_cross_entropy") for activation in HIDDEN_ACTIVATIONS]
NETWORKS += [("tanh", loss) for loss in LOSSES]


def library(name):
    """A library on the CPU; a visible skip where it is not installed."""
    pytest.importorskip(registry.PEERS[name].module)
    if name == "torch, CUDA graph":
        return graph_on_cpu()
    return registry.peer_class(name)(Cpu(), 1)


def graph_on_cpu():
    """The library that captures steps, with calls in place of captures."""
    peer = registry.peer_class("torch, CUDA graph")(Cpu(), 1)

    def captured(optimizer, step, rows):
        def replay():
            optimizer.zero_grad()
            step(rows)

        for _ in range(3):  # as before a capture: they train
            replay()
        return replay

    peer._captured = captured
    return peer


def result_of(peer, case):
    bound = peer.bind(draw(case, np))
    bound.call()
    return bound.result()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "torch"])
def test_gradients_of_every_activation_and_loss(name):
    peer = library(name)
    for activation, loss in NETWORKS:
        outputs = {"relu": 1, "tanh": 3}.get(activation, 2)
        check_result(peer, name, Case("step", (5, 6, outputs), 70, activation, loss, dtype="float64"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", ["step", "epoch", "forward"])
@pytest.mark.parametrize("name", ["jax", "torch", "torch, CUDA graph"])
def test_every_task(name, task, dtype):
    peer = library(name)
    if name == "torch, CUDA graph" and task != "epoch":
        pytest.skip("it has epochs alone")
    batch_size = 16 if task == "epoch" else None
    for loss in ("categorical_cross_entropy", "poisson"):
        check_result(peer, name, Case(task, (5, 7, 6, 4), 70, "tanh", loss, batch_size, dtype=dtype))


def check_result(peer, name, case):
    right, result = check.Right.of(case, np), result_of(peer, case)
    check.compare(case, "cpu", name, result, right)
    if case.dtype == "float64":
        mine = right.own if registry.PEERS[name].corrected_epsilon else right.common
        for part, error in check.errors_of(result, mine).items():
            assert error < (1e-6 if part == "J" else 1e-9), (case, part)  # torch's J of an epoch is a float32


FULL_BATCH = Case("epoch", (30, 64, 1), 569, batch_size=569)


@pytest.mark.parametrize("name", ["torch", "torch, CUDA graph"])
def test_epsilon_in_another_place_is_told_from_a_mistake(name):
    """Full-batch Adam, whose first step is as large for tiny gradients as for others where epsilon is small."""
    right, result = check.Right.of(FULL_BATCH, np), result_of(library(name), FULL_BATCH)
    errors, note = check.compare(FULL_BATCH, "cuda", name, result, right)
    assert errors["change"] > 0.05
    assert note.startswith("differs by its arithmetic: its Adam adds epsilon")
    with pytest.raises(WrongResultError, match="change"):  # the same numbers of a library without that excuse
        check.compare(FULL_BATCH, "cuda", "jax", result, right)
    with pytest.raises(WrongResultError, match="change"):
        check.compare(FULL_BATCH, "cuda", name, {**result, "change": 1.0015 * result["change"]}, right)
    wrong = result["change"].copy()
    wrong[np.argmax(np.abs(wrong))] *= -1  # one of 2,049 parameters goes the other way
    with pytest.raises(WrongResultError, match="change"):
        check.compare(FULL_BATCH, "cuda", name, {**result, "change": wrong}, right)


def test_a_library_without_the_excuse_has_no_note():
    right, result = check.Right.of(FULL_BATCH, np), result_of(library("jax"), FULL_BATCH)
    errors, note = check.compare(FULL_BATCH, "cuda", "jax", result, right)
    assert note == ""
    assert errors["change"] < 1e-4


def test_the_first_steps_of_a_long_epoch_are_checked_and_its_whole_loss():
    case = Case("epoch", (5, 6, 1), 16 * 40 + 3, batch_size=16)
    assert case.checked.steps == CHECKED_STEPS
    assert len(draw(case.checked, np).batches()[-1]) == len(draw(case, np).batches()[-1]) == 3
    right, result = check.Right.of(case, np), result_of(library("jax"), case)
    check.check_whole_epoch(result, right)
    for wrong in ({"J": result["J"] * 1.01}, {"J": np.float32("nan")}, {"change": result["change"] * np.nan}):
        with pytest.raises(WrongResultError, match="whole epoch"):
            check.check_whole_epoch({**result, **wrong}, right)


def test_relu_steps_keep_away_from_the_kink():
    case = Case("step", (5, 40, 30, 1), 20_000, "relu")
    problem = draw(case, np)
    layers, A = problem.layers(), problem.X.astype(float)
    for layer in (0, 2):
        Z = A @ layers[layer].astype(float) + layers[layer + 1]
        assert np.abs(Z).min() >= KINK
        A = np.maximum(Z, 0)


WANTED = """
step 784-1024-1 sigmoid | step 64-1024-1 sigmoid | step 16-256-1 sigmoid | step 128-1024-1 sigmoid
step 32-512-1 relu | step 100-64-1 tanh | step 8-32-1 sigmoid | step 64-256-4 sigmoid | step 200-2000-1 sigmoid
step 300-100-1 sigmoid | step 784-512-512-10 relu | step 28-300-300-1 relu | step 20-100-1 sigmoid float64
epoch 30-64-1 sigmoid 569/32 | epoch 784-128-10 sigmoid 60000/128 | epoch 784-128-10 relu 60000/1024
epoch 54-100-7 relu 500000/200 | epoch 13-50-1 tanh 20000/64 | epoch 28-300-300-1 relu 1000000/4096
epoch 784-512-512-10 relu 60000/256
"""


def test_every_row_of_the_report_has_a_time_of_jax():
    found = set()
    for group in GROUPS.values():
        for case in group.cases:
            assert not case.only or "jax" in case.only
            assert registry.cannot("jax", case, "cuda") is None
            words = [case.task, "-".join(map(str, case.layer_sizes)), case.hidden_activation]
            words += [f"{case.m}/{case.batch_size}"] if case.batch_size else []
            words += [case.dtype] if case.dtype != "float32" else []
            found.add(" ".join(words))
    wanted = {row.strip() for line in WANTED.strip().splitlines() for row in line.split("|")}
    assert wanted <= found, wanted - found
