"""The primitives of ``numba-cpu``: which kernel an operation takes, and how threads share it.

Everything runs on the threads of `threads.py`, products included (`blas.py`): no other library's threads spin beside.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.backends.libraries import library_versions, numpy_blas
from fusedmlp.backends.numba_cpu.machine.buffers import address_of
from fusedmlp.backends.numba_cpu.workers import blas, gemm, threads
from fusedmlp.engines.base import Engine
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.engines.crowd import Crowd
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import Architecture

# A task is worth a thread from about here: waking one takes 60 to 100 µs, an element of an activation 0.2 to 0.8 ns.
_SMALLEST_TASK = 1 << 18
_SMALLEST_CHECK = 1 << 20  # of elements that are only looked at
# Up to so many outputs the product W dZ is computed in the same pass as f'(A); beyond, BLAS is faster.
_FEW_OUTPUTS = 4
_GEMMS = {"mkl": "MKL", "scipy": "SciPy's"}


# dtype -> `elementwise.searches` of it: imported once, as a small call should take a microsecond.
_searches: dict[np.dtype, Any] = {}


def _searches_of(dtype: np.dtype) -> Any:
    from fusedmlp.backends.numba_cpu.kernels import elementwise

    return _searches.setdefault(dtype, elementwise.searches(dtype))


class NumbaCpuBackend(Backend):
    """Backend ``numba-cpu``: numpy's arrays and BLAS, element-wise work in compiled elementwise."""

    name = "numba-cpu"
    converts_by_tile = True
    takes_sparse = True

    @property
    def xp(self) -> Any:
        """numpy."""
        return np

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why numba cannot compile here, or the BLAS that FUSEDMLP_BLAS names cannot be used."""
        try:
            import numba
        except ImportError as error:
            return f"numba cannot be imported ({error}); pip install --upgrade numba"
        if getattr(numba.config, "DISABLE_JIT", 0):
            return "NUMBA_DISABLE_JIT is set, and this backend is compiled code; unset NUMBA_DISABLE_JIT"
        return gemm.unavailable_reason()

    def describe(self) -> dict[str, str]:
        """Device, threads, BLAS and versions."""
        import llvmlite.binding

        return {
            "device": f"CPU ({llvmlite.binding.get_host_cpu_name()})",
            "threads": str(threads.thread_count()),
            "BLAS": f"{numpy_blas()}; in the fused engine, for wide layers: {_GEMMS[gemm.library()]}",
            "versions": library_versions(["numba", "llvmlite", "numpy"]),
        }

    def engine(self, architecture: Architecture, fused: bool = True) -> Engine:
        """The fused engine where it covers the architecture; else, or with ``fused=False``, the composed one."""
        if not fused:
            return ComposedEngine(self, architecture)
        from fusedmlp.backends.numba_cpu.tiled_engine import TiledEngine

        return (TiledEngine if TiledEngine.covers(architecture) else ComposedEngine)(self, architecture)

    def crowd(self) -> Crowd:
        """A network for each worker."""
        from fusedmlp.backends.numba_cpu.many import CpuCrowd

        return CpuCrowd()

    def all_finite(self, x: np.ndarray) -> bool:
        """Whether no element is NaN or infinite."""
        searches = _searches.get(x.dtype) or _searches_of(x.dtype)
        return super().all_finite(x) if searches is None or x.ndim > 2 else not _any(searches.not_finite, x)

    def all_binary(self, x: np.ndarray) -> bool:
        """Whether every element is 0 or 1."""
        searches = _searches.get(x.dtype) or _searches_of(x.dtype)
        return super().all_binary(x) if searches is None or x.ndim > 2 else not _any(searches.not_binary, x)

    def permutations(self, generator: np.random.Generator | np.random.RandomState, m: int, count: int) -> np.ndarray:
        """Orders of m samples, drawn by compiled code; see the base class."""
        from fusedmlp.backends.numba_cpu.kernels import shuffling

        orders = shuffling.orders(generator, m, count)
        return super().permutations(generator, m, count) if orders is None else orders

    def computing(self) -> AbstractContextManager[None]:
        """BLAS on one thread, for as long as its products are shared among our own."""
        return blas.one_thread

    def matmul(self, a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The product of a and b; see the base class."""
        if a.shape[1] <= 1 or a.shape[1] != b.shape[0]:
            return super().matmul(a, b, out=out)
        out = np.empty((a.shape[0], b.shape[1]), a.dtype) if out is None else out
        blas.multiply(a, b, out)
        return out

    def activate(
        self,
        Z: np.ndarray,
        activation: str,
        bias: np.ndarray | None = None,
        out: np.ndarray | None = None,
        slope: np.ndarray | None = None,
    ) -> np.ndarray:
        """A = f(Z + b) in one pass; see the base class."""
        from fusedmlp.backends.numba_cpu.kernels import activation_formulas, elementwise

        tag = activation_formulas.TAGS.get(activation)
        if tag is None:
            return super().activate(Z, activation, bias, out, slope)
        slope = slope if HIDDEN_ACTIVATIONS[activation].stores_slope else None
        out = np.empty_like(Z) if out is None else out
        written = [out] if slope is None else [out, slope]
        if bias is None:
            flat = _flat(Z, *written)
            if flat is not None:
                given = None if out is Z else flat[0]
                vector_slope = None if slope is None else flat[2]
                _over(flat[1].size, _SMALLEST_TASK, elementwise.activate_flat, tag, given, flat[1], vector_slope)
                return out
            bias = np.zeros((Z.shape[0], 1), Z.dtype)
        b = np.ascontiguousarray(bias).reshape(-1)
        kernel, rows = elementwise.activate_rows, [Z, *written]
        in_F_order = all(x.flags.f_contiguous for x in rows)
        if in_F_order and not Z.flags.c_contiguous:
            kernel, rows = elementwise.activate_columns, [x.T for x in rows]
        given = None if out is Z else rows[0]
        slope_rows = None if slope is None else rows[2]
        _over(rows[1].shape[0], _rows_for(rows[1]), kernel, tag, given, b, rows[1], slope_rows)
        return out

    def fused_backward(
        self,
        W: np.ndarray,
        dZ: np.ndarray,
        A: np.ndarray,
        activation: str = "sigmoid",
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """W dZ ⊙ f'(A), in one pass where there are few outputs; see the base class."""
        from fusedmlp.backends.numba_cpu.kernels import activation_formulas, elementwise

        tag = activation_formulas.TAGS.get(activation)
        if tag is None:
            return super().fused_backward(W, dZ, A, activation, out)
        out = np.empty_like(A) if out is None else out
        few = W.shape[1] <= _FEW_OUTPUTS
        if few and A.flags.c_contiguous and out.flags.c_contiguous:
            _products(tag, W, dZ, A, out)
            return out
        if few and A.flags.f_contiguous and out.flags.f_contiguous:
            _products(tag, dZ.T, W.T, A.T, out.T)  # (W dZ)ᵀ = dZᵀ Wᵀ
            return out
        self.matmul(W, dZ, out=out)
        if activation == "identity":
            return out
        flat = _flat(A, out)
        if flat is not None:
            _over(flat[0].size, _SMALLEST_TASK, elementwise.times_derivative_flat, tag, *flat)
        else:
            _over(A.shape[0], _rows_for(A), elementwise.times_derivative_rows, tag, A, out)
        return out


def _any(found: Any, x: np.ndarray) -> bool:
    """A search of `elementwise` in a matrix or a vector, along its memory, shared among threads."""
    if x.flags.c_contiguous:
        rows, columns, row_step, column_step = 1, x.size, 0, x.itemsize
    elif x.ndim == 2:
        (rows, columns), (row_step, column_step) = x.shape, x.strides
        if abs(row_step) < abs(column_step):
            rows, columns, row_step, column_step = columns, rows, column_step, row_step
        if columns * column_step == row_step:
            rows, columns = 1, rows * columns
    else:
        rows, columns, row_step, column_step = 1, x.size, 0, x.strides[0]
    address, size = address_of(x), rows * columns
    if size < 2 * _SMALLEST_CHECK:
        return found(address, rows, columns, row_step, column_step)
    if rows == 1:
        parts = threads.split(columns, _SMALLEST_CHECK)
        tasks = [(address + first * column_step, 1, last - first, 0, column_step) for first, last in parts]
    else:
        parts = threads.split(rows, _SMALLEST_CHECK // columns + 1)
        tasks = [(address + first * row_step, last - first, columns, row_step, column_step) for first, last in parts]
    return any(threads.run([partial(found, *task) for task in tasks]))


def _flat(*arrays: np.ndarray) -> list[np.ndarray] | None:
    """The arrays as vectors in memory order, if all are contiguous in the same order, else None."""
    if all(array.flags.c_contiguous for array in arrays):
        return [array.reshape(-1) for array in arrays]
    if all(array.flags.f_contiguous for array in arrays):
        return [array.T.reshape(-1) for array in arrays]
    return None


def _rows_for(matrix: np.ndarray) -> int:
    """Rows that make a task worth a thread."""
    return _SMALLEST_TASK // max(1, matrix.shape[1]) + 1


def _over(n: int, smallest: int, kernel: Any, *arguments: Any) -> None:
    """Run kernel(*arguments, start, stop) over the parts of n."""
    if n < 2 * smallest:  # one part: a mini-batch should not pay for the sharing
        kernel(*arguments, 0, n)
        return
    threads.run([partial(kernel, *arguments, *part) for part in threads.split(n, smallest)])


def _products(tag: Any, U: np.ndarray, V: np.ndarray, A: np.ndarray, out: np.ndarray) -> None:
    """out = U V ⊙ f'(A) by the compiled kernels, for A and out in C order, shared out along their longer side."""
    from fusedmlp.backends.numba_cpu.kernels import elementwise

    U, V = np.ascontiguousarray(U), np.ascontiguousarray(V)
    n, m = A.shape
    if U.shape[1] == 1:
        kernel, U, V = elementwise.outer_times_derivative, U.reshape(-1), V.reshape(-1)
    else:
        kernel = elementwise.products_times_derivative
    if n * m < 2 * _SMALLEST_TASK:
        kernel(tag, U, V, A, out, 0, n, 0, m)
        return
    if n >= m:
        ranges = [(*rows, 0, m) for rows in threads.split(n, _rows_for(A))]
    else:
        ranges = [(0, n, *columns) for columns in threads.split(m, _SMALLEST_TASK // max(1, n) + 1)]
    threads.run([partial(kernel, tag, U, V, A, out, *part) for part in ranges])
