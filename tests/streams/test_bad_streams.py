"""What cannot be trained on is said in one line that names the argument, the file and the row."""

from __future__ import annotations

import numpy as np
import pytest

from fusedmlp import ArrayStream, BatchStream, Network, NpyStream, ParquetStream, fit_many

X, Y = np.random.default_rng(0).normal(size=(3, 50)), np.arange(50.0) % 2


def network(**arguments):
    return Network([3, 4, 1], backend="numpy", random_state=0, **arguments)


def fit(stream, *more, **arguments):
    return network().fit(stream, *more, **({"epochs": 2, "batch_size": 8} | arguments))


def changed(x, place, value):
    x = x.copy()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayStream(X, Y[:-1]), r"Y: expected 50 samples along the last axis, as X has; got shape \(49,\)"),
        (lambda: ArrayStream(X[0], Y), r"X: expected shape \(n1, m\)"),
        (lambda: ArrayStream(np.array([["a"]]), Y[:1]), "X: expected real numbers; got an array of dtype <U1"),
        (lambda: ArrayStream(X, Y, Y[:-1]), r"sample_weight: expected shape \(m=50,\)"),
        (lambda: ArrayStream(X, Y, classes=1), "classes: expected at least 2; got 1"),
        (lambda: ArrayStream(X, Y, window_bytes=0), "window_bytes: expected"),
        (lambda: ArrayStream(X, Y, block_bytes=1.5), "block_bytes: expected"),
        (lambda: BatchStream([]), "batches: expected at least one batch; got none"),
        (lambda: BatchStream(3), "batches: expected an iterable"),
        (lambda: BatchStream(lambda: 3), "batches: expected a function that returns an iterable; got 3"),
        (lambda: BatchStream([X]), r"batches: expected tuples \(X, Y\)"),
        (lambda: BatchStream([(X, Y[:-1])]), "batches: Y: expected 50 samples, as X has; got 49. .*rows=True"),
        (lambda: BatchStream([(X, [object()])]), "batches: Y: expected real numbers; got an array of dtype object"),
        (lambda: BatchStream([(X, Y)], samples=0), "samples: expected"),
    ],
)
def test_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArrayStream(X[:2], Y), "X: expected 3 inputs; the stream has 2"),
        (lambda: ArrayStream(X, np.vstack([Y, Y])), "Y: the stream is for 2 outputs; the network has 1"),
        (lambda: ArrayStream(X, Y, classes=3), "Y: the stream is for 3 outputs; the network has 1"),
        (
            lambda: ArrayStream(changed(X, (1, 17), np.nan), Y),
            "X: expected finite numbers of float.*; got nan in sample 17",
        ),
        (
            lambda: ArrayStream(changed(X, (1, 17), 1e300), Y),
            "X: expected finite numbers of float32; got inf in sample 17",
        ),
        (lambda: ArrayStream(X, changed(Y, 3, 7)), "Y: binary_cross_entropy expects .*; got 7.0 in sample 3"),
        (lambda: ArrayStream(X, Y, changed(Y, 3, -1)), "sample_weight: expected finite numbers >= 0"),
        (lambda: ArrayStream(X, Y, 0 * Y), "sample_weight: expected at least one weight > 0; all are 0"),
        (lambda: [(X, Y), (X[:2], Y)], "batches: X: expected 3 inputs; got 2 after 50 samples"),
        (lambda: [(X, Y), (X, Y, Y)], "batches: sample_weight: the first batch has none"),
        (
            lambda: [(X, Y), (X, changed(Y, 3, 7))],
            "Y: binary_cross_entropy expects .*; got 7.0 in sample 53 of the epoch",
        ),
        (lambda: [(X, Y), 5], r"batches: expected tuples \(X, Y\)"),
        (lambda: iter([(X, Y)]), "epochs: expected 1, as an iterator can be read only once, .*; got 2"),
        (
            lambda: BatchStream([(X, Y)], samples=80),
            "batches: expected 80 samples in an epoch; the iterator ended after 50",
        ),
    ],
)
def test_when_it_is_trained_on(make, message):
    with pytest.raises(ValueError, match=message):
        fit(make())


def test_class_numbers_without_classes():
    net = Network([3, 4, 2], "relu", "categorical_cross_entropy", backend="numpy")
    with pytest.raises(
        ValueError, match="Y: expected 2 numbers for each sample; got 1; classes=2 is for class numbers"
    ):
        net.fit([(X, Y)])


def test_arguments_that_do_not_go_together():
    stream = ArrayStream(X, Y)
    with pytest.raises(ValueError, match="Y: expected None beside a stream"):
        fit(stream, Y)
    with pytest.raises(ValueError, match="sample_weight: expected None beside a stream"):
        fit(stream, sample_weight=Y)
    with pytest.raises(ValueError, match="Y: expected an array of targets"):
        fit(X)
    with pytest.raises(ValueError, match="comm: expected None with a stream"):
        fit(stream, comm=object())
    with pytest.raises(ValueError, match="X: expected an array; got ArrayStream"):
        fit_many([network()], stream, Y)
    with pytest.raises(ValueError, match="validation_data: expected .* a stream; got str"):
        fit(stream, validation_data="rows")
    with pytest.raises(ValueError, match="validation_data: expected samples that can be read again"):
        fit(stream, validation_data=BatchStream(iter([(X, Y)])))


