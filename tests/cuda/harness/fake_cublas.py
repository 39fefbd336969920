"""A library that looks like cuBLAS, to ctypes and below it: C functions over raw pointers, computed by numpy.

It refuses what cuBLAS refuses, with cuBLAS's statuses. What cuBLAS would do silently and the project must not (work in
memory that cuBLAS itself manages, on another stream than CuPy's, out of bounds) is an internal error, with a traceback.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import traceback
from ctypes import CFUNCTYPE, POINTER, c_int, c_size_t, c_void_p
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SUCCESS, NOT_INITIALIZED, ALLOC_FAILED, INVALID_VALUE, INTERNAL_ERROR, NOT_SUPPORTED = 0, 1, 3, 7, 14, 15
_NAMES = {
    SUCCESS: b"CUBLAS_STATUS_SUCCESS",
    NOT_INITIALIZED: b"CUBLAS_STATUS_NOT_INITIALIZED",
    ALLOC_FAILED: b"CUBLAS_STATUS_ALLOC_FAILED",
    INVALID_VALUE: b"CUBLAS_STATUS_INVALID_VALUE",
    INTERNAL_ERROR: b"CUBLAS_STATUS_INTERNAL_ERROR",
    NOT_SUPPORTED: b"CUBLAS_STATUS_NOT_SUPPORTED",
}
_WORKSPACE_ALIGNMENT = 256
# cudaDataType, and the cublasComputeType_t that go with it; cublas_api.h has the numbers.
_DTYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64)}
_COMPUTE_TYPES = {0: {68: "strict", 77: "tf32"}, 1: {70: "strict"}}


class Product(NamedTuple):
    """A call of cublasGemmEx that was right."""

    handle: int
    stream: int
    thread: int
    dtype: str
    compute: str


@dataclass
class Handle:
    """What cuBLAS knows of a handle."""

    device: int
    stream: int = 0
    workspace: tuple[int, int] | None = None  # (address, bytes)
    streams: list[int] = field(default_factory=list)


class Refused(Exception):  # noqa: N818 - a status, raised
    """A status to return."""


def to_tf32(x):
    """float32 numbers with 10 bits of mantissa: the nearest one, the larger in size of two as near."""
    bits = x.view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


def exported(function, *types):
    """A C function that returns a status."""

    def call(*arguments):
        try:
            function(*arguments)
        except Refused as refusal:
            return refusal.args[0]
        except Exception:
            traceback.print_exc()
            return INTERNAL_ERROR
        return SUCCESS

    return CFUNCTYPE(c_int, *types)(call)


def status_names():
    """The C function that names a status."""
    names = {status: ctypes.create_string_buffer(name) for status, name in _NAMES.items()}
    return CFUNCTYPE(c_void_p, c_int)(lambda status: ctypes.addressof(names[status]))


def matrix_at(memory_at, address, dtype, rows, columns, leading) -> Any:
    """The column-major matrix at an address."""
    n_bytes = ((columns - 1) * leading + rows) * dtype.itemsize
    memory_at(address, n_bytes)
    memory = (ctypes.c_char * n_bytes).from_address(address)
    return np.ndarray((rows, columns), dtype, memory, strides=(dtype.itemsize, leading * dtype.itemsize))


class FakeCublas:
    """libcublas.so, as ctypes.CDLL shows it.

    Attributes
    ----------
    products : list of Product
    handles : dict of address -> Handle
        Those that were not destroyed.
    destroyed : list of (address, device that was current)
    versions : list
        What cublasGetProperty says: major, minor, patch.
    """

    def __init__(self, current_stream, current_device, memory_at):
        self._current_stream, self._current_device, self._memory_at = current_stream, current_device, memory_at
        self._addresses = itertools.count(0x1000, 0x100)
        self.products, self.handles, self.destroyed = [], {}, []
        self.versions = [13, 2, 0]
        # As in cublas_api.h.
        self.cublasGetStatusName = status_names()
        self.cublasGetProperty = exported(self._get_property, c_int, POINTER(c_int))
        self.cublasCreate_v2 = exported(self._create, POINTER(c_void_p))
        self.cublasDestroy_v2 = exported(self._destroy, c_void_p)
        self.cublasSetStream_v2 = exported(self._set_stream, c_void_p, c_void_p)
        self.cublasSetWorkspace_v2 = exported(self._set_workspace, c_void_p, c_void_p, c_size_t)
        self.cublasGemmEx = exported(
            self._gemm_ex,
            *(c_void_p, c_int, c_int, c_int, c_int, c_int, c_void_p, c_void_p, c_int, c_int),
            *(c_void_p, c_int, c_int, c_void_p, c_void_p, c_int, c_int, c_int, c_int),
        )

    def multiply(self, a, b):
        """The arithmetic, in numpy."""
        return a @ b

    def _handle(self, address):
        if address not in self.handles:
            raise Refused(NOT_INITIALIZED)
        return self.handles[address]

    def _get_property(self, part, value):
        value[0] = self.versions[part]

    def _create(self, handle):
        assert not self._current_stream().is_capturing(), "a handle made in a capture"
        handle[0] = next(self._addresses)
        self.handles[handle[0]] = Handle(self._current_device())

    def _destroy(self, address):
        self._handle(address)
        del self.handles[address]
        self.destroyed.append((address, self._current_device()))

    def _set_stream(self, address, stream):
        handle = self._handle(address)
        handle.stream, handle.workspace = stream or 0, None  # cuBLAS takes the workspace away
        handle.streams.append(handle.stream)

    def _set_workspace(self, address, workspace, n_bytes):
        handle = self._handle(address)
        if workspace % _WORKSPACE_ALIGNMENT:
            raise Refused(INVALID_VALUE)
        self._memory_at(workspace, n_bytes)
        handle.workspace = workspace, n_bytes

    def _gemm_ex(self, address, op_a, op_b, m, n, k, alpha, a, type_a, lda, *rest):
        b, type_b, ldb, beta, c, type_c, ldc, compute, algorithm = rest
        handle = self._handle(address)
        stored_a, stored_b = ((m, k) if op_a == 0 else (k, m)), ((k, n) if op_b == 0 else (n, k))
        leading = ((lda, stored_a), (ldb, stored_b), (ldc, (m, n)))
        if min(m, n, k) < 0 or any(ld < max(1, rows) for ld, (rows, _) in leading) or not {op_a, op_b} <= {0, 1}:
            raise Refused(INVALID_VALUE)
        if not type_a == type_b == type_c or compute not in _COMPUTE_TYPES.get(type_a, {}):
            raise Refused(NOT_SUPPORTED)
        workspace = handle.workspace
        assert workspace is not None, "cuBLAS would work in memory of its own"
        stream = self._current_stream()
        assert handle.stream == stream.ptr, "the product goes to another stream than CuPy's"
        assert handle.device == self._current_device(), "the handle is of another device"
        assert algorithm == -1, "an algorithm chosen by hand"
        dtype, precision = _DTYPES[type_a], _COMPUTE_TYPES[type_a][compute]
        self.products.append(Product(address, handle.stream, threading.get_ident(), dtype.name, precision))
        factor, keep = (
            np.frombuffer((ctypes.c_char * dtype.itemsize).from_address(x), dtype)[0] for x in (alpha, beta)
        )

        def work():
            self._memory_at(*workspace)
            A, B, C = (
                matrix_at(self._memory_at, x, dtype, *shape, ld)
                for x, shape, ld in ((a, stored_a, lda), (b, stored_b, ldb), (c, (m, n), ldc))
            )
            for x, matrix in ((a, A), (b, B), *([(c, C)] if keep else [])):
                self._memory_at(x, 1).written.require(matrix, "cublasGemmEx")
            if precision == "tf32":
                A, B = to_tf32(np.ascontiguousarray(A)), to_tf32(np.ascontiguousarray(B))
            product = factor * self.multiply(A.T if op_a else A, B.T if op_b else B)
            self._memory_at(c, 1).written.note(C)
            C[...] = product if keep == 0 else product + keep * C
            for x in (a, b, c, workspace[0]):
                self._memory_at(x, 1).users.touch(stream)
            self._memory_at(c, dtype.itemsize).check("cublasGemmEx")

        stream.submit(work)
