"""Samples: X, Y and sample weights, checked in one place, where the engines of a backend take them.

`as_samples` and `as_inputs` are the only entry points. A ValueError says what is wrong; its axes are those of the core,
where a column is a sample. An array is used in one of four ways, and is not copied needlessly:

- a sparse X of SciPy's becomes a `SparseMatrix`, or a `SparseHostMatrix` for a device;
- it is converted and placed on the backend's device, if it is not there in the right type already;
- where a device has no room for X and all that goes with it, or where X would have to be converted and is large, each
  becomes a `HostMatrix`, which stays in host memory and is converted chunk by chunk;
- where a backend's engines convert X tile by tile (`Primitives.converts_by_tile`), large X of the other floating-point
  type is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from fusedmlp.engines.base import Engine
from fusedmlp.engines.feeding import HostMatrix, all_finite
from fusedmlp.engines.options import BatchParts, EpochOptions, EpochPosition
from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.sparse import SparseHostMatrix, SparseMatrix, as_columns, is_sparse
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import DTYPES, Architecture
from fusedmlp.model.losses import Loss, binary_targets, finite_targets, loss_named
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Parameters

_NUMPY_DTYPES = {name: np.dtype(name) for name in DTYPES}
"""Comparing dtypes takes half the time of comparing a dtype with its name."""


@dataclass(eq=False)
class Samples:
    """Validated samples on a backend, or, each as a `HostMatrix`, in host memory for it.

    Attributes
    ----------
    X : array of shape (n1, m)
    Y : array of shape (nL, m)
    sample_weight : array of shape (1, m), or None
    order : numpy.ndarray of int, or None
        The columns that are meant, where not all are: a part of large samples is not a copy.
    """

    X: Array
    Y: Array
    sample_weight: Array | None = None
    order: np.ndarray | None = None

    @property
    def m(self) -> int:
        """The number of samples."""
        return self.X.shape[1] if self.order is None else len(self.order)

    @cached_property
    def weight_sum(self) -> float:
        """Σ wᵢ in float64; the number of samples where there are no weights."""
        if self.sample_weight is None:
            return float(self.m)
        weights = self.sample_weight if self.order is None else self.sample_weight[:, self.order]
        return float(weights.sum(dtype=np.float64))

    @property
    def mean_weight(self) -> float | None:
        """Σ wᵢ / m, or None where there are no weights."""
        return None if self.sample_weight is None else self.weight_sum / self.m

    def ordered(self, order: np.ndarray | None) -> np.ndarray | None:
        """The columns of X of these samples, in an order; None: as they lie, all of them."""
        if self.order is None:
            return order
        return self.order if order is None else self.order[order]

    once = False
    """Whether they can be read only once."""
    unit: ClassVar[str] = "samples"
    """What is drawn where a part is held back."""

    @property
    def units(self) -> int:
        """How many of those there are."""
        return self.m

    def draw_order(self, generator: np.random.Generator | np.random.RandomState) -> Any:
        """An order of an epoch's samples, for `batches`."""
        return generator.permutation(self.m)

    def batches(self, order: Any, batch_size: int) -> tuple[Any, BatchParts | None]:
        """(the columns of an epoch in an order of the samples, the parts of its batches that are here or None: all)."""
        return self.ordered(order), None

    def is_over(self, position: EpochPosition, batch_size: int) -> bool:
        """Whether an epoch has no batch after this position."""
        return position.batches * batch_size >= self.m

    def train(
        self,
        engine: Engine,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        columns: Any,
        batch_size: int,
        options: EpochOptions,
    ) -> None:
        """The batches of an epoch, from the position of `options` on, which follows; `columns` as of `batches`."""
        given = self.X, self.Y, self.sample_weight, columns, batch_size, options
        engine.train_epoch(parameters, optimizer_state, *given)

    def loss(self, engine: Engine, parameters: Parameters) -> float:
        """Σ wᵢ jᵢ / Σ wᵢ, or Σ wᵢ jᵢ for a loss that is a sum."""
        return engine.loss(parameters, self.X, self.Y, self.sample_weight, order=self.ordered(None))

    def with_weight(self) -> int:
        """The number of samples whose weight is not 0."""
        if self.sample_weight is None:
            return self.m
        return int(((self.sample_weight if self.order is None else self.sample_weight[:, self.order]) > 0).sum())

    def take(self, columns: np.ndarray, largest_copy: int | None) -> Samples:
        """Some of the samples.

        Parameters
        ----------
        columns : numpy.ndarray of int
        largest_copy : int or None
            Arrays in host memory of more bytes are not copied: the result has an `order`. None: nothing is, wherever
            it lies.
        """
        if largest_copy is None:
            return self.part(columns)
        X, Y, weight = self.X, self.Y, self.sample_weight
        if isinstance(X, HostMatrix):
            return Samples(X.take(columns), Y.take(columns), None if weight is None else weight.take(columns))
        if isinstance(X, np.ndarray | SparseMatrix) and (X.nbytes > largest_copy or isinstance(X, np.memmap)):
            return Samples(X, Y, weight, self.ordered(columns))
        columns = columns if self.order is None else self.order[columns]
        taken = X[:, columns] if isinstance(X, SparseMatrix) else X.T[columns].T
        return Samples(taken, Y.T[columns].T, None if weight is None else weight[:, columns])

    def part(self, columns: np.ndarray) -> Samples:
        """Some of the samples, wherever they lie, without a copy; a column may come more than once."""
        X, Y, weight = self.X, self.Y, self.sample_weight
        if isinstance(X, HostMatrix):
            return Samples(X.take(columns), Y.take(columns), None if weight is None else weight.take(columns))
        return Samples(X, Y, weight, self.ordered(columns))

    def prepared(self, engine: Engine) -> Samples:
        """These samples with X as an engine's epochs read it fastest."""
        X = engine.prepared(self.X)
        return self if X is self.X else Samples(X, self.Y, self.sample_weight, self.order)

    def on_device(self, backend: Primitives) -> Samples:
        """These samples on the backend, all of them, whether it says that they fit or not."""
        if isinstance(self.X, SparseMatrix):
            return Samples(self.X.toarray(), self.Y, self.sample_weight)
        if not isinstance(self.X, HostMatrix):
            dtype = self.Y.dtype
            return (
                self if self.X.dtype == dtype else Samples(backend.asarray(self.X, dtype), self.Y, self.sample_weight)
            )
        weight = None if self.sample_weight is None else backend.asarray(self.sample_weight.columns())
        return Samples(backend.asarray(self.X.columns()), backend.asarray(self.Y.columns()), weight)


