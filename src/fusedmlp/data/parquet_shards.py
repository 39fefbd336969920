"""ParquetStream: columns of numbers in Parquet files, as a stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fusedmlp.data.large.scratch import Scratch, in_words
from fusedmlp.data.messages import counted, errors_alone, first_line_of, shortened
from fusedmlp.data.shards import Files, RowNames, shard_files
from fusedmlp.extras import require
from fusedmlp.model.architecture import Architecture
from fusedmlp.streams.arrays import ArrayStream
from fusedmlp.streams.base import BLOCK_BYTES, WINDOW_BYTES, Sizes, Stream
from fusedmlp.streams.targets import check_classes, outputs_of, write_targets

PIECE_BYTES = 2**26
"""What is read of a file at once: as a part of a group of rows takes as long as all of it, a large part."""

Result = TypeVar("Result")

_log = logging.getLogger("fusedmlp")


class ParquetStream(Stream):
    """Samples in Parquet files with the same columns of numbers.

    Parquet is compressed, column by column: samples cannot be read in any order. So a training begins by writing the
    columns to a scratch file, in the network's type and with a row per sample, and reads that, memory-mapped. It is
    removed when the stream is, or at the end of the process; a later training of this stream uses it again.

    Columns of text are not encoded here: see `Predictor` and ``fusedmlp train``.

    Parameters
    ----------
    files : folder, pattern or list of files
        Those of a folder come in the order of their names.
    target : str or sequence of str
        The columns to predict.
    features : sequence of str, optional
        The columns that are the inputs, in this order. By default all others of the first file.
    sample_weight : str, optional
        A column.
    classes : int, optional
        The target has whole numbers from 0 to classes - 1 in place of columns of 0 and 1.
    scratch : path, optional
        The folder of the scratch file; by default the system's temporary folder. It takes 4 bytes for each number in
        float32, 8 in float64.
    block_bytes, window_bytes : int
        As in `ArrayStream`.

    Raises
    ------
    ValueError
        A file is damaged, lacks a column, has a column of another kind, or no rows. The message names the file.
    OSError
        A file cannot be read, or there is no room for the scratch file.
    MissingExtraError
        polars is needed and not installed.
    """

    def __init__(
        self,
        files: Files,
        target: str | Sequence[str],
        *,
        features: Sequence[str] | None = None,
        sample_weight: str | None = None,
        classes: int | None = None,
        scratch: str | Path | None = None,
        block_bytes: int = BLOCK_BYTES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._pl = pl = require("polars", "data", "reading Parquet")
        self._sizes, self._classes = Sizes(block_bytes, window_bytes).check(), check_classes(classes)
        self._paths = paths = shard_files("files", files, (".parquet", ".pq"))
        schemas = [_schema(pl, path) for path in paths]
        self._outputs = [target] if isinstance(target, str) else list(target)
        self._weight = sample_weight
        others = {*self._outputs, sample_weight}
        self._inputs = [name for name in schemas[0] if name not in others] if features is None else list(features)
        for argument, names in (("target", self._outputs), ("features", self._inputs)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{argument}: expected different columns, at least one; got {names}")
        self._wanted = [*self._inputs, *self._outputs, *([] if sample_weight is None else [sample_weight])]
        for path, schema in zip(paths, schemas, strict=True):
            _check_columns(path, schema, self._wanted)
            extra = [name for name in schema if name not in schemas[0]]
            if features is None and extra:
                raise ValueError(f"{path}: expected the columns of {paths[0].name}; got {', '.join(extra)} as well")
        self._names = RowNames(paths, [_rows(pl, path) for path in paths])
        self.n_inputs, self.m, self.weighted = len(self._inputs), self._names.total, sample_weight is not None
        self.n_outputs, self.window_bytes = outputs_of((1, len(self._outputs)), classes), window_bytes
        self._parent = scratch
        self._scratch: Scratch | None = None
        self._written: dict[tuple[str, int], _Written] = {}

    def for_network(self, architecture: Architecture) -> Stream:
        """The samples in the network's type, memory-mapped."""
        key = architecture.dtype, architecture.n_outputs
        if key not in self._written:
            self._written[key] = _Written(self, *self._write(architecture))
        return self._written[key]

    def _write(self, architecture: Architecture) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Write X, Y and the weights to the scratch folder."""
        a, m = architecture, self.m
        assert m is not None
        n_bytes = m * (a.n_inputs + a.n_outputs) * a.itemsize
        scratch = self._scratch = self._scratch or Scratch(self._parent, "scratch")
        scratch.require(n_bytes, f"the rows of {counted(len(self._paths), 'Parquet file')}")
        _log.info("%s: the rows are written to %s (%s)", self._paths[0].parent, scratch.folder, in_words(n_bytes))
        names = {name: f"{name}-{a.dtype}-{a.n_outputs}" for name in "XY"}
        for name in names:  # what an interrupted call has left
            (scratch.folder / f"{names[name]}.npy").unlink(missing_ok=True)
        weights = []
        with (
            scratch.writing(names["X"], a.dtype, (m, a.n_inputs)) as X_file,
            scratch.writing(names["Y"], a.dtype, (m, a.n_outputs)) as Y_file,
        ):
            for path, frame in self._frames():
                X, Y = self._arrays(path, frame, architecture)
                X_file.write(X)
                Y_file.write(Y)
                if self._weight is not None:
                    weights.append(_values(frame[self._weight]).astype(np.float64))
        weight = np.concatenate(weights) if self.weighted else None
        return scratch.array(names["X"]), scratch.array(names["Y"]), weight

    def _arrays(self, path: Path, frame: Any, architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
        """X and Y of some rows of a file, a row per sample."""
        m, dtype = len(frame), architecture.dtype
        X, Y = np.empty((m, architecture.n_inputs), dtype), np.empty((m, architecture.n_outputs), dtype)
        write_targets(np.column_stack([_values(frame[name]) for name in self._outputs]), Y, self._classes, f"Y: {path}")
        with np.errstate(over="ignore"):  # what overflows is not finite, and is found in training
            for place, name in enumerate(self._inputs):
                np.copyto(X[:, place], _values(frame[name]), casting="unsafe")
        return X, Y

    def _frames(self) -> Iterator[tuple[Path, Any]]:
        """All rows of the columns that are wanted, some at a time."""
        step = max(1, PIECE_BYTES // (8 * len(self._wanted)))
        for number, path in enumerate(self._paths):
            scan = self._pl.scan_parquet(path, glob=False).select(self._wanted)
            for start in range(0, self._names.rows[number], step):
                frame = _read(path, scan.slice(start, step).collect)
                for name in self._wanted:
                    if frame[name].has_nulls():
                        row = start + int(frame[name].is_null().arg_true()[0])
                        raise ValueError(f"{path}: column {name!r}: a value is missing in row {row} (counted from 0)")
                yield path, frame

    def description(self) -> dict[str, Any]:
        return self._names.description() | {
            "inputs": self._inputs,
            "targets": self._outputs,
            "weights": self._weight,
            "classes": self._classes,
            "sizes": list(self._sizes),
        }


class _Written(ArrayStream):
    """The rows of Parquet files in scratch files."""

    def __init__(self, stream: ParquetStream, X: np.ndarray, Y: np.ndarray, weight: np.ndarray | None) -> None:
        sizes = stream._sizes
        super().__init__(X.T, Y.T, weight, block_bytes=sizes.block_bytes, window_bytes=sizes.window_bytes)
        self._files, self._row_names = stream.description(), stream._names

    def where(self, sample: int) -> str:
        return self._row_names.where(sample)

    def description(self) -> dict[str, Any]:
        return self._files


def _values(column: Any) -> np.ndarray:
    """A column of numbers or truth values as an array."""
    return np.asarray(column.to_numpy())


def _read(path: Path, read: Callable[[], Result]) -> Result:
    """What `read` returns; a ValueError that names the file where it is damaged."""
    import polars as pl

    try:
        return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(f"{path}: not a Parquet file, or a damaged one: {first_line_of(error)}") from None


def _schema(pl: Any, path: Path) -> dict[str, Any]:
    with open(path, "rb"):
        pass  # raises an OSError that names the file, if the file cannot be read; polars' own error is less clear
    with errors_alone():
        return dict(_read(path, lambda: pl.read_parquet_schema(path)))


def _rows(pl: Any, path: Path) -> int:
    return int(_read(path, pl.scan_parquet(path, glob=False).select(pl.len()).collect).item())


def _check_columns(path: Path, schema: dict[str, Any], wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in schema]
    if missing:
        known = ", ".join(shortened(name) for name in list(schema)[:50])
        raise ValueError(f"{path}: there is no column {', '.join(missing)}; the columns are {known}")
    for name in wanted:
        kind = schema[name]
        if not (kind.is_integer() or kind.is_float() or str(kind) == "Boolean"):
            raise ValueError(
                f"{path}: column {name!r} is of type {kind}; expected numbers (fusedmlp train encodes others)"
            )
