"""NumPy's files: ``.npy`` and ``.npz``. Uncompressed numbers are memory-mapped. Nothing is unpickled."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fusedmlp.data.table import Schema, Table, as_features, as_target, no_text

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

# The errors that numpy raises for a damaged header, which is a Python literal.
_DAMAGED = (ValueError, EOFError, SyntaxError, tokenize.TokenError)

# What zipfile raises for a damaged archive: RuntimeError, or NotImplementedError, where a flag or a method is damaged.
_DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, RuntimeError)


def read_npy(path: Path) -> np.ndarray:
    """Memory-map the array of a ``.npy`` file."""
    with open(path, "rb") as file:
        magic = file.read(len(np.lib.format.MAGIC_PREFIX))
    if magic != np.lib.format.MAGIC_PREFIX:
        raise ValueError(f"{path}: not a .npy file: it begins with {magic!r}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"{path}: not an array of numbers or text, or a truncated one: {error}") from None


def read_npz_member(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """Read one array of a ``.npz`` file. It is memory-mapped if it is not compressed; then its CRC is not checked."""
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if key not in names:
        raise ValueError(f"{path}: expected an array named {key!r}; the file has {', '.join(names) or 'none'}")
    info = archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key)
    source = f"{path}: {key}"
    try:
        if info.compress_type == zipfile.ZIP_STORED and (mapped := _map_member(path, info)) is not None:
            return mapped
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except (*_DAMAGED, *_DAMAGED_ARCHIVE) as error:
        raise ValueError(f"{source}: not an array of numbers or text, or a damaged one: {error}") from None


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray | None:
    """Memory-map an uncompressed member of an archive; None if it has to be loaded instead."""
    with open(path, "rb") as file:
        # The data come after a local header of 30 bytes, a name and an extra field. The lengths of these two are in
        # bytes 26 and 28 of the header (APPNOTE.TXT, section 4.3.7); the archive's directory lacks the second.
        file.seek(info.header_offset)
        local = file.read(30)
        if local[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("no local header where the directory says")
        start = info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:], "little")
        file.seek(start)
        read_header = _HEADER_READERS.get(np.lib.format.read_magic(file))
        if read_header is None:
            return None
        shape, fortran_order, dtype = read_header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    n_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
    if n_bytes != info.file_size - (offset - start):
        raise ValueError(f"its header promises {n_bytes} bytes, the archive has {info.file_size - (offset - start)}")
    if n_bytes == 0:
        return None
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran_order else "C")


def read_npy_table(
    path: Path, target: str | None = None, schema: Schema | None = None, target_required: bool = True
) -> Table:
    """Read a table from a ``.npy`` file of shape (m, columns).

    Parameters
    ----------
    target : str, optional
        The number of the target's column (-1 is the last), or a ``.npy`` file with the target.
    schema : Schema, optional
        The schema of a trained model. It says whether one of the columns is the target.
    target_required : bool, default True
        False: the table may lack the target.
    """
    array = as_features(read_npy(path), str(path))
    if target is None and schema is not None and not schema.named and _is_column_number(schema.target):
        # A model that was trained on a table with the target among its columns reads tables with and without it.
        if array.shape[1] != len(schema.numeric):
            target = schema.target
        elif target_required:
            raise ValueError(
                f"target: {path}: expected the target in column {schema.target}, as in training, beside the "
                f"{len(schema.numeric)} columns of the model; got {array.shape[1]} columns"
            )
    if target is None:
        if target_required:
            raise ValueError(
                f"target: {path}: expected the number of the target's column, such as -1 for the last, or a .npy file"
            )
        return array_table(str(path), array, None, None)
    if not _is_column_number(target):
        return array_table(str(path), array, as_target(read_npy(Path(target)), target), None)
    X, y = _split_column(array, int(target), str(path))
    return array_table(str(path), X, y, target)


def read_npz_table(
    path: Path, target: str | None = None, schema: Schema | None = None, target_required: bool = True
) -> Table:
    """Read a table from a ``.npz`` file: the array ``X`` and the array of the target.

    The name of the latter is `target`, else the name in training (`schema`), else ``y``. Keras's files have x_train,
    y_train, x_test and y_test instead: the first two are the table to train on, and the others its `held_out` rows;
    with a schema, the others are the table.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (*_DAMAGED, *_DAMAGED_ARCHIVE) as error:
        raise ValueError(f"{path}: not a .npz archive, or a truncated one: {error}") from None
    with archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if "X" not in names and target is None and {"x_train", "y_train"} <= names:
            test = {"x_test", "y_test"} <= names
            if schema is not None and test:
                return _npz_part(path, archive, "x_test", "y_test", target_required)
            table = _npz_part(path, archive, "x_train", "y_train", target_required)
            held_out = _npz_part(path, archive, "x_test", "y_test", True) if test and schema is None else None
            return replace(table, held_out=held_out)
        if target is None:
            known = None if schema is None or schema.named or _is_column_number(schema.target) else schema.target
            target = known if known in names else "y"
        return _npz_part(path, archive, "X", target, target_required or target in names)


def _npz_part(path: Path, archive: zipfile.ZipFile, X_name: str, y_name: str, with_target: bool) -> Table:
    X = as_features(read_npz_member(path, archive, X_name), f"{path}: {X_name}")
    y = as_target(read_npz_member(path, archive, y_name), f"{path}: {y_name}") if with_target else None
    return array_table(str(path), X, y, y_name)


def _is_column_number(spec: str | None) -> bool:
    return spec is not None and spec.removeprefix("-").isdecimal()


def _split_column(array: np.ndarray, column: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (the other columns, the column). The first is a copy, unless the column is the first or the last."""
    n = array.shape[1]
    if not -n <= column < n:
        raise ValueError(f"target: {source}: expected a column from {-n} to {n - 1}; got {column}")
    column %= n
    target = as_target(np.asarray(array[:, column]), f"{source}: column {column}")
    if column == n - 1:
        return array[:, :-1], target
    return (array[:, 1:] if column == 0 else np.delete(array, column, axis=1)), target


def array_table(source: str, X: np.ndarray, y: np.ndarray | None, target: str | None) -> Table:
    """A table of an array of numbers, whose columns are called by their numbers."""
    schema = Schema(tuple(map(str, range(X.shape[1]))), named=False, target=target)
    return Table(source, schema, X, no_text(len(X)), y)
