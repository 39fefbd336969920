"""Checks of whole arrays: X, Y and sample_weight become arrays of a backend, or a ValueError says what is wrong.

The axes in the messages are the core's: a column is a sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.activations import Array
from fusedmlp.architecture import Architecture
from fusedmlp.backends.base import Backend
from fusedmlp.losses import LOSSES


def check_X(X: Any, architecture: Architecture, backend: Backend, name: str = "X") -> Array:
    """X as an array of the backend, shape (n1, m), finite, of the architecture's dtype; copied only if it must be."""
    X = _as_array(X, backend, name)
    n1 = architecture.n_inputs
    if X.ndim != 2:
        hint = f"; a single sample is {name}[:, None]" if X.ndim == 1 else ""
        raise ValueError(f"{name}: expected 2 axes, (n1={n1}, m) with a column per sample; got shape {X.shape}{hint}")
    if X.shape[0] != n1:
        hint = ""
        if X.shape[1] == n1:
            hint = f". The second axis is samples here: pass {name}.T, a view, for a table with a row per sample"
        raise ValueError(f"{name}: expected shape (n1={n1}, m) with a column per sample; got {X.shape}{hint}")
    if X.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one sample; got shape {X.shape} (the second axis is samples)")
    return _finite(X, architecture, backend, name)


def check_Y(Y: Any, m: int, architecture: Architecture, backend: Backend, name: str = "Y") -> Array:
    """Y as an array of the backend, shape (nL, m), with targets that the loss allows. (m,) will do for one output."""
    Y = _as_array(Y, backend, name)
    nL = architecture.n_outputs
    if Y.ndim == 1 and nL == 1:
        Y = Y.reshape(1, -1)
    if Y.ndim != 2 or Y.shape != (nL, m):
        hint = ""
        if Y.shape == (m, nL):
            hint = f". The second axis is samples here: pass {name}.T"
        elif Y.ndim == 1 and nL > 1 and Y.shape[0] == m:
            hint = ". Class numbers are not accepted here: pass one-hot columns, e.g. np.eye(nL)[y].T"
        raise ValueError(f"{name}: expected shape (nL={nL}, m={m}), a column per sample of X; got {Y.shape}{hint}")
    Y = _finite(Y, architecture, backend, name)
    loss = LOSSES[architecture.loss]
    valid = loss.valid_targets(backend.xp, Y)
    if not bool(valid.all()):
        sample = int(np.flatnonzero(~backend.to_numpy(valid).all(axis=0))[0])
        got = backend.to_numpy(Y[:, sample]).tolist()
        raise ValueError(
            f"{name}: {loss.name} expects {loss.targets}; got {got[0] if len(got) == 1 else got} at sample {sample}"
        )
    return Y


def check_sample_weight(
    sample_weight: Any, m: int, architecture: Architecture, backend: Backend, name: str = "sample_weight"
) -> Array | None:
    """sample_weight as an array of the backend, shape (1, m), or None: finite, >= 0, not all 0."""
    if sample_weight is None:
        return None
    weight = _as_array(sample_weight, backend, name)
    if weight.shape not in ((m,), (1, m)):
        raise ValueError(f"{name}: expected shape (m={m},), a number per sample of X; got {weight.shape}")
    weight = _finite(weight.reshape(1, m), architecture, backend, name)
    smallest, total = float(weight.min()), float(weight.sum(dtype=np.float64))
    if smallest < 0:
        raise ValueError(f"{name}: expected numbers >= 0; the smallest is {smallest}")
    if total == 0:
        raise ValueError(f"{name}: expected at least one weight > 0; all are 0")
    return weight


def _as_array(x: Any, backend: Backend, name: str) -> Array:
    """x as an array, still of its own dtype, once it is known to hold real numbers."""
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name}: masked arrays are not supported; pass {name}.filled(value)")
    if backend.owns(x):
        x = backend.asarray(x)
    else:
        if hasattr(x, "__cuda_array_interface__"):
            raise ValueError(
                f"{name}: expected an array in main memory for backend {backend.name!r}; got one on a GPU. "
                f"Copy it ({name}.get() for CuPy), or make the network with backend='cupy'"
            )
        if hasattr(x, "toarray") and hasattr(x, "nnz"):
            raise ValueError(f"{name}: sparse matrices are not supported; pass {name}.toarray()")
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{name}: expected an array of numbers; got rows of different lengths ({error})") from None
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers; got an array of dtype {x.dtype}")
    return x


def _finite(x: Array, architecture: Architecture, backend: Backend, name: str) -> Array:
    """x on the backend in the architecture's dtype, once it is known to be finite there."""
    if x.dtype.kind in "iub" or x.dtype == architecture.dtype:
        x = converted = backend.asarray(x, dtype=architecture.dtype)
    else:
        with np.errstate(over="ignore"):  # an overflow is reported below, with its place
            converted = backend.asarray(x, dtype=architecture.dtype)
    if not backend.all_finite(converted):
        bad = np.argwhere(~np.isfinite(backend.to_numpy(converted)))[0]
        row, sample = (int(i) for i in bad)
        value = float(backend.to_numpy(x[row : row + 1, sample : sample + 1]).item())
        too_large = f", too large for {architecture.dtype}" if np.isfinite(value) else ""
        raise ValueError(
            f"{name}: expected finite numbers; got {value}{too_large} at row {row}, column (sample) {sample}"
        )
    return converted
