"""Checks of whole arrays: X, Y and sample_weight become arrays of a backend, or a ValueError says what is wrong.

The axes in the messages are the core's: a column is a sample. Where a backend has no room for X and all that goes with
it, they stay in main memory, each as a `HostMatrix`, and are checked there, some columns at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedmlp.checks import check_number
from fusedmlp.engines.feeding import HostMatrix, all_finite
from fusedmlp.engines.primitives import Primitives
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import LOSSES


@dataclass(frozen=True)
class Samples:
    """Validated samples on a backend, or, each as a `HostMatrix`, in main memory for it.

    Attributes
    ----------
    X : array of shape (n1, m)
    Y : array of shape (nL, m)
    sample_weight : array of shape (1, m), or None
    """

    X: Array
    Y: Array
    sample_weight: Array | None = None

    @property
    def m(self) -> int:
        """The number of samples."""
        return self.X.shape[1]

    def take(self, columns: np.ndarray) -> Samples:
        """Some of the samples: a copy, each contiguous, or, in main memory, the same numbers in another order."""
        if isinstance(self.X, HostMatrix):
            weight = None if self.sample_weight is None else self.sample_weight.take(columns)
            return Samples(self.X.take(columns), self.Y.take(columns), weight)
        weight = None if self.sample_weight is None else self.sample_weight[:, columns]
        return Samples(self.X.T[columns].T, self.Y.T[columns].T, weight)

    def on_device(self, backend: Primitives) -> Samples:
        """These samples on the backend, all of them, whether it says that they fit or not."""
        if not isinstance(self.X, HostMatrix):
            return self
        weight = None if self.sample_weight is None else backend.asarray(self.sample_weight.columns())
        return Samples(backend.asarray(self.X.columns()), backend.asarray(self.Y.columns()), weight)


def check_X(X: Any, architecture: Architecture, backend: Primitives, name: str = "X") -> Array:
    """X as an array of the backend, shape (n1, m), finite, of the architecture's dtype; copied only if it must be.

    A numpy array that does not fit onto the backend's device, with Y and weights, becomes a `HostMatrix`, not copied.
    """
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
    n_bytes = X.shape[1] * (n1 + architecture.n_outputs + 1) * architecture.itemsize
    return _finite(X, architecture, backend, name, on_host=not (backend.owns(X) or backend.fits(n_bytes)))


def check_Y(
    Y: Any, m: int, architecture: Architecture, backend: Primitives, name: str = "Y", on_host: bool = False
) -> Array:
    """Y as an array of the backend, shape (nL, m), with targets that the loss allows. (m,) will do for one output.

    With `on_host`, where X is one, a `HostMatrix`.
    """
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
    Y = _finite(Y, architecture, backend, name, on_host)
    loss = LOSSES[architecture.loss]
    for first, block in _blocks(Y):
        valid = loss.valid_targets(np if on_host else backend.xp, block)
        if not bool(valid.all()):
            sample = int(np.flatnonzero(~backend.to_numpy(valid).all(axis=0))[0])
            got = backend.to_numpy(block[:, sample]).tolist()
            raise ValueError(
                f"{name}: {loss.name} expects {loss.targets}; got {got[0] if len(got) == 1 else got} "
                f"at sample {first + sample}"
            )
    return Y


def check_sample_weight(
    sample_weight: Any,
    m: int,
    architecture: Architecture,
    backend: Primitives,
    name: str = "sample_weight",
    on_host: bool = False,
) -> Array | None:
    """sample_weight as an array of the backend, shape (1, m), or None: finite, >= 0, not all 0.

    With `on_host`, where X is one, a `HostMatrix`.
    """
    if sample_weight is None:
        return None
    weight = _as_array(sample_weight, backend, name)
    if weight.shape not in ((m,), (1, m)):
        raise ValueError(f"{name}: expected shape (m={m},), a number per sample of X; got {weight.shape}")
    weight = _finite(weight.reshape(1, m), architecture, backend, name, on_host)
    smallest = min(float(block.min()) for _, block in _blocks(weight))
    total = float(weight.sum(dtype=np.float64))
    if smallest < 0:
        raise ValueError(f"{name}: expected numbers >= 0; the smallest is {smallest}")
    if total == 0:
        raise ValueError(f"{name}: expected at least one weight > 0; all are 0")
    return weight


def _as_array(x: Any, backend: Primitives, name: str) -> Array:
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


def _finite(x: Array, architecture: Architecture, backend: Primitives, name: str, on_host: bool) -> Array:
    """x in the architecture's dtype, on the backend or as a `HostMatrix`, once it is known to be finite there."""
    if on_host:
        matrix = HostMatrix(backend.to_numpy(x), architecture.dtype)
        with np.errstate(over="ignore"):  # an overflow is reported below, with its place
            for first, block in _blocks(matrix):
                if not all_finite(np, block):
                    raise _not_finite(block, x[:, first:], architecture, backend, name, first)
        return matrix
    if x.dtype.kind in "iub" or x.dtype == architecture.dtype:
        x = converted = backend.asarray(x, dtype=architecture.dtype)
    else:
        with np.errstate(over="ignore"):  # as above
            converted = backend.asarray(x, dtype=architecture.dtype)
    if not backend.all_finite(converted):
        raise _not_finite(converted, x, architecture, backend, name)
    return converted


def _not_finite(
    converted: Array, x: Array, architecture: Architecture, backend: Primitives, name: str, first: int = 0
) -> ValueError:
    """What to raise for columns, those from `first` on, that are not finite; `x` is what they were converted from."""
    row, sample = (int(i) for i in np.argwhere(~np.isfinite(backend.to_numpy(converted)))[0])
    value = float(backend.to_numpy(x[row : row + 1, sample : sample + 1]).item())
    too_large = f", too large for {architecture.dtype}" if np.isfinite(value) else ""
    return ValueError(
        f"{name}: expected finite numbers; got {value}{too_large} at row {row}, column (sample) {first + sample}"
    )


def _blocks(x: Array) -> Iterator[tuple[int, Array]]:
    """All columns, some at a time where they are in main memory for a device: (the first one's number, they)."""
    return x.blocks() if isinstance(x, HostMatrix) else iter([(0, x)])


def split_validation(
    samples: Samples, fraction: float, generator: np.random.Generator | np.random.RandomState
) -> tuple[Samples, Samples]:
    """(training samples, validation samples): a random split, the validation part rounded to at least one sample."""
    check_number("validation_fraction", fraction, 0, 1)
    n_validation = max(1, round(samples.m * fraction))
    if n_validation >= samples.m:
        raise ValueError(
            f"validation_fraction: {fraction} of {samples.m} samples leaves none to train on; expected more samples"
        )
    order = generator.permutation(samples.m)
    train, validation = samples.take(order[n_validation:]), samples.take(order[:n_validation])
    for name, part in (("training", train), ("validation", validation)):
        if part.sample_weight is not None and float(part.sample_weight.sum()) == 0:
            raise ValueError(f"sample_weight: all weights of the {part.m} samples in the {name} part are 0")
    return train, validation
