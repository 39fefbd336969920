"""Epochs in parts: whatever the batches at which a pass ends and another begins, the bits are those of one pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusedmlp.engines.options import EpochOptions, EpochPosition
from fusedmlp.model.dropout import Dropout
from fusedmlp.model.optimizers import OPTIMIZERS, OptimizerState
from problems import make_problem

BATCH_SIZE, BATCHES = 16, 7
DROPOUT = Dropout((0.1, 0.3), 5)
OPTIONS = {
    "plain": EpochOptions(),
    "mean weight": EpochOptions(alpha=0.1, mean_weight=1.2, loss_factor=0.5),
    "clipped": EpochOptions(alpha=0.1, clip_norm=0.01, penalty_by_weight=True),
    "dropout": EpochOptions(dropout=DROPOUT),
}


class _StoppedError(Exception):
    pass


class _Trainings:
    """One training, begun as often as is asked for."""

    def __init__(self, backend, optimizer, options, shuffled=True, **problem):
        self.problem = make_problem("tanh", "binary_cross_entropy", backend=backend, m=103, sizes=[5, 9, 2], **problem)
        self.net, self.optimizer, self.options = self.problem.net, OPTIMIZERS[optimizer], options
        p = self.problem
        self.samples = self.net._samples(p.X, p.Y, p.sample_weight).prepared(self.net.engine)
        self.order = np.random.default_rng(1).permutation(103) if shuffled else None
        self.first = self.net.parameters.flat.copy()
        self.begin()

    def begin(self):
        self.net.parameters.flat[...] = self.first
        self.state = OptimizerState(self.optimizer, self.net.backend.xp, self.net.parameters)
        self.state.t, self.state.learning_rate = 40, 0.05

    def run(self, **options):
        s = self.samples
        return self.net.engine.train_epoch(
            self.net.parameters, self.state, s.X, s.Y, s.sample_weight, s.ordered(self.order), BATCH_SIZE,
            replace(self.options, **options),
        )  # fmt: skip

    @property
    def bits(self):
        arrays = [self.net.parameters.flat, *self.state.moments.values()]
        return self.state.t, [self.net.backend.to_numpy(x).tobytes() for x in arrays]


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("weighted", [False, True])
def test_parts_have_the_bits_of_the_whole(backend, optimizer, options, weighted):
    trainings = _Trainings(backend, optimizer, OPTIONS[options], weighted=weighted, dtype="float32")
    whole = trainings.run(), trainings.bits
    for split in range(1, BATCHES):
        trainings.begin()
        position = EpochPosition(end=split)
        part = trainings.run(position=position)
        assert (position.batches, position.loss) == (split, part)
        assert trainings.state.t == 40 + split
        position.end = None
        assert (trainings.run(position=position), trainings.bits) == whole
        assert position.batches == BATCHES


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_batch_by_batch(backend, dtype, shuffled):
    trainings = _Trainings(backend, "adamw", OPTIONS["plain"], shuffled, dtype=dtype)
    whole = trainings.run(), trainings.bits
    trainings.begin()
    position = EpochPosition()
    for end in range(1, BATCHES + 1):
        position.end = end
        loss = trainings.run(position=position)
    assert (loss, trainings.bits) == whole


def test_a_loss_that_is_a_sum(backend):
    problem = make_problem("sigmoid", "sum_squared_error", backend=backend, m=40, sizes=[3, 4, 2], dtype="float64")
    net, losses = problem.net, []
    first = net.parameters.flat.copy()
    for ends in ([None], [2, 3, None]):
        net.parameters.flat[...] = first
        state = OptimizerState(OPTIMIZERS["sgd"], net.backend.xp, net.parameters)
        state.learning_rate = 0.01
        position = EpochPosition()
        samples = net._samples(problem.X, problem.Y, None).prepared(net.engine)
        for position.end in ends:
            loss = net.engine.train_epoch(
                net.parameters, state, samples.X, samples.Y, None, None, 8, EpochOptions(position=position)
            )
        losses.append(loss)
    assert losses[0] == losses[1]


def test_a_poll_that_ends_the_pass_leaves_where_it_was(backend):
    trainings = _Trainings(backend, "adam", OPTIONS["plain"], dtype="float32")
    whole = trainings.run(), trainings.bits
    trainings.begin()
    calls = []

    def poll():
        calls.append(None)
        if len(calls) == 3:
            raise _StoppedError

    position = EpochPosition()
    try:
        trainings.run(position=position, poll=poll)
    except _StoppedError:
        assert 0 <= position.batches <= BATCHES
        assert trainings.state.t == 40 + position.batches
        assert trainings.run(position=position) == whole[0]
    assert trainings.bits == whole[1]
