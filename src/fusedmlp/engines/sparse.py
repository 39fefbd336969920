"""SparseMatrix: an X of which only the numbers that are not 0 are kept, sample by sample.

Backends whose arrays are numpy's take it in place of an array (`Primitives.takes_sparse`): the first layer's products
then cost what its numbers cost. For other backends it stays in host memory, and is made dense chunk by chunk.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.primitives import Primitives
from fusedmlp.model.activations import Array


def is_sparse(x: object) -> bool:
    """Whether x is one of SciPy's sparse matrices or arrays; SciPy is not imported for it."""
    return hasattr(x, "nnz") and hasattr(x, "tocsc")


class SparseMatrix:
    """X of shape (n1, m), a column per sample.

    Parameters
    ----------
    shape : (int, int)
    starts : array of shape (m + 1,), int64
        Where each sample's numbers start, and where the last one's end.
    inputs : array of shape (k,), int32
        The input that each stored number belongs to; none comes twice in a sample.
    values : array of shape (k,)
        The stored numbers.

    Attributes
    ----------
    dtype : numpy.dtype
    nbytes : int
        The size of all that is stored.
    """

    ndim = 2

    def __init__(self, shape: tuple[int, int], starts: np.ndarray, inputs: np.ndarray, values: np.ndarray) -> None:
        self.shape, self.starts, self.inputs, self.values = shape, starts, inputs, values
        self.dtype: np.dtype[Any] = values.dtype
        self.nbytes = starts.nbytes + inputs.nbytes + values.nbytes

    @classmethod
    def of(cls, columns: Any) -> SparseMatrix:
        """A matrix of SciPy's in CSC; its numbers are not copied, and must not be changed."""
        arrays = zip((columns.indptr, columns.indices, columns.data), (np.int64, np.int32, None), strict=True)
        return cls(columns.shape, *(np.ascontiguousarray(array, dtype) for array, dtype in arrays))

    @cached_property
    def _columns(self) -> Any:
        from scipy.sparse import csc_array

        return csc_array((self.values, self.inputs, self.starts), self.shape)

    def __getitem__(self, places: tuple[slice, Any]) -> SparseMatrix:
        """``X[:, samples]``: a copy of some of the samples."""
        return SparseMatrix.of(self._columns[places])

    def toarray(self) -> np.ndarray:
        """All of it, dense, samples contiguous."""
        return np.asarray(self._columns.T.toarray()).T

    def products(self, W: np.ndarray, out: np.ndarray) -> np.ndarray:
        """out = Wᵀ X, for W of shape (n1, k)."""
        out[...] = (self._columns.T @ W).T
        return out

    def times(self, D: np.ndarray, out: np.ndarray) -> np.ndarray:
        """out = X D, for D of shape (m, k)."""
        out[...] = self._columns @ D
        return out


class SparseHostMatrix(HostMatrix):
    """A `SparseMatrix` as a `HostMatrix`: what is copied of it is dense.

    Parameters
    ----------
    columns : scipy.sparse.csc_array or csc_matrix of shape (n1, m)
    """

    def __init__(self, columns: Any) -> None:
        self._columns = columns
        self.dtype, self.shape = columns.dtype, columns.shape
        self.nbytes = self.shape[0] * self.shape[1] * self.dtype.itemsize
        self.by_sample = True

    def take(self, samples: slice | np.ndarray) -> HostMatrix:
        """Some of the samples, in the order given, still sparse."""
        return SparseHostMatrix(self._columns[:, samples])

    def write(self, rows: slice, samples: slice, out: np.ndarray) -> None:
        """Copy a piece into `out`, of that piece's shape, in any memory order."""
        np.copyto(out.T, self._columns[:, samples].T[:, rows].toarray())


def as_columns(x: Any, dtype: str) -> Any:
    """A sparse matrix of SciPy's in CSC and a dtype, each place once; not copied where it is so already."""
    columns = x.tocsc()
    if not columns.has_canonical_format:
        columns = columns.copy() if columns is x else columns
        columns.sum_duplicates()
    with np.errstate(over="ignore"):  # what overflows is reported with its place
        return columns.astype(dtype, copy=False)


def product(backend: Primitives, W: Array, A: Any, out: Array) -> Array:
    """out = Wᵀ A, where A may be sparse."""
    return A.products(W, out) if isinstance(A, SparseMatrix) else backend.matmul(W.T, A, out=out)


def outer_product(backend: Primitives, A: Any, dZ: Array, out: Array) -> Array:
    """out = A dZᵀ, where A may be sparse."""
    return A.times(dZ.T, out) if isinstance(A, SparseMatrix) else backend.matmul(A, dZ.T, out=out)
