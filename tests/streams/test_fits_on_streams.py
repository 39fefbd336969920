"""`fit` on streams: the bits of `fit` on arrays where the order is the same, checkpoints, interruptions, read-ahead."""

from __future__ import annotations

import _thread
import shutil
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusedmlp.streams.opening as opening
from fusedmlp import ArrayStream, BatchStream, Network, NpyStream, ParquetStream
from fusedmlp.checkpoints import FileRecorder
from fusedmlp.errors import CheckpointError, TrainingDivergedError
from fusedmlp.streams.base import BlockStream
from machine import require

RNG = np.random.default_rng(0)
M = 331
X = RNG.normal(size=(4, M))
LABELS = RNG.integers(0, 3, M)
Y = np.eye(3)[LABELS].T
WEIGHT = RNG.random(M) + 0.5
SIZES = {"block_bytes": 500, "window_bytes": 4000}  # blocks of 15 samples, windows of 56


def network(backend="numpy", dtype="float64", seed=0, loss="categorical_cross_entropy"):
    return Network([4, 6, 3], "tanh", loss, backend=require(backend), dtype=dtype, random_state=seed)


def fit(net, *samples, **arguments):
    return net.fit(*samples, **({"epochs": 3, "batch_size": 8, "random_state": 7} | arguments))


def outcome(net):
    history = net.history
    return (net.parameters.flat.tobytes(), history.loss, history.validation_loss, history.best_epoch, history.samples)


def batches_of(size, weighted=False, rows=False):
    """A function that gives the samples in batches."""
    arrays = (X, Y, WEIGHT) if weighted else (X, Y)

    def batches():
        for start in range(0, M, size):
            batch = tuple(x[..., start : start + size] for x in arrays)
            yield tuple(x.T for x in batch) if rows else batch

    return batches


def npy_files(folder, cuts, weighted=False):
    """Shards of X, Y and weights; the folders."""
    for name, x in (("X", X.T), ("Y", Y.T), ("w", WEIGHT)):
        (folder / name).mkdir()
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, M], strict=True)):
            np.save(folder / name / f"{number:03}.npy", x[start:stop])
    return folder / "X", folder / "Y", folder / "w" if weighted else None


def parquet_files(folder, cuts):
    pl = pytest.importorskip("polars")
    columns = {f"x{i}": X[i] for i in range(4)} | {f"y{i}": Y[i] for i in range(3)} | {"label": LABELS, "w": WEIGHT}
    frame = pl.DataFrame(columns)
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, M], strict=True)):
        frame[start:stop].write_parquet(folder / f"part-{number:03}.parquet")
    return folder


INPUTS = ["x0", "x1", "x2", "x3"]


def streams(folder):
    """Every kind of stream of the same samples."""
    npy, parquet = folder / "npy", folder / "parquet"
    npy.mkdir()
    parquet.mkdir()
    X_files, Y_files, _ = npy_files(npy, [100, 101, 290])
    np.save(folder / "both.npy", np.vstack([X, Y]).T)
    parquet_files(parquet, [40, 200])
    return {
        "array": ArrayStream(X, Y, **SIZES),
        "labels": ArrayStream(X, LABELS, classes=3, **SIZES),
        "batches": BatchStream(batches_of(13), window_bytes=4000),
        "rows": BatchStream(batches_of(50, rows=True), rows=True, window_bytes=4000),
        "npy": NpyStream(X_files, Y_files, **SIZES),
        "npy, one table": NpyStream([folder / "both.npy"], target=[-3, -2, -1], **SIZES),
        "parquet": ParquetStream(parquet, ["y0", "y1", "y2"], features=INPUTS, **SIZES),
        "parquet, labels": ParquetStream(str(parquet / "*.parquet"), "label", features=INPUTS, classes=3, **SIZES),
    }


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_the_bits_are_those_of_arrays(backend, tmp_path):
    whole = network(backend)
    fit(whole, X, Y, shuffle=False, alpha=0.01)
    for name, stream in streams(tmp_path).items():
        net = network(backend)
        fit(net, stream, shuffle=False, alpha=0.01)
        assert net.parameters.flat.tobytes() == whole.parameters.flat.tobytes(), name
        assert net.history.loss == pytest.approx(whole.history.loss, rel=1e-12), name
        assert net.history.samples == M, name


def test_all_streams_shuffle_and_train(tmp_path):
    losses = {name: fit(network(), stream, epochs=15).loss for name, stream in streams(tmp_path).items()}
    for name, loss in losses.items():
        assert loss[-1] < loss[0], name
    assert losses["array"] == losses["labels"]


@given(size=st.integers(1, 400), window=st.integers(1, 8000), batch=st.integers(1, 400), weighted=st.booleans())
def test_batches_of_any_size(size, window, batch, weighted):
    """Batches are put together anew: their sizes do not matter."""
    whole, net = network(), network()
    fit(whole, BatchStream([(X, Y, WEIGHT)] if weighted else [(X, Y)]), shuffle=False, batch_size=batch)
    fit(net, BatchStream(batches_of(size, weighted), window_bytes=window), shuffle=False, batch_size=batch)
    assert net.parameters.flat.tobytes() == whole.parameters.flat.tobytes()
    assert net.history.samples == M


