"""The scratch file of a ParquetStream: written once for a type, and removed with the stream."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fusedmlp import Network, ParquetStream
from fusedmlp.data.large import scratch as scratch_files

pl = pytest.importorskip("polars")

RNG = np.random.default_rng(0)
TABLE = {"a": RNG.normal(size=90), "b": RNG.integers(0, 5, 90), "y": RNG.random(90) < 0.5, "w": RNG.random(90)}


@pytest.fixture
def files(tmp_path):
    """A folder of two Parquet files, and an empty one for scratch files."""
    (tmp_path / "files").mkdir()
    (tmp_path / "scratch").mkdir()
    frame = pl.DataFrame(TABLE)
    frame[:40].write_parquet(tmp_path / "files" / "1.parquet")
    frame[40:].write_parquet(tmp_path / "files" / "2.parquet", row_group_size=7)
    return tmp_path / "files", tmp_path / "scratch"


def fit(stream, dtype="float32", **arguments):
    net = Network([2, 3, 1], backend="numpy", dtype=dtype, random_state=0)
    net.fit(stream, epochs=2, batch_size=8, **arguments)
    return net


def test_it_is_written_once_for_a_type_and_removed_with_the_stream(files, monkeypatch):
    written, write = [], ParquetStream._write
    monkeypatch.setattr(ParquetStream, "_write", lambda self, a: written.append(a.dtype) or write(self, a))
    folder, scratch = files
    stream = ParquetStream(folder, "y", sample_weight="w", scratch=scratch)
    assert not list(scratch.iterdir())
    first, again = fit(stream, random_state=1), fit(stream, random_state=1)
    assert first.parameters.flat.tobytes() == again.parameters.flat.tobytes()
    fit(stream, "float64")
    assert written == ["float32", "float64"]
    assert len(list(scratch.glob("*/*.npy"))) == 4
    del stream
    gc.collect()
    assert not list(scratch.iterdir())


def test_it_is_removed_at_the_end_of_the_process(files):
    folder, scratch = files
    program = """
import sys
from fusedmlp import Network, ParquetStream
stream = ParquetStream(sys.argv[1], "y", features=["a", "b"], scratch=sys.argv[2])
Network([2, 3, 1], backend="numpy").fit(stream, epochs=1)
raise SystemExit("an error")
"""
    result = subprocess.run(
        [sys.executable, "-c", program, folder, scratch], capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == "an error"
    assert not list(scratch.iterdir())


def test_no_room(files, monkeypatch):
    folder, scratch = files
    monkeypatch.setattr(scratch_files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match=r"scratch: the rows of 2 Parquet files need 1\.1 kB in .*scratch; expected"):
        fit(ParquetStream(folder, "y", features=["a", "b"], scratch=scratch))
    with pytest.raises(FileNotFoundError, match="scratch: expected a folder; there is no folder"):
        fit(ParquetStream(folder, "y", features=["a", "b"], scratch=scratch / "nowhere"))


def test_rows_are_named_by_their_file(files):
    folder, _ = files
    frame = pl.read_parquet(folder / "2.parquet")
    frame.with_columns(a=pl.when(pl.int_range(pl.len()) == 12).then(float("inf")).otherwise("a")).write_parquet(
        folder / "2.parquet"
    )
    with pytest.raises(ValueError, match=r"X: .*got inf in row 12 of .*2\.parquet \(counted from 0\)"):
        fit(ParquetStream(folder, "y", features=["a", "b"]))


def test_an_interrupted_write_is_repeated(files, monkeypatch):
    folder, scratch = files
    stream = ParquetStream(folder, "y", features=["a", "b"], scratch=scratch)
    values, calls = ParquetStream._arrays, []

    def failing(self, *given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return values(self, *given)

    monkeypatch.setattr(ParquetStream, "_arrays", failing)
    with pytest.raises(KeyboardInterrupt):
        fit(stream)
    assert fit(stream).history.samples == 90
