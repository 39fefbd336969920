"""Model files: the weights and biases of a network, its architecture, and what a caller keeps with them.

A file holds one tensor per W and b ("W1", "b1", ...), and under other names the caller's own tensors.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusedmlp.errors import ModelFileError
from fusedmlp.files.tensor_files import TensorFile, read_tensors, write_tensors
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Parameters

FORMAT = "fusedmlp-2"
FORMAT_WITHOUT_CHECKSUM = "fusedmlp-1"
"""Written by version 0.1.0."""


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file.

    Attributes
    ----------
    parameters : Parameters
        Over a numpy array.
    extra_tensors : dict of str to numpy array
        Tensors that the caller keeps with the network.
    extra : dict of str to JSON data
        Data that the caller keeps with the network.
    """

    parameters: Parameters
    extra_tensors: dict[str, np.ndarray] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def save_model(path: str | os.PathLike[str], model: ModelFile) -> None:
    """Write a model file atomically: an interrupted call leaves an older file unchanged.

    Raises
    ------
    ValueError
        A weight is NaN or infinite, an extra tensor has the name of a weight, or `path` is a folder or a device.
    OSError
        The system refuses.
    """
    if not np.isfinite(model.parameters.flat).all():
        raise ValueError("weights: expected finite numbers to save; the network's parameters hold NaN or infinity")
    tensors = dict(model.parameters.named())
    clash = tensors.keys() & model.extra_tensors.keys()
    if clash:
        raise ValueError(f"extra_tensors: names that weights and biases have: {sorted(clash)}")
    metadata = {"architecture": model.parameters.architecture.to_dict(), "extra": model.extra}
    write_tensors(path, FORMAT, tensors | model.extra_tensors, metadata)


def load_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file and check its checksum.

    A file of version 0.1.0 has none. It is read with a UserWarning; saving the model again adds the checksum.

    Raises
    ------
    ModelFileError
        The file is missing, truncated, changed, not a model file, or its tensors do not fit its architecture.
    """
    file = read_tensors(path, FORMAT, without_checksum=(FORMAT_WITHOUT_CHECKSUM,))
    architecture, extra = _description(path, file)
    tensors = file.tensors
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
    if file.format == FORMAT_WITHOUT_CHECKSUM:
        warnings.warn(
            f"{path}: a model file of fusedmlp 0.1.0, which has no checksum: damage would go unnoticed; save it again",
            stacklevel=3,
        )
    # Copies: a view would keep the buffer with all weights alive.
    return ModelFile(parameters, {name: array.copy() for name, array in tensors.items()}, extra)


def _description(path: str | os.PathLike[str], file: TensorFile) -> tuple[Architecture, dict[str, Any]]:
    """(architecture, extra) from the metadata of a model file."""
    try:
        architecture, extra = Architecture(**file.metadata["architecture"]), file.metadata["extra"]
        if not isinstance(extra, dict):
            raise ValueError(f"extra: expected a JSON object; got {type(extra).__name__}")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelFileError(f"{path}: the description of the network cannot be read: {error}") from None
    return architecture, extra