def test_weights_count(tmp_path):
    """Where weights are known before they are read, a batch's gradient is that of arrays; else its own count."""
    whole = network()
    fit(whole, X, Y, sample_weight=WEIGHT, shuffle=False)
    folders = npy_files(tmp_path, [100], weighted=True)
    parquet = parquet_files(tmp_path, [40])
    for stream in (
        ArrayStream(X, Y, WEIGHT, **SIZES),
        NpyStream(folders[0], folders[1], sample_weight=folders[2], **SIZES),
        ParquetStream(parquet, "label", features=INPUTS, sample_weight="w", classes=3, **SIZES),
    ):
        net = network()
        fit(net, stream, shuffle=False)
        assert np.allclose(net.parameters.flat, whole.parameters.flat, rtol=0, atol=1e-12)
    once = network()
    fit(once, BatchStream(batches_of(10, weighted=True)), shuffle=False, epochs=1, batch_size=M)
    assert once.history.loss[0] == pytest.approx(network().loss(X, Y, WEIGHT), rel=1e-12)


def test_iterables_go_straight_into_fit():
    whole = network()
    fit(whole, X, Y, shuffle=False)
    for batches in (batches_of(20), list(batches_of(20)())):
        net = network()
        fit(net, batches, shuffle=False)
        assert net.parameters.flat.tobytes() == whole.parameters.flat.tobytes()
    net = network()
    fit(net, batches_of(20)(), shuffle=False, epochs=1)
    assert net.history.epochs == 1


def test_an_epoch_of_so_many_samples():
    def endless():
        while True:
            yield X[:, :50], Y[:, :50]

    net, other = network(), network()
    fit(net, BatchStream(endless, samples=120), shuffle=False)
    fit(other, np.tile(X[:, :50], 3)[:, :120], np.tile(Y[:, :50], 3)[:, :120], shuffle=False)
    assert net.parameters.flat.tobytes() == other.parameters.flat.tobytes()


def test_sparse_batches():
    from scipy import sparse

    whole, net = network(), network()
    fit(whole, X, Y, shuffle=False)
    fit(net, [(sparse.csr_array(X[:, i : i + 40]), Y[:, i : i + 40]) for i in range(0, M, 40)], shuffle=False)
    assert net.parameters.flat.tobytes() == whole.parameters.flat.tobytes()


# Validation -----------------------------------------------------------------------------------------------------------


def test_validation_streams_and_arrays():
    histories = [
        fit(network(), ArrayStream(X, Y, **SIZES), validation_data=validation).validation_loss
        for validation in (
            ArrayStream(X, Y, WEIGHT, **SIZES),
            (X, Y, WEIGHT),
            BatchStream(batches_of(11, weighted=True)),
        )
    ]
    assert histories[0] == pytest.approx(histories[1], rel=1e-12)
    assert histories[2] == pytest.approx(histories[1], rel=1e-12)


def test_blocks_are_held_back():
    net = network()
    history = fit(net, ArrayStream(X, Y, **SIZES), validation_fraction=0.2, early_stopping=True, patience=2, epochs=40)
    assert len(history.validation_loss) == history.epochs
    assert 0.7 * M < history.samples < 0.9 * M
    with pytest.raises(ValueError, match="validation_fraction: 0.2 of 1 blocks leaves none"):
        fit(network(), ArrayStream(X, Y), validation_fraction=0.2)
    with pytest.raises(ValueError, match="validation_fraction: expected 0 with an iterable of batches"):
        fit(network(), batches_of(10), validation_fraction=0.2)


@pytest.mark.parametrize("once", [True, False])
def test_divergence_puts_the_best_weights_back(once):
    net = network(loss="squared_error")
    before = net.parameters.flat.copy()
    stream = batches_of(10)() if once else ArrayStream(X, Y, **SIZES)
    with pytest.raises(TrainingDivergedError, match="the best weights so far"):
        fit(net, stream, optimizer="sgd", learning_rate=1e200, epochs=1)
    assert np.array_equal(net.parameters.flat, before)


# Going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
@pytest.mark.parametrize("kind", ["array", "batches", "npy", "parquet"])
def test_checkpoints_anywhere(backend, kind, tmp_path, monkeypatch):
    kept, write = [], FileRecorder.write

    def writing(self, *arguments):
        write(self, *arguments)
        kept.append(shutil.copy(self.path, tmp_path / f"kept-{len(kept)}"))

    monkeypatch.setattr(FileRecorder, "write", writing)
    arguments = {"dropout": 0.2, "schedule": "cosine"}
    if kind != "batches":
        arguments |= {"validation_fraction": 0.2, "early_stopping": True, "patience": 2}
    folder = tmp_path / "files"
    folder.mkdir()
    make = streams(folder)
    remade = {
        "array": lambda: ArrayStream(X, Y, **SIZES),
        "batches": lambda: BatchStream(batches_of(13), window_bytes=4000),
    }
    stream = remade.get(kind, lambda: make[kind])
    whole = network(backend)
    fit(whole, stream(), **arguments)
    fit(network(backend), stream(), checkpoint=tmp_path / "run", checkpoint_every="10 batches", **arguments)
    assert len(kept) > 6
    for number, snapshot in enumerate(list(kept)):
        shutil.copy(snapshot, tmp_path / "again")
        net = network(backend, seed=100 + number)
        fit(net, stream(), checkpoint=tmp_path / "again", checkpoint_every=100, **arguments)
        assert outcome(net) == outcome(whole), f"checkpoint {number}"


