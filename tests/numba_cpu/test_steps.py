"""Whole epochs equal the oracle's: every optimizer, weights, L2 term, dropout and clipping, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import oracle
from compare import assert_close
from fusedmlp import SGD, Adam, AdamW
from fusedmlp.engines.options import EpochOptions
from fusedmlp.model.dropout import Dropout
from fusedmlp.model.optimizers import OptimizerState
from machine import require
from problems import make_problem

OPTIMIZERS = {
    "sgd": (SGD(0.1), lambda theta, g, v, _, t: (*oracle.sgd(theta, g, v, 0.1), v)),
    "momentum": (SGD(0.05, 0.9), lambda theta, g, v, _, t: (*oracle.sgd(theta, g, v, 0.05, 0.9), v)),
    "nesterov": (SGD(0.05, 0.9, True), lambda theta, g, v, _, t: (*oracle.sgd(theta, g, v, 0.05, 0.9, True), v)),
    "adam": (Adam(0.01), lambda theta, g, m, v, t: oracle.adam(theta, g, m, v, t, 0.01)),
    "adamw": (
        AdamW(0.01, weight_decay=0.3),
        lambda theta, g, m, v, t: oracle.adamw(theta, g, m, v, t, IS_WEIGHT, 0.01, weight_decay=0.3),
    ),
}
SIZES = [5, 7, 3, 2]
IS_WEIGHT = np.concatenate([[True] * 35, [False] * 7, [True] * 21, [False] * 3, [True] * 6, [False] * 2])
OPTIONS = {
    "plain": EpochOptions(),
    "mean weight": EpochOptions(alpha=0.2, mean_weight=1.3),
    "clipped": EpochOptions(alpha=0.2, clip_norm=0.05),
    "dropout": EpochOptions(dropout=Dropout((0.1, 0.5, 0.3), 2**63 + 11)),
    "scikit-learn's": EpochOptions(alpha=0.2, penalty_by_weight=True, loss_factor=0.25),
    "everything": EpochOptions(0.2, 1.3, Dropout((0.0, 0.5, 0.3), 7), 0.05, penalty_by_weight=True, loss_factor=0.25),
}
M, BATCH_SIZE, EPOCHS = 50, 16, 3


def oracle_epochs(problem, activation, step, options, orders):
    """(losses of the epochs, parameters) by the oracle."""
    net, shapes = problem.net, list(itertools.pairwise(SIZES))
    theta = net.backend.to_numpy(net.parameters.flat).copy()
    first, second, losses, t = np.zeros_like(theta), np.zeros_like(theta), [], 0
    ends = np.cumsum([n for n_in, n_out in shapes for n in (n_in * n_out, n_out)])[:-1]
    for order in orders:
        total = 0.0
        for samples in np.split(order, range(BATCH_SIZE, M, BATCH_SIZE)):
            parts = np.split(theta, ends)
            weights = [part.reshape(shape) for part, shape in zip(parts[::2], shapes, strict=True)]
            factors, w = None, problem.sample_weight[samples]
            if options.dropout is not None:
                rates, seed = options.dropout.rates, options.dropout.seed
                factors = [
                    oracle.keep_mask(seed, rate, layer, SIZES[layer], samples, t) / (1 - rate)
                    for layer, rate in enumerate(rates)
                ]
            alpha = options.alpha * (len(samples) / w.sum() if options.penalty_by_weight else 1.0)
            J, dWs, dbs = oracle.loss_and_gradients(
                weights,
                parts[1::2],
                problem.X[:, samples].T,
                problem.Y[:, samples].T,
                activation,
                "squared_error",
                w,
                alpha,
                divisor=None if options.mean_weight is None else options.mean_weight * len(samples),
                factors=factors,
            )
            gradient = np.concatenate([np.ravel(x) for pair in zip(dWs, dbs, strict=True) for x in pair])
            if options.clip_norm is not None:
                gradient = oracle.clipped(gradient, options.clip_norm)
            t += 1
            theta, first, second = step(theta, gradient, first, second, t)
            penalty = 0.5 * alpha / len(samples) * sum((W**2).sum() for W in weights)
            total += ((J - penalty) * options.loss_factor + penalty) * len(samples)
        losses.append(total / M)
    return losses, theta


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("name", ["numpy", "numba-cpu"])
def test_epochs_are_the_oracles(name, activation, optimizer, options):
    optimizer, step = OPTIMIZERS[optimizer]
    options = OPTIONS[options]
    problem = make_problem(activation, "squared_error", weighted=True, backend=require(name), m=M, sizes=SIZES, seed=4)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(M) for _ in range(EPOCHS)]
    expected_losses, expected = oracle_epochs(problem, activation, step, options, orders)
    net, backend = problem.net, problem.net.backend
    state = OptimizerState(optimizer, backend.xp, net.parameters)
    X, Y, w = (backend.asarray(x) for x in (problem.X, problem.Y, problem.sample_weight.reshape(1, -1)))
    losses = [net.engine.train_epoch(net.parameters, state, X, Y, w, order, BATCH_SIZE, options) for order in orders]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    assert state.t == EPOCHS * -(-M // BATCH_SIZE)
    assert_close(backend.to_numpy(net.parameters.flat), expected, "parameters", tolerance=1e-10)
