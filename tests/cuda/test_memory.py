"""The GPU's memory: where it runs out chunks get smaller and results stay right. Steps allocate nothing."""

from __future__ import annotations

import gc
import logging
import re

import numpy as np
import pytest
from harness import fake_cupy
from harness.fake_pool import POOL, UNIT, OutOfMemoryError

from fusedmlp import Gradients, Network
from fusedmlp.backends.cupy.middle_engine import MiddleEngine
from fusedmlp.engines.options import EpochOptions
from fusedmlp.model.optimizers import Adam, OptimizerState

M = 1100
ONE, DEEP = (5, 7, 1), (5, 12, 20, 9, 1)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = np.asfortranarray(rng.normal(size=(5, M)))
    return X, rng.integers(0, 2, size=(1, M)).astype(float), rng.uniform(0.5, 1, size=(1, M)), rng.permutation(M)


class Bench:
    """A network's engine with samples where it takes them from, called without the checks of `Network`."""

    def __init__(self, backend, data, resident=True, sizes=(5, 7, 1), chunk=10**6, fused=True):
        X, Y, weight, self.order = data
        backend.resident_bytes = 2**30 if resident else 0
        self.net = Network(sizes, "tanh", dtype="float64", backend=backend, random_state=0)
        architecture = self.net.architecture
        backend.matmul(*(fake_cupy.copied(np.ones((2, 2))) for _ in range(2)))  # cuBLAS gets its memory
        engine = MiddleEngine(backend, architecture) if fused else backend.engine(architecture, fused=False)
        self.engine = self.net._engines.engine = engine
        self.engine._chunk = chunk
        self.samples = self.net._samples(X, Y, weight)
        self.gradients = Gradients(self.net.architecture, backend.xp.empty_like(self.net.parameters.flat))
        self.state = OptimizerState(Adam(), backend.xp, self.net.parameters)
        if resident:
            self.order = backend.asarray(self.order)

    def _samples(self):
        return self.samples.X, self.samples.Y

    def forward(self):
        return self.net.backend.to_numpy(self.engine.forward(self.net.parameters, self.samples.X))

    def loss(self):
        return self.engine.loss(self.net.parameters, *self._samples(), self.samples.sample_weight, 0.1)

    def loss_and_gradients(self):
        weight = self.samples.sample_weight
        J = self.engine.loss_and_gradients(self.net.parameters, *self._samples(), self.gradients, weight, 0.1)
        return np.r_[J, self.gradients.flat.get()]

    def epoch(self, batch_size=64, shuffled=True):
        order = self.order if shuffled else None
        J = self.engine.train_epoch(
            self.net.parameters,
            self.state,
            *self._samples(),
            self.samples.sample_weight,
            order,
            batch_size,
            EpochOptions(alpha=0.1),
        )
        return np.r_[J, self.state.t, self.net.parameters.flat.get()]


PASSES = {
    "forward": Bench.forward,
    "loss": Bench.loss,
    "loss_and_gradients": Bench.loss_and_gradients,
    "full batch": lambda bench: bench.epoch(M, shuffled=False),
    "large batches": lambda bench: bench.epoch(600),
    "small batches": lambda bench: bench.epoch(200),
}


def refuse_above(n_bytes):
    """A pool in which no piece of more than this is free."""
    POOL.refuse = lambda size: size > n_bytes


def refuse_once(number):
    """Refuse one allocation, the so-and-so-manieth from here. What was refused: a list that it is put into."""
    at, refused = len(POOL.sizes) + number, []

    def refuse(size):
        if len(POOL.sizes) < at or refused:
            return False
        refused.append(size)
        return True

    POOL.refuse = refuse
    return refused


# A limit of the pool --------------------------------------------------------------------------------------------------