def as_samples(
    X: Any,
    Y: Any,
    sample_weight: Any,
    architecture: Architecture,
    backend: Primitives,
    prefix: str = "",
    part: bool = False,
) -> Samples:
    """X, Y and weights, checked, where the backend's engines take them.

    Parameters
    ----------
    X : array of shape (n1, m)
    Y : array of shape (nL, m), or (m,) for one output
    sample_weight : array of shape (m,) or (1, m), or None
    architecture : Architecture
    backend : Primitives
    prefix : str
        A prefix of the arguments' names in error messages.
    part : bool
        Whether they are a part of the samples, so that their weights may all be 0.

    Raises
    ------
    ValueError
        A shape or a type is wrong; a number is not finite in the network's dtype; a target is not one of the loss; a
        weight is negative, or their sum cannot be divided by in the network's dtype.
    """
    X = as_inputs(X, architecture, backend, f"{prefix}X")
    about = X.shape[1], architecture, backend
    on_host = isinstance(X, HostMatrix)
    Y = _check_Y(Y, *about, f"{prefix}Y", on_host)
    if sample_weight is None:
        return Samples(X, Y)
    return Samples(X, Y, _check_sample_weight(sample_weight, *about, f"{prefix}sample_weight", on_host, part))


def as_inputs(X: Any, architecture: Architecture, backend: Primitives, name: str = "X") -> Array:
    """X alone, as `as_samples` takes it."""
    dtype, n1 = architecture.dtype, architecture.n_inputs
    if is_sparse(X):
        return _sparse_inputs(X, architecture, backend, name)
    if is_ready(X, n1, architecture, backend):  # the shortest way, for small inputs
        if X.shape[1] and backend.all_finite(X):
            return X
    else:
        X = _as_array(X, backend, name)
    if X.ndim != 2 or X.shape[0] != n1 or X.shape[1] == 0:
        raise _wrong_shape_of_X(X, n1, name)
    n_bytes = X.shape[1] * (n1 + architecture.n_outputs + 1) * architecture.itemsize
    owned = backend.owns(X)
    large = isinstance(X, np.ndarray) and X.nbytes > backend.workspace_bytes and X.dtype != dtype
    if large and owned and backend.converts_by_tile and X.dtype.kind == "f" and X.dtype.itemsize in (4, 8):
        _check_finite_blocks(HostMatrix(X, dtype), X, architecture, backend, name)
        return X
    return _finite(
        X,
        architecture,
        backend,
        name,
        on_host=(large and owned and not backend.converts_by_tile) or not (owned or backend.fits(n_bytes)),
    )


