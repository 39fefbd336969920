"""IDX files, the format of the MNIST images, also compressed with gzip.

A file begins with two zero bytes, a byte for the type, a byte for the number of axes, and 4 bytes for the length of
each axis. The numbers follow in C order. Everything is big-endian. (The format is described with the MNIST database.)
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fusedmlp.data.table import Schema, Table, as_features, as_target, no_text

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 2**20


def read_idx(path: Path) -> np.ndarray:
    """Memory-map the array of an IDX file, or load it if the file is compressed.

    Raises
    ------
    ValueError
        The file is not an IDX file, or its size is not what its header says.
    """
    with open(path, "rb") as raw:
        compressed = raw.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path) if compressed else open(path, "rb") as file:
            dtype, shape = _read_header(file, path)
            offset, expected = 4 + 4 * len(shape), math.prod(shape) * dtype.itemsize
            data = _read_at_most(file, expected + 1) if compressed else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the compressed file is damaged or truncated: {error}") from None
    got = len(data) if compressed else path.stat().st_size - offset
    if got != expected:
        more = "more than that" if got > expected and compressed else f"{got}"
        raise ValueError(
            f"{path}: the header promises {expected} bytes of data, shape {shape} of {dtype.name}; the file has {more}"
        )
    if compressed or expected == 0:
        return np.frombuffer(data, dtype).reshape(shape)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)


def _read_header(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or magic[3] == 0:
        raise ValueError(f"{path}: not an IDX file: its first 4 bytes are {magic.hex(' ') or 'missing'}")
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise ValueError(f"{path}: the IDX header is truncated: expected the lengths of {magic[3]} axes")
    return np.dtype(DTYPES[magic[2]]), tuple(int(n) for n in np.frombuffer(lengths, ">u4"))


def _read_at_most(file: BinaryIO | gzip.GzipFile, limit: int) -> bytes:
    """Read up to `limit` bytes, in blocks: a damaged header must not make us allocate what the file does not have."""
    data = bytearray()
    while len(data) < limit and (block := file.read(min(_BLOCK, limit - len(data)))):
        data += block
    return bytes(data)


def find_labels(images: Path) -> Path | None:
    """Find the labels of `images` by the file's name: "labels" in place of "images", "idx1" in place of "idx3"."""
    stem = images.name.removesuffix(".gz")
    labels = stem.replace("images", "labels").replace("idx3", "idx1")
    if labels == stem:
        return None
    candidates = (images.with_name(labels), images.with_name(labels + ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_idx_table(path: Path, target: str | None = None, target_required: bool = True) -> Table:
    """Read a table from a file of images, whose first axis counts the samples, and a file of labels."""
    X = as_features(read_idx(path), str(path))
    labels = Path(target) if target is not None else find_labels(path)
    if labels is None and target_required:
        raise ValueError(
            f"target: no labels found beside {path} (the same name with 'labels-idx1' for 'images-idx3'); "
            "expected the IDX file of the labels"
        )
    y = None
    if labels is not None and (target_required or target is not None):
        y = as_target(read_idx(labels), str(labels))
    schema = Schema(tuple(map(str, range(X.shape[1]))), named=False)
    return Table(str(path), schema, X, no_text(len(X)), y)
