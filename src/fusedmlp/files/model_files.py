"""Model files: safetensors with the architecture as JSON in its metadata. Nothing that is read is ever executed.

A file holds one tensor per W and b ("W1", "b1", ...), and under other names whatever a caller keeps with the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.errors import ModelFileError
from fusedmlp.files.atomic import write_atomically
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Parameters

FORMAT = "fusedmlp-1"


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes
    ----------
    parameters : Parameters
        Over a numpy array.
    extra_tensors : dict of numpy arrays
    extra : dict
        JSON data.
    """

    parameters: Parameters
    extra_tensors: dict[str, np.ndarray] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def save_model(path: str | os.PathLike[str], model: ModelFile) -> None:
    """Write a model file, atomically; an interrupted call leaves an older file whole."""
    import safetensors.numpy

    if not np.isfinite(model.parameters.flat).all():
        raise ValueError("weights: expected finite numbers to save; the network's parameters hold NaN or infinity")
    tensors = {name: np.ascontiguousarray(array) for name, array in model.parameters.named()}
    clash = tensors.keys() & model.extra_tensors.keys()
    if clash:
        raise ValueError(f"extra_tensors: names that weights and biases have: {sorted(clash)}")
    tensors |= {name: np.ascontiguousarray(array) for name, array in model.extra_tensors.items()}
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(model.parameters.architecture.to_dict()),
        "extra": json.dumps(model.extra),
    }
    write_atomically(path, _in_fixed_order(safetensors.numpy.save(tensors, metadata=metadata)))


def _in_fixed_order(data: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors lays them in another order every time."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[start:]


def load_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file.

    Raises
    ------
    ModelFileError
        The file is not there, truncated, not a model file, or its tensors do not fit its architecture.
    """
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise ModelFileError(
            f"{path}: expected a model file of format {FORMAT!r}; "
            f"got a safetensors file of format {metadata.get('format')!r}"
        )
    try:
        architecture = Architecture(**json.loads(metadata["architecture"]))
        extra = json.loads(metadata["extra"])
        if not isinstance(extra, Mapping):
            raise ValueError(f"extra: expected a JSON object; got {type(extra).__name__}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the description of the network cannot be read: {error}") from None
    # The size is known to fit what the file really holds before anything of that size is allocated.
    stored = sum(array.size for array in tensors.values())
    if architecture.n_parameters > stored:
        raise ModelFileError(
            f"{path}: expected {architecture.n_parameters} parameters; the file holds {stored} numbers"
        )
    parameters = Parameters(architecture, np.empty(architecture.n_parameters, architecture.dtype))
    for name, view in parameters.named():
        stored_array = tensors.pop(name, None)
        if stored_array is None:
            raise ModelFileError(f"{path}: expected a tensor {name}; the file has none")
        if stored_array.shape != view.shape or stored_array.dtype != view.dtype:
            raise ModelFileError(
                f"{path}: expected {name} of shape {view.shape} and dtype {view.dtype}; "
                f"got {stored_array.shape}, {stored_array.dtype}"
            )
        view[...] = stored_array
    if not np.isfinite(parameters.flat).all():
        raise ModelFileError(f"{path}: expected finite weights; the file holds NaN or infinity")
    return ModelFile(parameters, tensors, dict(extra))


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """(metadata, tensors) of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ModelFileError(f"{path}: {'expected a file; got a folder' if Path(path).is_dir() else 'no such file'}")
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: not a model file, or a truncated one: {error}") from None
