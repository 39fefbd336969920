"""Block-shuffling: every sample comes once an epoch, from the right place, in an order that the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedmlp import ArrayStream, Network
from fusedmlp.engines.options import EpochOptions
from fusedmlp.model.optimizers import Adam, OptimizerState
from fusedmlp.streams.access import Copies
from fusedmlp.streams.base import BlocksOf
from fusedmlp.streams.order import BlockOrder
from fusedmlp.streams.samples import StreamedSamples
from machine import require


def order_of_epoch(samples, batch_size, seed, first=0):
    """The samples of an epoch in their order, where X holds their numbers."""
    order = []
    size = samples._window(batch_size)
    for window, count in samples._access.windows(size, first * size, seed):
        X, _, _, columns = samples._access.samples(window, count)
        numbers = np.array(X[0])
        order.append(numbers if columns is None else numbers[columns])
    return np.concatenate(order).astype(int)


def numbered(m, block, window, copies=False, n_inputs=3):
    """A stream whose samples hold their numbers, of blocks and windows of so many samples."""
    X = np.vstack([np.arange(m)] + [np.zeros(m)] * (n_inputs - 1))
    stream = ArrayStream(X, np.zeros(m), block_bytes=block * n_inputs * 8, window_bytes=window * (n_inputs + 2) * 8)
    net = Network([n_inputs, 2, 1], backend="numpy", dtype="float64", random_state=0)
    samples = StreamedSamples(stream, net.architecture, net.backend)
    if copies:
        samples._access = Copies(stream, net.architecture, True, samples._check)
    return samples


sizes = st.integers(1, 60)


@given(
    m=st.integers(1, 200), block=sizes, window=sizes, batch=sizes, seed=st.integers(0, 2**64 - 1), copies=st.booleans()
)
def test_every_sample_comes_once(m, block, window, batch, seed, copies):
    order = order_of_epoch(numbered(m, block, window, copies), batch, seed)
    assert sorted(order) == list(range(m))


@given(m=st.integers(1, 200), block=sizes, window=sizes, batch=sizes, copies=st.booleans())
def test_without_a_seed_they_come_as_they_lie(m, block, window, batch, copies):
    assert order_of_epoch(numbered(m, block, window, copies), batch, None).tolist() == list(range(m))


@given(m=st.integers(1, 200), block=sizes, window=sizes, batch=sizes, seed=st.integers(0, 99), data=st.data())
def test_an_epoch_can_begin_at_any_window(m, block, window, batch, seed, data):
    samples = numbered(m, block, window)
    whole, size = order_of_epoch(samples, batch, seed), samples._window(batch)
    first = data.draw(st.integers(0, (m - 1) // size))
    assert order_of_epoch(samples, batch, seed, first).tolist() == whole[first * size :].tolist()


def test_copies_and_reading_in_place_have_the_same_order():
    orders = [order_of_epoch(numbered(500, 7, 90, copies), 20, 5).tolist() for copies in (False, True)]
    assert orders[0] == orders[1]


def test_seeds_give_other_orders():
    samples = numbered(300, 10, 100)
    orders = {tuple(order_of_epoch(samples, 10, seed)) for seed in range(5)}
    assert len(orders) == 5


def test_a_batch_has_samples_of_many_blocks():
    """Data that are sorted by class, the worst case: a batch of a window of 30 blocks has samples of nearly all."""
    order = order_of_epoch(numbered(6000, 20, 600), 60, 3)
    blocks = [len(set(batch // 20)) for batch in order.reshape(-1, 60)]
    assert min(blocks) > 18
    assert np.abs(np.corrcoef(order, np.arange(6000))[0, 1]) < 0.2


def test_one_window_can_have_any_order():
    """Where all samples fit in one window, places are as likely as any other."""
    samples = numbered(20, 5, 100)
    places = np.array([order_of_epoch(samples, 4, seed) for seed in range(2000)])
    counts = np.array([np.bincount(column, minlength=20) for column in places.T])
    chi_square = ((counts - 100) ** 2 / 100).sum()  # 400 cells, some 361 degrees of freedom
    assert chi_square < 361 + 5 * np.sqrt(2 * 361)


def test_segments_lie_in_blocks():
    edges = np.array([0, 3, 4, 9, 12])
    order = BlockOrder(edges, 8)
    segments = [segment for start in range(0, 12, 5) for segment in order.segments(start, min(12, start + 5))]
    for first, last in segments:
        assert np.searchsorted(edges, first, side="right") == np.searchsorted(edges, last - 1, side="right")
    assert sorted(i for segment in segments for i in range(*segment)) == list(range(12))


def test_parts_of_a_stream():
    samples = numbered(103, 10, 25)
    part = samples.take(np.array([10, 2, 7]), None)  # block 10 has 3 samples
    assert part.m == 23
    assert sorted(order_of_epoch(part, 4, 1)) == [*range(20, 30), *range(70, 80), *range(100, 103)]
    assert isinstance(part.stream, BlocksOf)
    assert part.stream.where(20) == "sample 100"


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("weighted", [False, True])
def test_steps_are_those_of_samples_in_memory_in_that_order(backend, weighted):
    """The bits of the weights are those of an epoch over arrays, with the order of the stream."""
    rng = np.random.default_rng(0)
    X, Y, weight = rng.normal(size=(5, 401)), rng.normal(size=(2, 401)), rng.random(401)
    weight = weight if weighted else None
    net = Network([5, 7, 2], "tanh", "squared_error", backend=require(backend), dtype="float64", random_state=1)
    other = Network([5, 7, 2], "tanh", "squared_error", backend=require(backend), dtype="float64", random_state=1)
    stream = ArrayStream(X, Y, weight, block_bytes=1000, window_bytes=5000)
    net.fit(stream, epochs=1, batch_size=16, random_state=3, alpha=0.1)

    seed = int.from_bytes(np.random.default_rng(3).bytes(8), "little")
    counting = ArrayStream(np.vstack([np.arange(401.0)] * 5), Y, weight, block_bytes=1000, window_bytes=5000)
    order = order_of_epoch(StreamedSamples(counting, net.architecture, net.backend), 16, seed)
    state = OptimizerState(Adam(), np, other.parameters)
    given = other.parameters, state, X, Y, None if weight is None else weight[None], order, 16
    loss = other.engine.train_epoch(*given, EpochOptions(0.1, None if weight is None else weight.mean()))
    assert net.parameters.flat.tobytes() == other.parameters.flat.tobytes()
    assert net.history.loss[0] == pytest.approx(loss, rel=1e-12)
