"""Products of matrices by cuBLAS, through handles of our own.

Unlike ``cupy.matmul``, these products can be captured in a CUDA graph, read and write matrices with gaps between their
lines in place, allocate nothing, and take the precision as an argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from functools import cached_property
from typing import Any, NamedTuple

from fusedmlp.backends.base import PRECISIONS
from fusedmlp.backends.cupy import cublas
from fusedmlp.backends.cupy.cublas import Cublas, CublasError
from fusedmlp.model.activations import Array

LARGEST = 2**31 - 1
"""The longest axis and the largest leading dimension: cuBLAS takes 32-bit numbers."""

_MIB = 2**20
_HOPPER = (
    90  # the compute capability, as CuPy writes it, from which on NVIDIA recommends a workspace of 32 MiB; before, 4
)


class _Type(NamedTuple):
    """cuBLAS's constants for a dtype; `one` and `zero` are alpha and beta, in host memory."""

    data: int
    compute: dict[str, int]
    one: Any
    zero: Any


_TYPES = {
    "f": _Type(
        cublas.R_32F,
        {"strict": cublas.COMPUTE_32F, "high": cublas.COMPUTE_32F, "medium": cublas.COMPUTE_32F_FAST_TF32},
        ctypes.c_float(1),
        ctypes.c_float(0),
    ),
    "d": _Type(
        cublas.R_64F,
        dict.fromkeys(PRECISIONS, cublas.COMPUTE_64F),
        ctypes.c_double(1),
        ctypes.c_double(0),
    ),
}


def constants_of(dtype: Any) -> _Type:
    """cuBLAS's constants for float32 or float64."""
    return _TYPES[dtype.char]


class Stored(NamedTuple):
    """A matrix as BLAS reads it: columns without gaps, `leading` elements apart.

    Attributes
    ----------
    pointer : int
    leading : int
    transposed : bool
        Whether these columns are the rows of the matrix.
    """

    pointer: int
    leading: int
    transposed: bool


def stored(x: Array) -> Stored | None:
    """How BLAS reads a matrix (n, m) in place; None if it cannot.

    It can if the columns, or the rows, have no gaps between their elements and do not overlap. The stride of an axis of
    length 1 has no meaning.
    """
    (rows, columns), (down, across), item = x.shape, x.strides, x.itemsize
    if (rows == 1 or down == item) and (columns == 1 or across >= rows * item):
        leading, transposed = rows if columns == 1 else across // item, False
    elif (columns == 1 or across == item) and (rows == 1 or down >= columns * item):
        leading, transposed = columns if rows == 1 else down // item, True
    else:
        return None
    return Stored(x.data.ptr, leading, transposed) if leading <= LARGEST else None


class CublasProducts:
    """CublasProducts on the current device and the current stream of CuPy, in any thread.

    Every thread has its own handle on every device that it uses, with a workspace for every stream: 32 MiB on compute
    capability 9.0 and later, 4 MiB before. So the same product gives the same bits, and streams do not share memory. A
    thread's handles are destroyed with the thread, a stream's workspace with the stream.

    Parameters
    ----------
    cupy : module

    Notes
    -----
    Handles and workspaces cannot be made during a capture (``stream.begin_capture()``): the thread's first product in
    the stream has to come before it. The graph uses the workspace of that thread and stream; it may run while both
    exist, and not at the same time as other products of theirs.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._threads = threading.local()

    def gemm(self, a: Array, b: Array, out: Array, precision: str = "strict") -> None:
        """out = a b, on the current stream.

        Matrices that BLAS cannot read in place (gaps along both axes, negative or zero strides) are copied first; such
        an `out` is computed in other memory and copied.

        Parameters
        ----------
        a, b, out : arrays of shapes (n, k), (k, m), (n, m)
            As `check_matrix` wants them: one dtype, float32 or float64, on the current device. No axis is longer than
            `LARGEST`; `out` overlaps neither a nor b.
        precision : {"strict", "high", "medium"}
            "medium": of float32 operands 10 bits of the mantissa are used, by tensor cores; sums are in float32. "high"
            is "strict": cuBLAS has nothing between them.

        Raises
        ------
        CublasError
            The product failed; the message has the status and the shapes.
        RuntimeError
            cuBLAS was not found; or memory would have to be allocated during a capture.
        """
        if out.size == 0:
            return
        if a.shape[1] == 0:
            out.fill(0)
            return
        a, left = self.readable("a", a)
        b, right = self.readable("b", b)
        target = stored(out)
        if target is None:
            self._refuse_copy("out", out)
            aside = self._cupy.empty(out.shape, out.dtype)
            self.gemm(a, b, aside, precision)
            out[...] = aside
            return
        handle = self._current_handle()
        try:
            self._cublas.gemm_ex(
                handle, *_problem(left, right, target, a.shape, b.shape[1], constants_of(a.dtype), precision)
            )
        except CublasError as error:
            raise CublasError(f"{a.dtype} product of a {a.shape} and b {b.shape}: {error}") from None

    def version(self) -> str:
        """The version of cuBLAS, e.g. "13.2.0"."""
        return ".".join(map(str, self._cublas.version()))

    def workspace(self) -> Array:
        """The memory that this thread's products in the current stream work in: bytes, on the current device."""
        self._current_handle()
        workspace = self._threads.handles[self._cupy.cuda.runtime.getDevice()].workspace
        assert workspace is not None
        return workspace

    @cached_property
    def _cublas(self) -> Cublas:
        return cublas.load(self._cupy)

    def _current_handle(self) -> int:
        """The handle of this thread on the current device, set to the current stream."""
        try:
            handles = self._threads.handles
        except AttributeError:
            handles = self._threads.handles = {}
        device = self._cupy.cuda.runtime.getDevice()
        if device not in handles:
            handles[device] = _Handle(self._cupy, self._cublas, device)
        return handles[device].in_stream(self._cupy.cuda.get_current_stream())

    def readable(self, name: str, x: Array) -> tuple[Array, Stored]:
        """x, or a copy of it, and how BLAS reads that; a copy is refused during a capture, as `gemm` says."""
        found = stored(x)
        if found is None:
            self._refuse_copy(name, x)
            x = x.copy(order="C")
            found = stored(x)
            assert found is not None
        return x, found

    def _refuse_copy(self, name: str, x: Array) -> None:
        """Raise during a capture: the memory of a copy would be freed before the graph runs."""
        if self._cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                f"{name}: strides of {x.strides} bytes need a copy, which cannot be captured in a CUDA graph"
            )


