"""Checkpoint files: a training in the middle, in one safetensors file with a checksum.

Data that `TrainingState.to_dict` gives are nested: their arrays become tensors, named by their place ("state/moments/
first"), and the rest is JSON. Lists of floats are tensors too, as a history may be long; infinity, which JSON lacks, is
written as {"$number": "inf"}.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedmlp.errors import CheckpointError, ModelFileError
from fusedmlp.files.tensor_files import read_tensors, write_tensors

FORMAT = "fusedmlp-checkpoint-1"
_NUMBER, _TENSOR, _FLOATS = "$number", "$tensor", "$floats"
_DEEPEST = 20


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint.

    Attributes
    ----------
    description : dict
        What the training is: architecture, settings, data. A training that goes on has the same.
    versions : dict of str
        What wrote it: the package, its backend.
    weights : numpy.ndarray of shape (n_parameters,)
    state : dict
        Plain data and numpy arrays.
    finished : bool
        Whether the training is over.
    extra : dict
        Plain data and numpy arrays that the caller keeps with it.
    """

    description: dict[str, Any]
    versions: dict[str, str]
    weights: np.ndarray
    state: dict[str, Any]
    finished: bool
    extra: dict[str, Any]


def save_checkpoint(path: str | os.PathLike[str], checkpoint: CheckpointFile) -> None:
    """Write a checkpoint atomically: whatever happens, the file has its old content or the new one.

    Raises
    ------
    ValueError
        Something has no plain form, or `path` is a folder or a device.
    OSError
        The system refuses.
    """
    tensors = {"weights": checkpoint.weights}
    metadata = {
        "description": checkpoint.description,
        "versions": checkpoint.versions,
        "finished": checkpoint.finished,
        "state": _packed(checkpoint.state, "state", tensors),
        "extra": _packed(checkpoint.extra, "extra", tensors),
    }
    write_tensors(path, FORMAT, tensors, metadata)


def load_checkpoint(path: str | os.PathLike[str]) -> CheckpointFile:
    """Read a checkpoint, and check its checksum.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, or none of this kind.
    """
    try:
        file = read_tensors(path, FORMAT)
    except ModelFileError as error:
        raise CheckpointError(str(error).replace("not a model file", "not a checkpoint")) from None
    tensors, metadata = file.tensors, file.metadata
    try:
        weights = tensors["weights"]
        if weights.ndim != 1 or not isinstance(metadata["finished"], bool):
            raise ValueError("expected a vector of weights and whether the training is over")
        parts = {name: _dict(metadata[name]) for name in ("description", "versions", "state", "extra")}
        state, extra = (_dict(_unpacked(parts.pop(name), tensors)) for name in ("state", "extra"))
        return CheckpointFile(**parts, weights=weights.copy(), state=state, finished=metadata["finished"], extra=extra)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}") from None


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object; got {type(value).__name__}")
    return value


def _packed(value: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """The JSON for a value; its arrays go to `tensors`, under names that begin with `name`."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        if any(not isinstance(key, str) or key.startswith("$") for key in value):
            raise ValueError(f"{name}: expected names that do not begin with $; got {list(value)}")
        return {key: _packed(part, f"{name}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(part, float) for part in value):
            tensors[name] = np.array(value)
            return {_FLOATS: name}
        return [_packed(part, f"{name}/{number}", tensors) for number, part in enumerate(value)]
    raise ValueError(f"{name}: expected numbers, text, lists, dicts or numpy arrays; got {type(value).__name__}")


def _unpacked(value: Any, tensors: dict[str, np.ndarray], depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError("the data are nested too deeply")
    if isinstance(value, list):
        return [_unpacked(part, tensors, depth + 1) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_NUMBER}:
        return float(value[_NUMBER])
    if value.keys() == {_TENSOR}:
        # A copy: a view would keep the whole file's bytes, which cannot be written to.
        return tensors[value[_TENSOR]].copy()
    if value.keys() == {_FLOATS}:
        return tensors[value[_FLOATS]].tolist()
    return {key: _unpacked(part, tensors, depth + 1) for key, part in value.items()}
