"""`read_table`: one function for every format."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from fusedmlp.data.arrays import read_npy_table, read_npz_table
from fusedmlp.data.bundled import BUNDLED, read_bundled
from fusedmlp.data.columns.finding import Choices
from fusedmlp.data.frame_files import is_frame_file
from fusedmlp.data.frames import read_frame_table
from fusedmlp.data.idx import DTYPES, GZIP_MAGIC, read_idx_table
from fusedmlp.data.table import Schema, Table


def read_table(
    source: str | os.PathLike[str],
    target: str | None = None,
    *,
    drop: Collection[str] = (),
    numeric: Collection[str] = (),
    categorical: Collection[str] = (),
    decimal: str | None = None,
    missing: Collection[str] = (),
    day_first: bool = False,
    schema: Schema | None = None,
    target_required: bool = True,
    require_every_target: bool = False,
) -> Table:
    """Read a data set.

    Parameters
    ----------
    source : str or path
        A bundled name (a key of `BUNDLED`), or a file: .npy, .npz, .csv, .tsv, .parquet, .pq, or IDX (any other name);
        or a folder of .csv or of .parquet files that have the same columns.
        A file that is called like a bundled data set is read as ``./name``.
    target : str, optional
        .csv, .parquet: the name of the column (default "target"). .npy: the number of the column, -1 for the last one,
        or a .npy file. .npz: the name of the array (default "y"). IDX: the file of the labels (default: found by its
        name).
    drop, numeric, categorical : collections of str
        CSV and Parquet: columns to leave out, columns to read as numbers, and columns to read as categories although
        they look like numbers. A text that is no column's name may be a list of names, separated by commas.
    decimal : {".", ","}, optional
        CSV: the decimal mark of numbers with a comma. By default the values of each column decide.
    missing : collection of str
        CSV and Parquet: texts that stand for a missing value, besides the usual ones.
    day_first : bool
        CSV: the day comes before the month in dates of which either may come first.
    schema : Schema, optional
        The schema of a trained model: the result has exactly its columns, in its order.
    target_required : bool, default True
        False: the table may lack the target, and the target is not read.
    require_every_target : bool, default False
        CSV and Parquet: a row without a target is an error; else it is left out.

    Returns
    -------
    Table

    Raises
    ------
    ValueError
        The file is damaged, or its content is not a table with a target as described.
    OSError
        The file cannot be read.
    MissingExtraError
        polars is needed and not installed.
    """
    name = os.fspath(source)
    if name not in BUNDLED:
        _check_exists(Path(name))
        if is_frame_data(Path(name)):
            table = read_frame_table(
                Path(name),
                target,
                choices=Choices(drop, numeric, categorical, decimal, missing, day_first),
                schema=schema,
                target_required=target_required,
                require_every_target=require_every_target,
            )
            return table if schema is None else table.aligned(schema)
    if drop or numeric or categorical or missing or decimal:
        raise ValueError(
            f"drop, numeric, categorical, missing, decimal: these are for columns of CSV and Parquet files; got {name}"
        )
    table = _read_numbers(name, target, schema, target_required)
    return table if schema is None else table.aligned(schema)


def _read_numbers(name: str, target: str | None, schema: Schema | None, target_required: bool) -> Table:
    """Read a bundled data set, or a .npy, .npz or IDX file."""
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


def is_frame_data(path: Path) -> bool:
    """Whether a path is that of a CSV or Parquet file, or of a folder, which holds such files."""
    return is_frame_file(path) or path.is_dir()


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, and not one of the bundled data sets: {', '.join(BUNDLED)}")


def _looks_like_idx(path: Path) -> bool:
    """Whether the name or the first bytes are those of an IDX file. It may still be damaged."""
    if "idx" in path.name.lower():
        return True
    with open(path, "rb") as file:
        magic = file.read(4)
    return magic[:2] == GZIP_MAGIC or (len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in DTYPES)
