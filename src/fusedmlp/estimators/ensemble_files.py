"""An ensemble in one file: the weights of its members, and what they are."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.preprocessing import LabelBinarizer

from fusedmlp.errors import ModelFileError
from fusedmlp.files.tensor_files import read_tensors, write_tensors

FORMAT = "fusedmlp-ensemble-1"
_KEPT = ("n_features_in_", "n_iter_", "n_layers_", "n_outputs_", "out_activation_")
_JSON = (str, int, float, bool, type(None))


def save_members(path: str | os.PathLike[str], kind: str, parameters: dict[str, Any], ensemble: Any) -> None:
    """Write an ensemble.

    Raises
    ------
    ValueError
        A parameter, or a class, is of a type that JSON has not.
    """
    tensors = {
        f"{number}.{name}{layer}": np.asarray(array)
        for number, member in enumerate(ensemble.estimators_)
        for name, arrays in (("W", member.coefs_), ("b", member.intercepts_))
        for layer, array in enumerate(arrays, start=1)
    }
    metadata = {
        "kind": kind,
        "parameters": {name: _plain(name, value) for name, value in parameters.items()},
        "fitted": {name: _plain(name, getattr(ensemble, name)) for name in _KEPT},
        "members": len(ensemble.estimators_),
        "names": [str(name) for name in getattr(ensemble, "feature_names_in_", [])] or None,
    }
    if hasattr(ensemble, "classes_"):
        classes = ensemble.classes_
        metadata["classes"] = [_plain("classes_", x) for x in classes.tolist()]
        metadata["classes_dtype"] = classes.dtype.str if classes.dtype != object else "O"
    write_tensors(path, FORMAT, tensors, metadata)


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(name, x) for x in value]
    if isinstance(value, dict):
        return [[_plain(name, key), _plain(name, x)] for key, x in value.items()]
    if not isinstance(value, _JSON) or (isinstance(value, float) and not np.isfinite(value)):
        if name == "random_state":  # its work is done
            return None
        raise ValueError(f"{name}: expected a number, a text or a sequence of them, to save; got {value!r}")
    return value


def load_members(path: str | os.PathLike[str], ensemble_type: Any, member_type: Any) -> Any:
    """Read an ensemble.

    Raises
    ------
    ModelFileError
    """
    file = read_tensors(path, FORMAT)
    data = file.metadata
    try:
        if data["kind"] != ensemble_type.__name__:
            raise ModelFileError(f"{path}: expected a {ensemble_type.__name__}; the file has a {data['kind']}")
        parameters = {name: _as_given(name, value) for name, value in data["parameters"].items()}
        ensemble = ensemble_type(**parameters)
        own = {name: value for name, value in parameters.items() if name not in ("n_members", "bootstrap")}
        ensemble.estimators_ = [
            _member(member_type, own, data, file.tensors, number) for number in range(int(data["members"]))
        ]
        for name in _KEPT:
            setattr(ensemble, name, data["fitted"][name])
        if data["names"]:
            ensemble.feature_names_in_ = np.array(data["names"], dtype=object)
        if "classes" in data:
            ensemble.classes_ = _classes(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: the description of the ensemble cannot be read: {error}") from None
    return ensemble


def _as_given(name: str, value: Any) -> Any:
    if name == "class_weight" and isinstance(value, list):
        return dict(value)
    return tuple(value) if isinstance(value, list) else value


def _classes(data: dict[str, Any]) -> np.ndarray:
    return np.array(data["classes"], dtype=np.dtype(data["classes_dtype"]))


def _member(
    kind: Any, parameters: dict[str, Any], data: dict[str, Any], tensors: dict[str, np.ndarray], number: int
) -> Any:
    member, layers = kind(**parameters), int(data["fitted"]["n_layers_"]) - 1
    for name in _KEPT:
        setattr(member, name, data["fitted"][name])
    member.coefs_ = [tensors[f"{number}.W{layer}"].copy() for layer in range(1, layers + 1)]
    member.intercepts_ = [tensors[f"{number}.b{layer}"].copy() for layer in range(1, layers + 1)]
    if "classes" in data:
        member.classes_ = _classes(data)
        several = member.out_activation_ == "logistic" and member.n_outputs_ > 1
        member._label_binarizer = LabelBinarizer().fit(
            np.eye(len(member.classes_), dtype=int) if several else member.classes_
        )
    return member