def _sparse_inputs(X: Any, architecture: Architecture, backend: Primitives, name: str) -> Array:
    """A sparse X of SciPy's, checked, as the engines of the backend take it."""
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers; got a sparse matrix of dtype {X.dtype}")
    if X.ndim != 2 or X.shape[0] != architecture.n_inputs or X.shape[1] == 0:
        raise _wrong_shape_of_X(X, architecture.n_inputs, name)
    columns = as_columns(X, architecture.dtype)
    if not all_finite(np, columns.data):
        place = int(np.flatnonzero(~np.isfinite(columns.data))[0])
        sample = int(np.searchsorted(columns.indptr, place, side="right")) - 1
        row = int(columns.indices[place])
        value = float(X.tocsc()[row, sample])
        too_large = f", too large for {architecture.dtype}" if np.isfinite(value) else ""
        raise ValueError(
            f"{name}: expected finite numbers; got {value}{too_large} at row {row}, column (sample) {sample}"
        )
    return SparseMatrix.of(columns) if backend.takes_sparse else SparseHostMatrix(columns)


def is_ready(x: Any, rows: int, architecture: Architecture, backend: Primitives) -> bool:
    """Whether x is a matrix of so many rows that the engines of a backend with numpy's arrays take as it is."""
    return (
        type(x) is np.ndarray
        and backend.xp is np
        and x.ndim == 2
        and x.shape[0] == rows
        and x.dtype == _NUMPY_DTYPES[architecture.dtype]
    )


def _wrong_shape_of_X(X: Array, n1: int, name: str) -> ValueError:
    if X.ndim != 2:
        hint = f"; a single sample is {name}[:, None]" if X.ndim == 1 else ""
        return ValueError(f"{name}: expected 2 axes, (n1={n1}, m) with a column per sample; got shape {X.shape}{hint}")
    if X.shape[0] != n1:
        hint = ""
        if X.shape[1] == n1:
            hint = f". The second axis is samples here: pass {name}.T, a view, for a table with a row per sample"
        return ValueError(f"{name}: expected shape (n1={n1}, m) with a column per sample; got {X.shape}{hint}")
    return ValueError(f"{name}: expected at least one sample; got shape {X.shape} (the second axis is samples)")


def _check_Y(Y: Any, m: int, architecture: Architecture, backend: Primitives, name: str, on_host: bool) -> Array:
    """Y as an array of the backend, shape (nL, m), with targets that the loss allows. (m,) will do for one output.

    With `on_host`, where X is one, a `HostMatrix`.
    """
    nL, loss = architecture.n_outputs, loss_named(architecture.loss)
    ready = not on_host and is_ready(Y, nL, architecture, backend) and Y.shape[1] == m
    if ready and _all_valid(loss, Y, backend):
        return Y
    Y = _as_array(Y, backend, name)
    if Y.ndim == 1 and nL == 1:
        Y = Y.reshape(1, -1)
    if Y.ndim != 2 or Y.shape != (nL, m):
        hint = ""
        if Y.shape == (m, nL):
            hint = f". The second axis is samples here: pass {name}.T"
        elif Y.ndim == 1 and nL > 1 and Y.shape[0] == m:
            hint = ". Class numbers are not accepted here: pass one-hot columns, e.g. np.eye(nL)[y].T"
        raise ValueError(f"{name}: expected shape (nL={nL}, m={m}), a column per sample of X; got {Y.shape}{hint}")
    if not on_host:
        exact = Y.dtype.kind in "iub" or Y.dtype == architecture.dtype
        converted = backend.asarray(Y, dtype=architecture.dtype) if exact else Y
        if exact and _all_valid(loss, converted, backend):
            return converted  # valid targets are finite
    Y = _finite(Y, architecture, backend, name, on_host)
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


