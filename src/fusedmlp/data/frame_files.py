"""Files that polars reads, as pieces: CSV, Parquet, and folders of files of one of these kinds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fusedmlp.data.csv_files import CsvFile, is_gzip
from fusedmlp.data.messages import counted, errors_alone, first_line_of
from fusedmlp.data.pieces import Pieces

CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")
_LOOKED_AT = 1000


def is_frame_file(path: Path) -> bool:
    """Whether a file is CSV or Parquet, by its name."""
    return path.name.lower().endswith((*CSV_SUFFIXES, *PARQUET_SUFFIXES))


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its name."""
    return path.name.lower().endswith(PARQUET_SUFFIXES)


def pieces_of(pl: Any, path: Path, size: int | None = None) -> Pieces:
    """The pieces of a CSV or Parquet file, or of the files in a folder.

    Parameters
    ----------
    pl : module
        polars.
    path : Path
        Read as Parquet if the name ends in .parquet or .pq, else as CSV.
    size : int, optional
        Bytes of a piece, about. None: a file is one piece.

    Raises
    ------
    ValueError
        A file is damaged, or is no table; the files of a folder are of several kinds or have other columns.
    OSError
        A file cannot be read.
    """
    if path.is_dir():
        return _folder(pl, path, size)
    with open(path, "rb"):
        pass  # raises an OSError that names the file, if the file cannot be read; polars' own error is less clear
    if is_parquet(path):
        return _parquet(pl, path, size)
    file = CsvFile(pl, path)
    return file.whole() if size is None else file.in_pieces(size)


# Parquet --------------------------------------------------------------------------------------------------------------


def _parquet(pl: Any, path: Path, size: int | None) -> Pieces:
    if size is None:
        frame = _from_parquet(pl, path, partial(pl.read_parquet, path, glob=False))
        return Pieces(str(path), tuple(frame.columns), "", lambda: iter([(frame, "")]))
    scan = _from_parquet(pl, path, partial(pl.scan_parquet, path, glob=False))
    names = _from_parquet(pl, path, scan.collect_schema).names()
    rows, width = _parquet_size(pl, path)
    step = max(1, int(size // max(1, width)))

    def read() -> Iterator[tuple[Any, str]]:
        for start in range(0, max(1, rows), step):
            yield _from_parquet(pl, path, scan.slice(start, step).collect), ""

    return Pieces(str(path), tuple(names), "", read)


def _parquet_size(pl: Any, path: Path) -> tuple[int, float]:
    """(the number of rows, the bytes of a row in memory by the first ones)."""
    scan = _from_parquet(pl, path, partial(pl.scan_parquet, path, glob=False))
    rows = int(_from_parquet(pl, path, scan.select(pl.len()).collect).item())
    head = _from_parquet(pl, path, scan.head(_LOOKED_AT).collect)
    return rows, head.estimated_size() / max(1, len(head))


def _from_parquet(pl: Any, path: Path, read: Callable[[], Any]) -> Any:
    try:
        with errors_alone():
            return read()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, MemoryError) as error:
        raise ValueError(f"{path}: not a Parquet file, or a damaged one: {first_line_of(error)}") from None


# Folders --------------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    """The files of a folder, in the order of their names; those that begin with a point or "_" are no data.

    Raises
    ------
    ValueError
        There is none, or they are not all CSV, or all Parquet.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_")))
    if not files:
        raise ValueError(f"{folder}: expected .csv or .parquet files in this folder; it has none")
    for path in files:
        if not is_frame_file(path):
            raise ValueError(f"{folder}: expected a folder of .csv or .parquet files alone; got {path.name}")
        if is_parquet(path) != is_parquet(files[0]):
            raise ValueError(f"{folder}: expected files of one kind; got {files[0].name} and {path.name}")
    return files


def _folder(pl: Any, folder: Path, size: int | None) -> Pieces:
    parts = [pieces_of(pl, path, size) for path in files_of(folder)]
    first = parts[0]
    for part in parts[1:]:
        _check_shard(first, part)
    types = _common_types(pl, files_of(folder)) if not first.separator else None

    def read() -> Iterator[tuple[Any, str]]:
        for part in parts:
            rows = 0
            for frame, _ in part.read():
                rows += len(frame)
                chosen = frame.select(first.columns)
                yield chosen if types is None else chosen.cast(types), part.source
            if not rows:
                raise ValueError(f"{part.source}: expected at least one row of data; got none")

    return replace(first, source=str(folder), read=read)


def _check_shard(first: Pieces, other: Pieces) -> None:
    missing, more = set(first.columns) - set(other.columns), set(other.columns) - set(first.columns)
    if missing or more:
        what = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        what += [f"has {', '.join(sorted(more))} besides"] if more else []
        raise ValueError(f"{other.source}: expected the columns of {first.source}; this file {' and '.join(what)}")
    if first.separator != other.separator:
        raise ValueError(
            f"{other.source}: expected fields separated by {first.separator!r}, as in {first.source}; got "
            f"{other.separator!r}"
        )


def _common_types(pl: Any, files: Sequence[Path]) -> dict[str, Any]:
    """A type for each column of Parquet files that holds the numbers of all."""
    common: dict[str, Any] = {}
    for path in files:
        scan = _from_parquet(pl, path, partial(pl.scan_parquet, path, glob=False))
        for name, dtype in _from_parquet(pl, path, scan.collect_schema).items():
            before = common.setdefault(name, dtype)
            if before == dtype:
                continue
            numbers = all(each.is_numeric() or each == pl.Null for each in (before, dtype))
            if not numbers and pl.Null not in (before, dtype):
                raise ValueError(
                    f"{path}: expected column {name!r} to be of type {before}, as in the files before; got {dtype}"
                )
            both = [pl.DataFrame(schema={name: each}) for each in (before, dtype)]
            common[name] = pl.concat(both, how="vertical_relaxed").schema[name]
    return common


# Sizes ----------------------------------------------------------------------------------------------------------------


def bytes_of(pl: Any, path: Path) -> int:
    """How much a file, or those of a folder, holds: bytes of text, or of Parquet's columns in memory; an estimate."""
    if path.is_dir():
        return sum(bytes_of(pl, each) for each in files_of(path))
    size = os.path.getsize(path)
    if is_parquet(path):
        rows, width = _parquet_size(pl, path)
        return int(rows * width)
    return _decompressed(path, size) if is_gzip(path) else size


def _decompressed(path: Path, size: int) -> int:
    """The bytes of a file of gzip's when it is decompressed; its end has this number, of 32 bits."""
    with open(path, "rb") as file:
        file.seek(max(0, size - 4))
        n_bytes = int.from_bytes(file.read(4), "little")
    return n_bytes + -(-max(0, size - n_bytes) // 2**32) * 2**32  # text seldom grows when it is compressed


def described(path: Path) -> str:
    """A file by its name; a folder with the number of its files."""
    return f"{path}: {counted(len(files_of(path)), 'file')}" if path.is_dir() else str(path)