def check_that_a_chunk_is_halved(backend, monkeypatch, caplog, sizes, m):
    """A forward pass within a limit that Z1 of half of the samples fits, and Z1 of all does not.

    In a pool of its own: what other tests have left in the default one would be taken first, and counts in its limit.
    """
    cupy = backend.xp
    X = np.random.default_rng(0).normal(size=(sizes[0], m)).astype(np.float32)
    expected = Network(sizes, backend=backend, random_state=0).forward(X)
    pool = cupy.cuda.MemoryPool()
    with monkeypatch.context() as patch, cupy.cuda.using_allocator(pool.malloc):
        patch.setattr(cupy, "get_default_memory_pool", lambda: pool)
        net = Network(sizes, backend=backend, random_state=0)
        pool.set_limit(pool.total_bytes() + X.nbytes + 3 * (X.itemsize * sizes[1] * m) // 4)
        with caplog.at_level(logging.WARNING, "fusedmlp"):
            got = net.forward(X)
    assert f"{m // 2:,} samples in place of {m:,}" in caplog.text
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_chunk_that_does_not_fit_is_halved(emulated, monkeypatch, caplog):
    check_that_a_chunk_is_halved(emulated, monkeypatch, caplog, (16, 256, 5), 2000)


def test_a_narrow_network_fits_whole(emulated, monkeypatch, caplog):
    """Its activations are nowhere in memory: a limit that Z1 does not fit makes no chunk smaller."""
    with pytest.raises(AssertionError, match="1,000 samples in place of 2,000"):
        check_that_a_chunk_is_halved(emulated, monkeypatch, caplog, (16, 256, 1), 2000)
    assert caplog.records == []


# Chunks get smaller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", [name for name in PASSES if name != "small batches"])
def test_a_smaller_chunk_gives_the_same_result(emulated, data, caplog, name, fused, resident):
    expected = PASSES[name](Bench(emulated, data, resident, fused=fused))
    bench = Bench(emulated, data, resident, fused=fused)
    refuse_above(20_000 if name != "forward" else 21_000)  # 350 times 7 hidden units; A_L of all samples is 8,800
    with caplog.at_level(logging.WARNING, "fusedmlp"):
        got = PASSES[name](bench)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    first = 600 if name == "large batches" and resident else M
    assert bench.engine._chunk == first // 2 // (2 if first == M else 1)
    messages = [record.message for record in caplog.records]
    assert len(messages) == (2 if first == M else 1)
    assert messages[0] == (
        f"the GPU's memory ran out: chunks of {first // 2:,} samples in place of {first:,} from now on, which changes "
        "the last digits of sums; 7.0 GB are free"
    )
    # The chunk stays: nothing runs out again.
    caplog.clear()
    PASSES[name](bench)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "resident", "sizes"),
    [
        *(("forward", True, ONE), ("loss", False, ONE), ("loss_and_gradients", True, ONE), ("full batch", False, ONE)),
        *(("large batches", True, ONE), ("large batches", False, ONE), ("small batches", True, ONE)),
        *(("small batches", False, ONE), ("loss_and_gradients", True, DEEP), ("large batches", True, DEEP)),
    ],
)
def test_whichever_allocation_fails_the_result_is_right(emulated, data, name, resident, sizes):
    """The later ones in strides: no step is taken twice, none is lost, nothing stays allocated."""
    expected = PASSES[name](Bench(emulated, data, resident, sizes, chunk=600))
    gc.collect()
    before, failed, messages = POOL.used_bytes(), 0, []
    for number in (*range(10), *range(10, 400, 79)):
        bench = Bench(emulated, data, resident, sizes, chunk=600)
        refused = refuse_once(number)
        try:
            got = PASSES[name](bench)
        except MemoryError as error:
            POOL.refuse = None
            messages.append(str(error))
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-11)
        if not refused:
            break
        failed += 1
    assert failed > 2
    del bench
    gc.collect()
    assert POOL.used_bytes() == before
    # Batches that are smaller than the smallest chunk cannot be made smaller; all others can.
    assert len(messages) == (failed if resident and name == "small batches" else 0)
    assert all("chunks of only 200 samples" in message for message in messages)


