"""Samples in many files, the shards, as one stream: what every format of them has in common; and .npy files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.checks import shown
from fusedmlp.data.arrays import read_npy
from fusedmlp.data.messages import counted
from fusedmlp.streams.base import BLOCK_BYTES, WINDOW_BYTES, BlockStream, Piece, Sizes, block_edges
from fusedmlp.streams.mapped import MappedRows
from fusedmlp.streams.targets import check_classes, outputs_of, write_targets

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A folder, a pattern such as "data/part-*.npy", or a list of files."""


def shard_files(argument: str, files: Files, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that are meant: those of a folder or a pattern in the order of their names.

    Raises
    ------
    ValueError
        There are none, or one is of another kind.
    FileNotFoundError
        A file of a list is missing.
    """
    kinds = " or ".join(suffixes)
    if isinstance(files, str | os.PathLike):
        name = os.fspath(files)
        if os.path.isdir(name):
            found = sorted(path for path in Path(name).iterdir() if path.suffix.lower() in suffixes)
        else:
            found = sorted(map(Path, glob.glob(name)))
        if not found:
            raise ValueError(f"{argument}: expected a folder, a pattern or a list of {kinds} files; {name} has none")
    else:
        if not isinstance(files, Sequence) or not files:
            raise ValueError(f"{argument}: expected a folder, a pattern or a list of {kinds} files; got {shown(files)}")
        found = [Path(each) for each in files]
    for path in found:
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"{argument}: expected {kinds} files; got {path}")
        if not path.exists():
            raise FileNotFoundError(f"{argument}: {path}: no such file")
    return found


class RowNames:
    """Shards that are numbered through, and the names of their rows.

    Parameters
    ----------
    paths : list of Path
    rows : list of int
        The samples of each.

    Attributes
    ----------
    rows : list of int
    total : int
    firsts : numpy.ndarray of shape (shards + 1,), int64
        The numbers of their first samples.
    """

    def __init__(self, paths: list[Path], rows: list[int]) -> None:
        for path, count in zip(paths, rows, strict=True):
            if not count:
                raise ValueError(f"{path}: expected at least one sample in every shard; got none")
        self._paths, self.rows = paths, rows
        self.firsts = np.concatenate(([0], np.cumsum(rows))).astype(np.int64)
        self.total = int(self.firsts[-1])

    def shard(self, sample: int) -> tuple[int, int]:
        """(the number of the shard of a sample, the sample's row in it)."""
        shard = int(np.searchsorted(self.firsts, sample, side="right")) - 1
        return shard, sample - int(self.firsts[shard])

    def where(self, sample: int) -> str:
        """A sample, for messages."""
        shard, row = self.shard(sample)
        return f"row {row} of {self._paths[shard]} (counted from 0)"

    def description(self) -> dict[str, Any]:
        """What a checkpoint compares."""
        return {"shards": [[path.name, path.stat().st_size] for path in self._paths], "samples": self.total}


class NpyStream(BlockStream):
    """Samples in .npy files, memory-mapped: a row per sample in each file, and as many columns in all.

    Parameters
    ----------
    X : folder, pattern or list of files
        Files of shape (k, n1); without `Y` of shape (k, n1 + targets). Those of a folder come in the order of their
        names.
    Y : folder, pattern or list of files, optional
        As many files, of shape (k,) or (k, nL).
    target : int or sequence of int, optional
        Without `Y`: the columns of the files that are the targets; negative numbers count from the last one. By default
        the last one.
    sample_weight : folder, pattern or list of files, optional
        As many files, of shape (k,).
    classes : int, optional
        Targets are whole numbers from 0 to classes - 1 in place of columns of 0 and 1.
    block_bytes, window_bytes : int
        As in `ArrayStream`.

    Raises
    ------
    ValueError
        A file is no array of real numbers, has other columns than the first one, or no rows; or files do not belong
        together. The message names the file.
    OSError
        A file cannot be read.
    """

    def __init__(
        self,
        X: Files,
        Y: Files | None = None,
        *,
        target: int | Sequence[int] | None = None,
        sample_weight: Files | None = None,
        classes: int | None = None,
        block_bytes: int = BLOCK_BYTES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        sizes, self._classes = Sizes(block_bytes, window_bytes).check(), check_classes(classes)
        paths = shard_files("X", X, (".npy",))
        tables = _arrays("X", paths, (2,))
        rows, width = [len(table) for table in tables], tables[0].shape[1]
        if Y is not None and target is not None:
            raise ValueError(f"target: expected None beside Y; got {target!r}")
        self._inputs, self._outputs = (list(range(width)), []) if Y is not None else _columns(target, width)
        targets = None if Y is None else _beside("Y", Y, paths, rows)
        weights = None if sample_weight is None else _beside("sample_weight", sample_weight, paths, rows)
        self._paths, self._names = paths, RowNames(paths, rows)
        self.m, self.window_bytes = self._names.total, sizes.window_bytes
        places = zip(rows, self._names.firsts.tolist(), strict=False)
        row_bytes = width * tables[0].itemsize
        blocks = [block_edges(count, row_bytes, sizes.block_bytes, first) for count, first in places]
        self._edges = np.concatenate((*blocks, [self.m]))  # no block has samples of two shards
        self._tables, self._targets, self._weights = tables, targets, weights
        self._mapped = [MappedRows.of(table) for table in tables]
        self.n_inputs, self.weighted = len(self._inputs), weights is not None
        shape = (1, len(self._outputs)) if targets is None else targets[0].shape
        self.n_outputs = outputs_of(shape, classes)

    def read(self, start: int, stop: int, room: Piece) -> None:
        shard, first = self._names.shard(start)
        last = first + stop - start
        table = self._tables[shard][first:last]
        with np.errstate(over="ignore"):  # what overflows is not finite, and is found with the others
            if self._outputs:
                for place, column in enumerate(self._inputs):
                    np.copyto(room.X[:, place], table[:, column], casting="unsafe")
            else:
                np.copyto(room.X, table, casting="unsafe")
        Y = table[:, self._outputs] if self._targets is None else self._targets[shard][first:last]
        write_targets(Y, room.Y, self._classes, f"Y: {self._paths[shard]}")
        if room.weight is not None and self._weights is not None:
            np.copyto(room.weight[:, 0], self._weights[shard][first:last].reshape(-1), casting="unsafe")

    def announce(self, start: int, stop: int) -> None:
        shard, row = self._names.shard(start)
        mapped = self._mapped[shard]
        if mapped is not None:
            mapped.announce(row, row + stop - start)

    def where(self, sample: int) -> str:
        return self._names.where(sample)

    def description(self) -> dict[str, Any]:
        cut = {"blocks": len(self._edges) - 1, "window": self.window_bytes}
        return self._names.description() | cut | {"inputs": self._inputs, "targets": self._outputs}

    def weights(self) -> np.ndarray | None:
        return None if self._weights is None else np.concatenate([each.reshape(-1) for each in self._weights])


def _arrays(argument: str, paths: list[Path], axes: tuple[int, ...]) -> list[np.ndarray]:
    """The arrays of files, which have the same columns."""
    arrays = [read_npy(path) for path in paths]
    for path, x in zip(paths, arrays, strict=True):
        if x.dtype.kind not in "fiub":
            raise ValueError(f"{argument}: {path}: expected real numbers; got an array of dtype {x.dtype}")
        if x.ndim not in axes:
            raise ValueError(f"{argument}: {path}: expected a row per sample; got shape {x.shape}")
        if x.shape[1:] != arrays[0].shape[1:]:
            expected, got = (
                counted(each.shape[1], "column") if each.ndim == 2 else "one axis" for each in (arrays[0], x)
            )
            raise ValueError(f"{argument}: {path}: expected {expected}, as {paths[0].name} has; got {got}")
    return arrays


def _beside(argument: str, files: Files, paths: list[Path], rows: list[int]) -> list[np.ndarray]:
    """The arrays of files that belong to those of X."""
    found = shard_files(argument, files, (".npy",))
    if len(found) != len(paths):
        raise ValueError(f"{argument}: expected {counted(len(paths), 'file')}, as X has; got {len(found)}")
    arrays = _arrays(argument, found, (1, 2))
    for path, x, other, count in zip(found, arrays, paths, rows, strict=True):
        if len(x) != count:
            raise ValueError(f"{argument}: {path}: expected {counted(count, 'row')}, as {other.name} has; got {len(x)}")
    return arrays


def _columns(target: int | Sequence[int] | None, width: int) -> tuple[list[int], list[int]]:
    """(the columns of inputs, the columns of targets)."""
    given = [-1] if target is None else [target] if isinstance(target, int) else list(target)
    for column in given:
        if not isinstance(column, int | np.integer) or not -width <= column < width:
            raise ValueError(f"target: expected columns from {-width} to {width - 1}; got {column!r}")
    outputs = [int(column) % width for column in given]
    inputs = [column for column in range(width) if column not in outputs]
    if not outputs or not inputs or len(set(outputs)) < len(outputs):
        raise ValueError(f"target: expected some of the {width} columns, each once, and not all; got {target!r}")
    return inputs, outputs
