"""One function that reads whatever DATA names."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from fusedmlp.data.arrays import read_npy_table, read_npz_table
from fusedmlp.data.bundled import BUNDLED, read_bundled
from fusedmlp.data.frames import read_frame_table
from fusedmlp.data.idx import DTYPES, GZIP_MAGIC, read_idx_table
from fusedmlp.data.table import Schema, Table

FRAME_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq")


def read_table(
    source: str | os.PathLike[str],
    target: str | None = None,
    *,
    drop: Collection[str] = (),
    categorical: Collection[str] = (),
    schema: Schema | None = None,
    target_required: bool = True,
) -> Table:
    """Read a data set.

    Parameters
    ----------
    source : str or path
        A bundled name (a key of `BUNDLED`), or a file: .npy, .npz, .csv, .tsv, .parquet, .pq, or IDX (any other name).
        A file that is called like a bundled data set is read as ``./name``.
    target : str, optional
        .csv, .parquet: the name of the column (default "target"). .npy: the number of the column, -1 being the last,
        or a .npy file. .npz: the name of the array (default "y"). IDX: the file of the labels (default: the one found
        by its name).
    drop, categorical : collections of str
        CSV and Parquet: columns to leave out, and columns of categories that look like numbers.
    schema : Schema, optional
        That of a trained model: the table has exactly its columns, in its order.
    target_required : bool, default True
        False: a table without its target is fine, and the target is not read.

    Returns
    -------
    Table

    Raises
    ------
    ValueError
        The data are not what they should be.
    OSError
        The file cannot be read.
    MissingExtraError
        polars is needed and is not there.
    """
    name = os.fspath(source)
    if name not in BUNDLED:
        _check_is_file(Path(name))
        if name.lower().endswith(FRAME_SUFFIXES):
            table = read_frame_table(
                Path(name),
                target,
                drop=drop,
                categorical=categorical,
                schema=schema,
                target_required=target_required,
            )
            return table if schema is None else table.aligned(schema)
    if drop or categorical:
        raise ValueError(f"drop, categorical: these are for columns of CSV and Parquet files; got {name}")
    table = _read_numbers(name, target, schema, target_required)
    return table if schema is None else table.aligned(schema)


def _read_numbers(name: str, target: str | None, schema: Schema | None, target_required: bool) -> Table:
    """A table that is no frame: bundled, .npy, .npz or IDX."""
    if name in BUNDLED:
        if target is not None:
            raise ValueError(f"target: the bundled data set {name} brings its own; got {target!r}")
        return read_bundled(name)
    path = Path(name)
    if path.suffix.lower() == ".npy":
        return read_npy_table(path, target, schema, target_required)
    if path.suffix.lower() == ".npz":
        return read_npz_table(path, target, schema, target_required)
    if _looks_like_idx(path):
        return read_idx_table(path, target, target_required)
    raise ValueError(
        f"{path}: unknown format; expected a bundled name ({', '.join(BUNDLED)}) or a .csv, .parquet, .npy, .npz "
        "or IDX file"
    )


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: expected a file; got a folder")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, and not one of the bundled data sets: {', '.join(BUNDLED)}")


def _looks_like_idx(path: Path) -> bool:
    """Whether the name or the first bytes say so; reading then says what is wrong with it."""
    if "idx" in path.name.lower():
        return True
    with open(path, "rb") as file:
        magic = file.read(4)
    return magic[:2] == GZIP_MAGIC or (len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in DTYPES)