def test_a_checkpoint_of_other_samples(tmp_path):
    fit(network(), ArrayStream(X, Y, **SIZES), checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match="samples: "):
        fit(network(), ArrayStream(X[:, 1:], Y[:, 1:], **SIZES), checkpoint=tmp_path / "run", epochs=5)
    with pytest.raises(CheckpointError, match="samples: "):
        fit(network(), ArrayStream(X, Y), checkpoint=tmp_path / "run", epochs=5)


def test_an_interrupted_epoch_goes_on(monkeypatch):
    from fusedmlp import TrainingState
    from fusedmlp.engines.options import GradientPhase

    class Interrupting(GradientPhase):
        count = 0

        def apply(self, gradient, sums):
            self.count += 1
            if self.count == 60:
                raise KeyboardInterrupt

    whole, net, state = network(), network(), TrainingState()
    fit(whole, ArrayStream(X, Y, **SIZES))
    with pytest.raises(KeyboardInterrupt):
        fit(net, ArrayStream(X, Y, **SIZES), state=state, gradient_phase=Interrupting())
    assert (state.epoch, state.batch) == (1, 17)
    fit(net, ArrayStream(X, Y, **SIZES), state=state, random_state=None, epochs=2)
    assert outcome(net) == outcome(whole)


# Reading ahead --------------------------------------------------------------------------------------------------------


class Watched(BlockStream):
    """A stream that says what was read when."""

    def __init__(self, wrapped):
        self.wrapped, self.events = wrapped, []
        self.n_inputs, self.m, self.weighted = wrapped.n_inputs, wrapped.m, wrapped.weighted
        self.window_bytes, self._edges, self.n_outputs = wrapped.window_bytes, wrapped.edges, wrapped.n_outputs

    def read(self, start, stop, room):
        self.events.append(("read", threading.current_thread().name))
        self.wrapped.read(start, stop, room)

    def weights(self):
        return None

    def description(self):
        return {}


def test_reading_runs_ahead_in_a_thread():
    """While the first window is trained on, the second one is read, and not the third."""
    from fusedmlp.engines.options import GradientPhase

    stream = Watched(ArrayStream(X, Y, block_bytes=10**6, window_bytes=4000))
    counts = []

    class Waiting(GradientPhase):
        def apply(self, gradient, sums):
            if not counts:
                deadline = time.monotonic() + 10
                while len(stream.events) < 2 and time.monotonic() < deadline:
                    time.sleep(0.001)
                time.sleep(0.05)
            counts.append(len(stream.events))

    fit(network(), stream, shuffle=False, epochs=1, gradient_phase=Waiting())
    assert counts[0] == 2
    assert {name for _, name in stream.events} == {"fusedmlp-reader"}
    assert len(stream.events) == 6


def test_no_thread_is_left():
    def failing():
        yield X[:, :30], Y[:, :30]
        raise RuntimeError("the disk is gone")

    net = network()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        fit(net, failing, batch_size=8)
    assert "fusedmlp-reader" not in {thread.name for thread in threading.enumerate()}
    fit(net, X, Y)  # it can be trained on


def test_ctrl_c_while_an_iterator_waits():
    """A signal ends the training although the iterator gives nothing."""
    blocked, waiting = threading.Event(), threading.Event()

    def slow():
        yield X[:, :100], Y[:, :100]
        waiting.set()
        blocked.wait(20)
        yield X[:, 100:], Y[:, 100:]

    def interrupt():
        waiting.wait(20)
        time.sleep(0.2)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit(network(), BatchStream(slow, window_bytes=2000))
    assert time.monotonic() - begin < 10
    blocked.set()


def test_memory_mapped_arrays_are_streamed(tmp_path, monkeypatch):
    """A large memory-mapped X is read in blocks, by itself; a full batch reads it where it is."""
    np.save(tmp_path / "X.npy", X.T)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    monkeypatch.setattr(opening, "MAPPED_BYTES", 1000)
    used = []
    monkeypatch.setattr(opening, "ArrayStream", lambda *given: used.append(given) or ArrayStream(*given, **SIZES))
    net, stream = network(), network()
    fit(net, mapped.T, Y)
    fit(stream, ArrayStream(X, Y, **SIZES))
    assert len(used) == 1
    assert net.parameters.flat.tobytes() == stream.parameters.flat.tobytes()
    fit(network(), mapped[:, :][10:].T, Y[:, 10:], shuffle=False)
    assert len(used) == 2
    fit(network(), mapped.T, Y, batch_size=M)
    assert len(used) == 2
    fit(network(), X, Y)
    assert len(used) == 2
