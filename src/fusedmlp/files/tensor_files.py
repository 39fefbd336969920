"""Files of named arrays and JSON data with a checksum over everything. Nothing that is read is ever executed.

The files are safetensors files: 8 bytes with the length of a header, the header in JSON, then the bytes of the tensors,
little-endian and in C order. The header's metadata holds the format, the caller's data as JSON texts, and first of all
"sha256": the SHA-256 of the whole file, computed with 64 zeros in its own place. One changed bit anywhere, in the
header, its padding or the tensors, makes the file unreadable.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.errors import ModelFileError
from fusedmlp.files.atomic import write_atomically

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (8, 4, 2, 1)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (8, 4, 2, 1)},
}
"""The names of safetensors for the types of numbers that a tensor may have."""

LONGEST_HEADER = 16 * 2**20
"""Bytes. A longer header is refused before it is read."""

MOST_BRACKETS = 2**19
"""Opening brackets in a JSON text: more lists and objects would take seconds and gigabytes to read."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_AXES = 32
_BEFORE_DIGEST = b'{"__metadata__":{"sha256":"'
_NO_DIGEST = b"0" * 64


@dataclass(frozen=True)
class TensorFile:
    """The content of a file.

    Attributes
    ----------
    format : str
        What kind of content it is, and the version.
    tensors : dict of str to array
        Views of one buffer that holds all of them.
    metadata : dict of str to JSON data
    """

    format: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def write_tensors(
    path: str | os.PathLike[str], file_format: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Write a file atomically. The same content gives the same bytes.

    Parameters
    ----------
    path : str or path
    file_format : str
    tensors : mapping of str to array
        Of integers or floats, any shape.
    metadata : mapping of str to JSON data
        Without NaN and infinity; not named "format" or "sha256".

    Raises
    ------
    ValueError
        The content cannot be written in this form, or `path` is a folder or a device.
    OSError
        The system refuses.
    """
    if metadata.keys() & {"format", "sha256"}:
        raise ValueError("metadata: 'format' and 'sha256' are taken by the file itself")
    arrays = {name: _little_endian(name, array) for name, array in tensors.items()}
    # By falling size of their numbers, so that every tensor is aligned.
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    texts = {name: json.dumps(metadata[name], allow_nan=False) for name in sorted(metadata)}
    header: dict[str, Any] = {"__metadata__": {"sha256": _NO_DIGEST.decode(), "format": file_format} | texts}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"))
    _check_brackets(text)
    text += " " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"metadata: expected at most {LONGEST_HEADER:,} bytes with the names; got {len(text):,}")
    parts = [array.reshape(-1).view(np.uint8).data for array in arrays.values() if array.size]
    encoded, length = text.encode(), len(text).to_bytes(8, "little")
    digest = _digest(length, encoded, *parts)
    place = len(_BEFORE_DIGEST)
    write_atomically(path, length, encoded[:place], digest, encoded[place + len(digest) :], *parts)


def read_tensors(path: str | os.PathLike[str], file_format: str, without_checksum: Collection[str] = ()) -> TensorFile:
    """Read a file and check every bit of it.

    Parameters
    ----------
    path : str or path
    file_format : str
        The format that is expected.
    without_checksum : collection of str
        Older formats that are read too and have no checksum.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, changed, of another format, or no such file at all.
    """
    length, header, data = _contents(path)
    place = len(_BEFORE_DIGEST)
    stated = header[place : place + len(_NO_DIGEST)] if header.startswith(_BEFORE_DIGEST) else None
    if stated is not None and stated != _digest(length, header, data):
        raise ModelFileError(f"{path}: the file is damaged or truncated: its checksum is not that of its content")
    try:
        entries = _from_json(header.decode())
        if not isinstance(entries, dict):
            raise ValueError(f"expected a JSON object; got {type(entries).__name__}")
        texts = entries.pop("__metadata__", {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("expected metadata of text")
        tensors = _tensors(entries, data)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not a model file, or a truncated one: {error}") from None
    found, has_digest = texts.pop("format", None), texts.pop("sha256", None) is not None
    if found != file_format and found not in without_checksum:
        raise ModelFileError(
            f"{path}: expected a file of format {file_format!r}; got a safetensors file of format {found!r}"
        )
    if stated is None and (has_digest or found == file_format):
        raise ModelFileError(f"{path}: the file is damaged: its checksum is missing")
    try:
        return TensorFile(found, tensors, {name: _from_json(text) for name, text in texts.items()})
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the metadata cannot be read: {error}") from None


def _little_endian(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NAMES or name == "__metadata__" or array.ndim > _MOST_AXES:
        raise ValueError(f"tensors: {name!r} of dtype {array.dtype} and {array.ndim} axes cannot be written")
    return np.asarray(array, dtype=dtype, order="C")


def _digest(length: bytes, header: bytes, *parts: Any) -> bytes:
    """The SHA-256 of a file, in hexadecimal, with zeros in the place of its digest."""
    place = len(_BEFORE_DIGEST)
    digest = hashlib.sha256(length)
    digest.update(header[:place])
    digest.update(_NO_DIGEST)
    digest.update(header[place + len(_NO_DIGEST) :])
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _contents(path: str | os.PathLike[str]) -> tuple[bytes, bytes, np.ndarray]:
    """(the first 8 bytes, the header, the data as bytes). No more memory is taken than the file is long."""
    if not Path(path).is_file():
        kind = "expected a file; got a folder" if Path(path).is_dir() else "expected a regular file"
        raise ModelFileError(f"{path}: {kind if os.path.lexists(path) else 'no such file'}")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = file.read(8)
            n = int.from_bytes(length, "little")
            if len(length) < 8 or n > min(size - 8, LONGEST_HEADER):
                raise ModelFileError(
                    f"{path}: not a model file, or a truncated one: it begins with {length.hex(' ') or 'nothing'}"
                )
            header = file.read(n)
            data = np.empty(size - 8 - n, np.uint8)
            got = file.readinto(data.data) if data.size else 0
    except OSError as error:
        raise ModelFileError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    if len(header) < n or got < data.size:
        raise ModelFileError(f"{path}: the file became shorter while it was read")
    return length, header, data


def _from_json(text: str) -> Any:
    """The data of a JSON text; a ValueError where a name stands twice in an object, and for NaN and infinity."""
    _check_brackets(text)
    return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_finite, parse_float=_finite)


def _check_brackets(text: str) -> None:
    brackets = text.count("[") + text.count("{")
    if brackets > MOST_BRACKETS:
        raise ValueError(f"metadata: expected at most {MOST_BRACKETS:,} lists and objects; got {brackets:,}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name stands twice in one JSON object")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers; got {text:.40}")
    return number


def _tensors(entries: dict[str, Any], data: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors as views of `data`; a ValueError unless they cover it without gaps and overlaps."""
    tensors = {}
    parts = []
    for name, entry in entries.items():
        dtype, shape, (start, end) = _entry(name, entry)
        if end > data.size or math.prod(shape) * dtype.itemsize != end - start:
            raise ValueError(f"the place of {name!r} does not fit its shape or the length of the file")
        tensors[name] = data[start:end].view(dtype).reshape(shape)
        parts.append((start, end))
    reached = 0
    for start, end in sorted(parts):
        if start != reached:
            raise ValueError(f"expected tensors one after the other; got one from byte {start} on, after {reached}")
        reached = end
    if reached != data.size:
        raise ValueError(f"expected {reached} bytes of tensors; got {data.size}")
    return tensors


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], tuple[int, int]]:
    """(dtype, shape, (start, end)) of a tensor, from its entry in the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"expected dtype, shape and data_offsets of {name!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"expected {name!r} of a dtype of {', '.join(DTYPES)}; got {dtype!r:.40}")
    for numbers, longest in ((shape, _MOST_AXES), (offsets, 2)):
        if not isinstance(numbers, list) or len(numbers) > longest:
            raise ValueError(f"expected a shape of at most {_MOST_AXES} axes and 2 offsets of {name!r}")
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError(f"expected a shape and offsets of {name!r} that are whole numbers >= 0")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"expected a start and an end of {name!r}; got {offsets}")
    return DTYPES[dtype], tuple(shape), (offsets[0], offsets[1])