def test_at_the_floor_the_error_names_the_sizes(emulated, data):
    bench = Bench(emulated, data)
    expected = bench.loss()
    bench = Bench(emulated, data)
    refuse_above(8_000)
    with pytest.raises(MemoryError) as caught:
        bench.loss()
    assert not isinstance(caught.value, OutOfMemoryError)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    assert re.fullmatch(
        r"the GPU's memory ran out with chunks of only 256 samples: layers \[5, 7, 1\] in float64 need 43008 bytes "
        r"for those and 400 bytes for each copy of the parameters; 7.0 GB are free "
        r"\(Out of memory allocating 16,384 bytes .*\)",
        str(caught.value),
    )
    assert bench.engine._buffers == {}
    POOL.refuse = None
    np.testing.assert_allclose(bench.loss(), expected, rtol=1e-12)


def test_a_step_that_fails_is_not_taken_again(emulated, data, monkeypatch):
    bench = Bench(emulated, data, fused=False)
    calls = []

    def take_step(*args):
        calls.append(args)
        raise OutOfMemoryError("Out of memory allocating 1 bytes")

    monkeypatch.setattr(emulated, "take_step", take_step)
    with pytest.raises(MemoryError, match=r"no memory for a step of Adam\(.*\): Out of memory allocating 1 bytes"):
        bench.epoch(M)
    assert len(calls) == 1


def test_free_blocks_go_back_before_the_next_try(emulated, data, monkeypatch):
    bench = Bench(emulated, data)
    freed = []
    monkeypatch.setattr(POOL, "free_all_blocks", lambda: freed.append(POOL.used_bytes()), raising=False)
    gc.collect()
    before = POOL.used_bytes()
    refuse_above(40_000)
    bench.loss()
    assert freed == [before]  # the engine's buffers, and what the pass was at, had been let go of


@pytest.mark.parametrize("resident", [True, False])
def test_nothing_is_kept(emulated, data, resident):
    Bench(emulated, data).epoch(M)  # the backend keeps where the weights of an architecture lie
    # cuBLAS keeps the memory of the last stream that it had, until it has another.
    emulated.matmul(*(fake_cupy.copied(np.ones((2, 2))) for _ in range(2)))
    gc.collect()
    before = POOL.used_bytes()
    bench = Bench(emulated, data, resident)
    refuse_above(20_000)
    bench.epoch(M)
    bench.loss()
    refuse_above(1_000)
    with pytest.raises(MemoryError):
        bench.forward()
    del bench
    POOL.refuse = None
    emulated.matmul(*(fake_cupy.copied(np.ones((2, 2))) for _ in range(2)))
    gc.collect()
    assert POOL.used_bytes() == before


def test_errors_of_main_memory_are_left_alone():
    """The CPU's backends never lower a chunk."""
    net = Network([5, 7, 1], backend="numpy")
    calls = []

    def pass_(*args):
        calls.append(args)
        raise MemoryError("numpy's")

    net.engine._sum_losses = pass_
    with pytest.raises(MemoryError, match="^numpy's$"):
        net.loss(np.ones((5, 3000)), np.ones(3000))
    assert len(calls) == 1


# Steps allocate nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "resident", "shuffled"),
    [(64, True, True), (200, True, False), (64, False, False), (200, False, True)],
)
def test_a_fused_step_allocates_nothing(emulated, data, batch_size, resident, shuffled):
    """Steps are captured, those of samples that come from host memory too."""
    bench = Bench(emulated, data, resident, sizes=(5, 80, 1))
    assert bench.engine.kind == "fused"
    bench.epoch(batch_size, shuffled)
    del POOL.sizes[:]
    bench.epoch(batch_size, shuffled)
    assert not POOL.sizes


@pytest.mark.parametrize("shuffled", [True, False])
def test_a_composed_step_allocates_no_more_than_its_outputs(emulated, data, shuffled):
    """What the loss computes in passing, a number or two per sample; nothing of the size of X or of a hidden layer."""
    bench = Bench(emulated, data, sizes=(5, 80, 1), fused=False)
    bench.epoch(200, shuffled)
    del POOL.sizes[:]
    bench.epoch(200, shuffled)
    assert max(POOL.sizes) <= -(-200 * 8 // UNIT) * UNIT
