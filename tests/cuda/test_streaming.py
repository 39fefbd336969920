"""Samples that stay in main memory and are fed to the GPU: the same bits as when they lie there, nothing out of order.

The fake CuPy puts copies off for as long as it may, and finds memory that two streams use at once.
"""

from __future__ import annotations

import gc
import itertools
import logging
import re

import numpy as np
import pytest
from harness import fake_cupy

from fusedmlp import Network
from fusedmlp.backends.cupy.streaming import StreamedFeeder, pieces
from fusedmlp.engines.feeding import HostMatrix
from problems import targets

M, CHUNK = 700, 300


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A chunk takes many pieces, and more of them than there is pinned memory for."""
    monkeypatch.setattr(StreamedFeeder, "staging_bytes", 1000)


def data(sizes=(5, 7, 1), loss="binary_cross_entropy", order="C", weighted=False):
    rng = np.random.default_rng(0)
    X = np.asarray(rng.normal(size=(sizes[0], M)), order=order)
    return X, targets(loss, sizes[-1], M, rng), rng.uniform(size=M) if weighted else None


def network(backend, resident, sizes=(5, 7, 1), loss="binary_cross_entropy", dtype="float64", chunk=CHUNK):
    backend.resident_bytes = 2**30 if resident else 0
    net = Network(sizes, "tanh", loss, dtype=dtype, backend=backend, random_state=0)
    net.engine._chunk = chunk
    return net


def passes(net, X, Y, weight):
    """forward, loss, loss_and_gradients, each from numpy to numpy."""
    J, gradients = net.loss_and_gradients(X, Y, weight, alpha=0.1)
    return [net.forward(X), net.loss(X, Y, weight, alpha=0.1), J, gradients.flat]


def check_same_bits(results):
    got, expected = results
    assert len(got) == len(expected)
    for x, y in zip(got, expected, strict=True):
        assert np.isfinite(x).all()
        assert np.array_equal(x, y)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("sizes", [(5, 7, 1), (3, 4, 6, 2), (3, 4, 20), (4, 1)])
def test_passes_have_the_bits_of_resident_samples(emulated, sizes, order):
    """Fused and composed engines, in float32 from float64 data too."""
    for loss, weighted, dtype in (("binary_cross_entropy", True, "float64"), ("sum_squared_error", False, "float32")):
        X, Y, weight = data(sizes, loss, order, weighted)
        check_same_bits(
            [passes(network(emulated, resident, sizes, loss, dtype), X, Y, weight) for resident in (False, True)]
        )


@pytest.mark.parametrize(
    ("batch_size", "shuffle", "order"),
    [
        *((50, True, "C"), (50, False, "F"), (150, True, "F"), (150, False, "C"), (299, True, "C")),
        *((400, True, "F"), (400, False, "C"), (M, True, "C"), (M, False, "F")),
    ],
)
def test_training_equals_that_on_resident_samples(emulated, batch_size, shuffle, order):
    """Several batches a transfer, one that is smaller, and batches of several chunks.

    But for the last digits: captured steps add up the weights and losses of a batch on the GPU.
    """
    X, Y, weight = data(order=order, weighted=True)

    def train(resident):
        net = network(emulated, resident)
        history = net.fit(
            X,
            Y,
            epochs=4,
            batch_size=batch_size,
            sample_weight=weight,
            alpha=0.1,
            shuffle=shuffle,
            validation_fraction=0.3,
            early_stopping=True,
            patience=2,
            tolerance=1e-2,
        )
        return [history.loss, history.validation_loss, net.parameters.flat.get()]

    for streamed, resident in zip(train(False), train(True), strict=True):
        np.testing.assert_allclose(streamed, resident, rtol=1e-12)


def test_samples_that_are_on_the_gpu_stay_there(emulated):
    X, Y, weight = data(weighted=True)
    net = network(emulated, resident=False)
    expected = passes(net, X, Y, weight)
    feeder, net.engine._feeder = net.engine._feeder, None
    assert feeder is not None
    on_gpu = fake_cupy.copied(X)
    check_same_bits([[x if np.isscalar(x) else x.get() for x in passes(net, on_gpu, Y, weight)], expected])
    assert net.engine._feeder is None
    # Y goes where X is, wherever it was.
    J, _ = net.loss_and_gradients(X, fake_cupy.copied(Y), weight, alpha=0.1)
    assert expected[2] == J
    assert net.engine._feeder is not None


# Where samples are put ------------------------------------------------------------------------------------------------


def test_samples_go_to_the_gpu_where_a_share_of_its_memory_holds_them(emulated, cupy):
    assert emulated.resident_bytes is None
    fake_cupy.POOL.free_all_blocks()
    assert emulated.fits(int(2.7e9))  # 40 % of 7 GB
    assert not emulated.fits(int(2.9e9))
    fake_cupy.POOL.set_limit(fake_cupy.POOL.used_bytes() + 10**6)
    assert emulated.fits(390_000)
    assert not emulated.fits(410_000)
    emulated.resident_bytes = 100
    assert emulated.fits(100)
    assert not emulated.fits(101)


def test_the_limit_counts_x_and_what_goes_with_it(emulated):
    X, Y, _ = data()
    for missing, kind in ((0, fake_cupy.ndarray), (1, HostMatrix)):
        net = network(emulated, resident=True)
        emulated.resident_bytes = M * (5 + 1 + 1) * 8 - missing
        samples = net._samples(X, Y, np.ones(M))
        assert all(isinstance(x, kind) for x in (samples.X, samples.Y, samples.sample_weight))


def test_no_array_of_all_samples_is_made_on_the_gpu(emulated):
    X, Y, weight = data(sizes=(5, 7, 5), weighted=True)
    net = network(emulated, resident=False, sizes=(5, 7, 5), chunk=256)
    emulated.matmul(*(fake_cupy.copied(np.ones((2, 2))) for _ in range(2)))  # cuBLAS gets its memory
    del fake_cupy.POOL.sizes[:]
    net.fit(X, Y, epochs=2, batch_size=32, sample_weight=weight, validation_fraction=0.1)
    passes(net, X, Y, weight)
    most_of_a_chunk = 256 * 8 * 8  # 7 units, and a gap to the next multiple of 16 bytes
    assert max(fake_cupy.POOL.sizes) <= most_of_a_chunk < min(X.nbytes, Y.nbytes)


def test_it_is_announced_once(emulated, caplog):
    X, Y, _ = data()
    net = network(emulated, resident=False)
    fake_cupy.POOL.free_all_blocks()
    with caplog.at_level(logging.INFO, "fusedmlp"):
        net.fit(X, Y, epochs=2)
        net.forward(X)
    (message,) = (record.message for record in caplog.records)
    where = r"X and Y \(33600 bytes\) stay in main memory and are fed in chunks of 300 samples"
    assert re.fullmatch(rf"{where}: 7\.\d GB are free on the GPU", message)


class TestBadSamples:
    """Found in main memory, a block at a time, with the place that they have in all samples."""

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        monkeypatch.setattr("fusedmlp.engines.feeding._BLOCK_BYTES", 100)

    def test_not_finite(self, emulated):
        net = network(emulated, resident=False, dtype="float32")
        X, Y, _ = data()
        X[3, 555] = np.inf
        with pytest.raises(ValueError, match=r"X: expected finite numbers; got inf at row 3, column \(sample\) 555"):
            net.forward(X)
        X[3, 555] = 1e300
        with pytest.raises(ValueError, match=r"got 1e\+300, too large for float32 at row 3, column \(sample\) 555"):
            net.loss(X, Y)

    def test_targets_and_weights(self, emulated):
        net = network(emulated, resident=False)
        X, Y, _ = data()
        Y[0, 600] = 2
        with pytest.raises(ValueError, match=r"Y: .* expects labels 0 or 1; got 2.0 at sample 600"):
            net.loss(X, Y)
        Y[0, 600] = 1
        weight = np.ones(M)
        weight[650] = -3
        with pytest.raises(ValueError, match=r"expected numbers >= 0; the smallest is -3.0"):
            net.fit(X, Y, sample_weight=weight)
        with pytest.raises(ValueError, match="all are 0"):
            net.fit(X, Y, sample_weight=np.zeros(M))
        with pytest.raises(ValueError, match="all weights of the 1 samples in the validation part are 0"):
            net.fit(X, Y, sample_weight=np.r_[1e-3, np.zeros(M - 1)], validation_fraction=1e-9, random_state=0)


# Order between streams ------------------------------------------------------------------------------------------------


def test_work_on_a_stream_of_the_users_own(emulated, cupy):
    X, Y, weight = data(weighted=True)
    expected = passes(network(emulated, resident=False), X, Y, weight)
    net = network(emulated, resident=False)
    for _ in range(2):
        emulated.synchronize()
        with cupy.cuda.Stream():
            check_same_bits([passes(net, X, Y, weight), expected])


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_after_an_error_in_the_middle_all_is_in_order(emulated, monkeypatch, broken):
    X, Y, weight = data(weighted=True)
    net = network(emulated, resident=False)
    expected = passes(net, X, Y, weight)
    real, calls = type(net.engine)._pass, itertools.count(1)

    def fails(self, *args):
        if next(calls) == broken:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(type(net.engine), "_pass", fails)
    with pytest.raises(KeyboardInterrupt):
        net.loss_and_gradients(X, Y, weight)
    copies = net.engine._feeder._copies
    assert copies._done == copies._enqueued
    check_same_bits([passes(net, X, Y, weight), expected])


def test_an_error_of_a_gathering_thread_is_raised(emulated, monkeypatch):
    X, Y, _ = data()
    net = network(emulated, resident=False)
    expected = net.loss(X, Y)
    with monkeypatch.context() as patch:
        patch.setattr(HostMatrix, "write", lambda self, rows, samples, out: 1 / 0)
        samples = [HostMatrix(X, "float64"), HostMatrix(Y, "float64")]
        with pytest.raises(ZeroDivisionError):
            net.engine.loss(net.parameters, *samples)
    assert net.loss(X, Y) == expected


def test_the_callers_arrays_are_his_again(emulated):
    X, Y, weight = data(weighted=True)
    net = network(emulated, resident=False)
    expected = [np.copy(x) for x in passes(net, X, Y, weight)]
    results = passes(net, X, Y, weight)
    for x in (X, Y, weight):
        x[...] = np.nan
    fake_cupy.POOL.free_all_blocks()
    check_same_bits([results, expected])


def test_all_memory_comes_back(emulated):
    network(emulated, resident=False).forward(data()[0])  # the thread's handle keeps its workspace in cuBLAS
    gc.collect()  # what earlier tests left
    fake_cupy.POOL.free_all_blocks()
    before = fake_cupy.POOL.used_bytes()
    net = network(emulated, resident=False)
    net.fit(*data()[:2], epochs=1)
    assert fake_cupy.POOL.used_bytes() > before
    del net
    fake_cupy.POOL.free_all_blocks()
    assert fake_cupy.POOL.used_bytes() == before


# Pieces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_bytes", [8, 24, 56, 200, 10**6])
@pytest.mark.parametrize("shape", [(1, 20), (5, 20), (40, 3)])
def test_pieces_make_up_the_chunk(shape, n_bytes, order):
    X = np.asarray(np.arange(float(np.prod(shape))).reshape(shape), order=order)
    matrix, chunk = HostMatrix(X, "float64"), slice(1, shape[1])
    flat = np.full(shape[0] * (shape[1] - 1), np.nan)
    for rows, samples, start in pieces(matrix, chunk, n_bytes):
        piece = X[rows, samples]
        assert 0 < piece.nbytes <= n_bytes
        part = flat[start : start + piece.size]
        assert np.isnan(part).all()
        part[:] = piece.ravel("F" if matrix.by_sample else "C")
    assert np.array_equal(flat, X[:, chunk].ravel("F" if matrix.by_sample else "C"))