def _all_valid(loss: Loss, Y: Array, backend: Primitives) -> bool:
    """Whether the loss takes all targets; the commonest conditions are one pass of the backend's."""
    if loss.valid_targets is binary_targets:
        return backend.all_binary(Y)
    if loss.valid_targets is finite_targets:
        return backend.all_finite(Y)
    return bool(loss.valid_targets(backend.xp, Y).all())


def _check_sample_weight(
    sample_weight: Any,
    m: int,
    architecture: Architecture,
    backend: Primitives,
    name: str,
    on_host: bool,
    part: bool,
) -> Array:
    """sample_weight as an array of the backend, shape (1, m): finite, >= 0, with a sum that can be divided by.

    With `on_host`, where X is one, a `HostMatrix`. The weights of a `part` may all be 0.
    """
    weight = _as_array(sample_weight, backend, name)
    if weight.shape not in ((m,), (1, m)):
        raise ValueError(f"{name}: expected shape (m={m},), a number per sample of X; got {weight.shape}")
    weight = _finite(weight.reshape(1, m), architecture, backend, name, on_host)
    smallest = min(float(block.min()) for _, block in _blocks(weight))
    with np.errstate(over="ignore"):  # reported below
        total = float(weight.sum(dtype=np.float64))
    if smallest < 0:
        raise ValueError(f"{name}: expected numbers >= 0; the smallest is {smallest}")
    if total == 0 and part:
        return weight
    if total == 0:
        raise ValueError(f"{name}: expected at least one weight > 0; all are 0")
    limits = np.finfo(architecture.dtype)
    if not float(limits.tiny) <= total / m <= total <= float(limits.max):
        raise ValueError(
            f"{name}: expected weights whose sum and mean are between {limits.tiny:.2g} and {limits.max:.2g}, the "
            f"normal numbers of {architecture.dtype}; the sum is {total:.3g}. Multiply all weights by a constant"
        )
    return weight


def _as_array(x: Any, backend: Primitives, name: str) -> Array:
    """x as an array, still of its own dtype, once it is known to hold real numbers."""
    if type(x) is np.ndarray and x.dtype.kind in "fiub" and backend.xp is np:
        return x
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
        if is_sparse(x):
            raise ValueError(f"{name}: expected an array; got a sparse matrix: pass {name}.toarray()")
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{name}: expected an array of numbers; got rows of different lengths ({error})") from None
        except Exception as error:  # whatever another library's __array__ raises
            raise ValueError(f"{name}: expected an array of numbers; got {type(x).__name__} ({error})") from None
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers; got an array of dtype {x.dtype}")
    return x


def _finite(x: Array, architecture: Architecture, backend: Primitives, name: str, on_host: bool) -> Array:
    """x in the architecture's dtype, on the backend or as a `HostMatrix`, once it is known to be finite there."""
    if on_host:
        matrix = HostMatrix(backend.to_numpy(x), architecture.dtype)
        _check_finite_blocks(matrix, x, architecture, backend, name)
        return matrix
    if x.dtype == architecture.dtype and backend.xp is np:
        converted = x
    elif x.dtype.kind in "iub" or x.dtype == architecture.dtype:
        x = converted = backend.asarray(x, dtype=architecture.dtype)
    else:
        with np.errstate(over="ignore"):  # as above
            converted = backend.asarray(x, dtype=architecture.dtype)
    if not backend.all_finite(converted):
        raise _not_finite(converted, x, architecture, backend, name)
    return converted


def _check_finite_blocks(
    matrix: HostMatrix, x: Array, architecture: Architecture, backend: Primitives, name: str
) -> None:
    """Raise where a number of `matrix`, converted from `x`, is not finite."""
    with np.errstate(over="ignore"):  # an overflow is reported below, with its place
        for first, block in _blocks(matrix):
            if not all_finite(np, block):
                raise _not_finite(block, x[:, first:], architecture, backend, name, first)


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