def test_iterators_with_fewer_or_more_samples_than_before():
    for lengths in ([2, 1], [1, 2]):
        left = list(lengths)
        with pytest.raises(ValueError, match="batches: expected (100|50) samples"):
            fit(lambda left=left: [(X, Y)] * left.pop(0))


def test_an_error_keeps_the_last_whole_batch():
    """The network has the weights of the last batch that was trained on, and can go on."""
    net, other = network(), network()
    broken = ArrayStream(X, changed(Y, 49, 7), block_bytes=1, window_bytes=1)
    with pytest.raises(ValueError, match="in sample 49"):
        net.fit(broken, batch_size=8, shuffle=False)
    other.fit(X[:, :48], Y[:48], batch_size=8, shuffle=False, epochs=1)
    assert np.array_equal(net.parameters.flat, other.parameters.flat)


# Files ----------------------------------------------------------------------------------------------------------------


def shards(folder, *tables):
    for number, table in enumerate(tables):
        np.save(folder / f"{number}.npy", table)
    return folder


TABLE = np.vstack([X, Y]).T


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "X: expected a folder, a pattern or a list of .npy files; .* has none"),
        ([TABLE, TABLE[:, :3]], r"X: .*1\.npy: expected 4 columns, as 0\.npy has; got 3 columns"),
        ([TABLE, TABLE[:0]], r"1\.npy: expected at least one sample in every shard; got none"),
        ([TABLE, TABLE.astype(str)], r"1\.npy: expected real numbers"),
        ([TABLE[0]], r"0\.npy: expected a row per sample; got shape \(4,\)"),
        ([TABLE, changed(TABLE, (9, 1), np.inf)], r"X: .*got inf in row 9 of .*1\.npy \(counted from 0\)"),
        ([TABLE, changed(TABLE, (9, 3), 5)], r"Y: .*got 5.0 in row 9 of .*1\.npy \(counted from 0\)"),
    ],
)
def test_npy_shards(tables, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(NpyStream(shards(tmp_path, *tables)))


def test_npy_files_that_do_not_belong_together(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    X_files, Y_files = shards(tmp_path / "a", X.T, X.T), shards(tmp_path / "b", Y)
    with pytest.raises(ValueError, match="Y: expected 2 files, as X has; got 1"):
        NpyStream(X_files, Y_files)
    np.save(Y_files / "1.npy", Y[:-1])
    with pytest.raises(ValueError, match=r"Y: .*1\.npy: expected 50 rows, as 1\.npy has; got 49"):
        NpyStream(X_files, Y_files)
    with pytest.raises(ValueError, match="target: expected None beside Y; got 0"):
        NpyStream(X_files, Y_files, target=0)
    with pytest.raises(ValueError, match="target: expected columns from -3 to 2; got 3"):
        NpyStream(X_files, target=3)
    with pytest.raises(FileNotFoundError, match=r"X: nowhere\.npy: no such file"):
        NpyStream(["nowhere.npy"])
    with pytest.raises(ValueError, match=r"X: expected \.npy files; got table\.csv"):
        NpyStream(["table.csv"])
    (tmp_path / "a" / "2.npy").write_bytes(b"no numpy")
    with pytest.raises(ValueError, match=r"2\.npy: not a \.npy file"):
        NpyStream(X_files)


def test_parquet_shards(tmp_path):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(TABLE, schema=["a", "b", "c", "y"])
    others = {
        "a column less": (frame.drop("b"), "there is no column b"),
        "a column more": (frame.with_columns(d=1), "expected the columns of 0.parquet; got d as well"),
        "text": (frame.with_columns(b=pl.lit("x")), "column 'b' is of type String; expected numbers"),
        "no rows": (frame[:0], "expected at least one sample in every shard; got none"),
        "missing": (frame.with_columns(b=pl.when(pl.col("a") < 0).then("b")), "column 'b': a value is missing in row"),
        "NaN": (frame.with_columns(b=float("nan")), r"got nan in row \d+ of .*1\.parquet"),
    }
    frame.write_parquet(tmp_path / "0.parquet")
    for name, (other, message) in others.items():
        other.write_parquet(tmp_path / "1.parquet")
        with pytest.raises(ValueError, match=message) as error:
            fit(ParquetStream(tmp_path, "y"))
        assert "1.parquet" in str(error.value), name
    (tmp_path / "1.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match=r"1\.parquet: not a Parquet file, or a damaged one"):
        ParquetStream(tmp_path, "y")
    with pytest.raises(ValueError, match="there is no column z"):
        ParquetStream([tmp_path / "0.parquet"], "z")
    with pytest.raises(ValueError, match="features: expected different columns"):
        ParquetStream([tmp_path / "0.parquet"], "y", features=["a", "a"])
