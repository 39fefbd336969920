"""ParquetStream: columns of numbers in Parquet files, as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.data.messages import errors_alone, first_line_of, shortened
from fusedmlp.data.shards import Files, ShardStream, shard_files
from fusedmlp.extras import require
from fusedmlp.streams.base import WINDOW_BYTES, Piece, Sizes
from fusedmlp.streams.targets import check_classes, outputs_of, write_targets

BLOCK_BYTES = 2**23
"""Parquet files are read by groups of rows, which take as long whether a part of one is wanted or all of it."""


class ParquetStream(ShardStream):
    """Samples in Parquet files with the same columns of numbers.

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
    block_bytes, window_bytes : int
        As in `ArrayStream`; blocks are larger, as Parquet is read by groups of rows.

    Raises
    ------
    ValueError
        A file is damaged, lacks a column, has a column of another kind, or no rows. The message names the file.
    OSError
        A file cannot be read.
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
        block_bytes: int = BLOCK_BYTES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._pl = pl = require("polars", "data", "reading Parquet")
        sizes, self._classes = Sizes(block_bytes, window_bytes).check(), check_classes(classes)
        paths = shard_files("files", files, (".parquet", ".pq"))
        schemas = [_schema(pl, path) for path in paths]
        self._outputs = [target] if isinstance(target, str) else list(target)
        self._weight = sample_weight
        others = {*self._outputs, sample_weight}
        self._inputs = [name for name in schemas[0] if name not in others] if features is None else list(features)
        wanted = [*self._inputs, *self._outputs, *([] if sample_weight is None else [sample_weight])]
        for argument, names in (("target", self._outputs), ("features", self._inputs)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{argument}: expected different columns, at least one; got {names}")
        for path, schema in zip(paths, schemas, strict=True):
            _check_columns(path, schema, wanted)
            extra = [name for name in schema if name not in schemas[0]]
            if features is None and extra:
                raise ValueError(f"{path}: expected the columns of {paths[0].name}; got {', '.join(extra)} as well")
        rows = [_rows(pl, path) for path in paths]
        super().__init__(paths, rows, 4 * len(wanted), sizes)
        self._wanted, self.n_inputs, self.weighted = wanted, len(self._inputs), sample_weight is not None
        self.n_outputs = outputs_of((1, len(self._outputs)), classes)

    def _read(self, shard: int, start: int, stop: int, room: Piece) -> None:
        path, names = self._paths[shard], self._wanted
        frame = self._frame(path, names, start, stop)
        with np.errstate(over="ignore"):  # what overflows is not finite, and is found with the others
            for place, name in enumerate(self._inputs):
                np.copyto(room.X[:, place], _values(frame[name]), casting="unsafe")
        Y = np.column_stack([_values(frame[name]) for name in self._outputs])
        write_targets(Y, room.Y, self._classes, f"Y: {path}")
        if room.weight is not None:
            np.copyto(room.weight[:, 0], _values(frame[self._weight]), casting="unsafe")

    def _frame(self, path: Path, names: list[str], start: int, stop: int | None) -> Any:
        """Some rows of some columns of a file."""
        pl = self._pl
        frame = _read(
            path,
            lambda: (
                pl.scan_parquet(path, glob=False)
                .select(names)
                .slice(start, None if stop is None else stop - start)
                .collect()
            ),
        )
        for name in names:
            if frame[name].has_nulls():
                row = start + int(frame[name].is_null().arg_true()[0])
                raise ValueError(f"{path}: column {name!r}: a value is missing in row {row} (counted from 0)")
        return frame

    def weights(self) -> np.ndarray | None:
        if self._weight is None:
            return None
        columns = [_values(self._frame(path, [self._weight], 0, None)[self._weight]) for path in self._paths]
        return np.concatenate(columns).astype(np.float64)

    def description(self) -> dict[str, Any]:
        return super().description() | {"inputs": self._inputs, "targets": self._outputs, "weights": self._weight}


def _values(column: Any) -> np.ndarray:
    """A column of numbers or truth values as an array."""
    return np.asarray(column.to_numpy())


def _read(path: Path, read: Any) -> Any:
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
    return int(_read(path, lambda: pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()))


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