class _Handle:
    """A cuBLAS handle of one thread on one device, with a workspace for every stream.

    Two streams with the same workspace would overwrite each other's intermediate results.
    """

    def __init__(self, cupy: Any, library: Cublas, device: int) -> None:
        self._cupy, self._cublas = cupy, library
        refuse_capture(cupy.cuda.get_current_stream())
        capability = int(cupy.cuda.Device(device).compute_capability)
        self._workspace_bytes = (32 if capability >= _HOPPER else 4) * _MIB
        self._workspaces: weakref.WeakKeyDictionary[Any, Array] = weakref.WeakKeyDictionary()
        self._stream: Any = None
        self.workspace: Array | None = None
        self._handle = library.create()
        weakref.finalize(self, _destroy, cupy, library, device, self._handle, os.getpid())

    def in_stream(self, stream: Any) -> int:
        """The handle, set to a stream; cuBLAS is called only if the stream is another one than before."""
        if stream is self._stream:
            return self._handle
        workspace = self._workspaces.get(stream)
        if workspace is None:
            refuse_capture(stream)
            workspace = self._workspaces[stream] = self._cupy.empty((self._workspace_bytes,), "uint8")
        self._stream = None
        self._cublas.set_stream(self._handle, stream.ptr)  # takes the workspace away, so it comes second
        self._cublas.set_workspace(self._handle, workspace.data.ptr, self._workspace_bytes)
        # Kept here too: streams with the same pointer are equal, and the one in the dictionary may be deleted first.
        self._stream, self.workspace = stream, workspace
        return self._handle


def _problem(
    left: Stored, right: Stored, out: Stored, sizes: tuple[int, int], columns: int, of: _Type, precision: str
) -> tuple[int, ...]:
    """The arguments of cublasGemmEx behind the handle, for `sizes` (n, k) of a and `columns` m of b.

    Where BLAS reads the rows of `out` as its columns, the problem is the transposed one: outᵀ = bᵀ aᵀ.
    """
    rows, inner = sizes
    if out.transposed:
        left, right, rows, columns = right, left, columns, rows
    operations = [cublas.OP_N if x.transposed == out.transposed else cublas.OP_T for x in (left, right)]
    alpha, beta = ctypes.addressof(of.one), ctypes.addressof(of.zero)
    return (
        *(*operations, rows, columns, inner),
        *(alpha, left.pointer, of.data, left.leading, right.pointer, of.data, right.leading),
        *(beta, out.pointer, of.data, out.leading, of.compute[precision]),
    )


def refuse_capture(stream: Any) -> None:
    """Raise during a capture: a new handle and its workspace would have to be allocated."""
    if stream.is_capturing():
        raise RuntimeError(
            "a thread's first product in a stream cannot be captured in a CUDA graph: compute one before begin_capture"
        )


def _destroy(cupy: Any, library: Cublas, device: int, handle: int, process: int) -> None:
    if os.getpid() != process:  # a fork: the handle belongs to the parent
        return
    # No caller is left who could be told of a device in a state of error.
    with contextlib.suppress(RuntimeError), cupy.cuda.Device(device):
        library.destroy(handle)
