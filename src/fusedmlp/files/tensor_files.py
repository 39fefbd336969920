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
import safetensors.numpy
from safetensors import SafetensorError

from fusedmlp.errors import ModelFileError
from fusedmlp.files.atomic import write_atomically

LONGEST_HEADER = 16 * 2**20
"""Bytes. A longer header is refused before it is read."""

MOST_BRACKETS = 2**19
"""Opening brackets in a JSON text: more lists and objects would take seconds and gigabytes to read."""

_KINDS = {
    "fusedmlp-2": "a model, as Network.save and fusedmlp train --out write it",
    "fusedmlp-checkpoint-1": "a training that goes on by fusedmlp resume or the fit that wrote it",
}
"""The package's own formats, for somebody who takes one for another."""

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
    texts = {name: json.dumps(metadata[name], allow_nan=False) for name in sorted(metadata)}
    try:
        content = safetensors.numpy.save({name: _in_c_order(name, array) for name, array in tensors.items()})
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"tensors: cannot be written: {error}") from None
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    # The library lays metadata in another order every time; here the digest comes first.
    header = {"__metadata__": {"sha256": _NO_DIGEST.decode(), "format": file_format} | texts} | entries
    text = json.dumps(header, separators=(",", ":"))
    _check_brackets(text)
    text += " " * (-len(text) % 8)  # the tensors stay aligned
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"metadata: expected at most {LONGEST_HEADER:,} bytes with the names; got {len(text):,}")
    encoded, length, data = text.encode(), len(text).to_bytes(8, "little"), memoryview(content)[start:]
    digest = _digest(length, encoded, data)
    place = len(_BEFORE_DIGEST)
    write_atomically(path, length, encoded[:place], digest, encoded[place + len(digest) :], data)


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
    content = _content(path)
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start]
    place = len(_BEFORE_DIGEST)
    stated = header[place : place + len(_NO_DIGEST)] if header.startswith(_BEFORE_DIGEST) else None
    if stated is not None and stated != _digest(content[:8], header, memoryview(content)[start:]):
        raise ModelFileError(f"{path}: the file is damaged or truncated: its checksum is not that of its content")
    try:
        entries = _from_json(header.decode())
        if not isinstance(entries, dict):
            raise ValueError(f"expected a JSON object; got {type(entries).__name__}")
        texts = entries.pop("__metadata__", {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("expected metadata of text")
        tensors = safetensors.numpy.load(content)
    except (ValueError, RecursionError, SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: not a model file, or a truncated one: {error}") from None
    found, has_digest = texts.pop("format", None), texts.pop("sha256", None) is not None
    if found != file_format and found not in without_checksum:
        raise ModelFileError(
            f"{path}: expected a file of format {file_format!r}; got a safetensors file of format {found!r}"
            + (f", {_KINDS[found]}" if found in _KINDS else "")
        )
    if stated is None and (has_digest or found == file_format):
        raise ModelFileError(f"{path}: the file is damaged: its checksum is missing")
    try:
        return TensorFile(found, tensors, {name: _from_json(text) for name, text in texts.items()})
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the metadata cannot be read: {error}") from None


def _in_c_order(name: str, array: np.ndarray) -> np.ndarray:
    """The array with its bytes as they are written; the library takes the memory as it is."""
    array = np.asarray(array)
    if array.dtype.kind not in "iuf" or name == "__metadata__":
        raise ValueError(f"tensors: {name!r} of dtype {array.dtype} cannot be written")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


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


def _content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, once its first 8 are known to be the length of a header that it can hold."""
    if not Path(path).is_file():
        kind = "expected a file; got a folder" if Path(path).is_dir() else "expected a regular file"
        raise ModelFileError(f"{path}: {kind if os.path.lexists(path) else 'no such file'}")
    try:
        with open(path, "rb") as file:
            size, length = os.fstat(file.fileno()).st_size, file.read(8)
            if len(length) < 8 or int.from_bytes(length, "little") > min(size - 8, LONGEST_HEADER):
                raise ModelFileError(
                    f"{path}: not a model file, or a truncated one: it begins with {length.hex(' ') or 'nothing'}"
                )
            content = length + file.read(size - 8)
    except OSError as error:
        raise ModelFileError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    if len(content) < size:
        raise ModelFileError(f"{path}: the file became shorter while it was read")
    return content


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
