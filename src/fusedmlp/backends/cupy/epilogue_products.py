"""Products with an epilogue by cuBLASLt: bias, relu and its derivative, and the sums of db, without further passes."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
import weakref
from functools import cached_property
from typing import Any

import numpy as np

from fusedmlp.backends.cupy import cublas
from fusedmlp.backends.cupy.cublas import CublasError
from fusedmlp.backends.cupy.cublas_products import CublasProducts, Stored, constants_of, refuse_capture, stored
from fusedmlp.backends.cupy.cublaslt import Algorithm, Attribute, CublasLt, Epilogue
from fusedmlp.model.activations import Array

_MASK_BITS = 128  # the bits of a column of the mask are a multiple of this
_MASK_ALIGNMENT = 16
_LARGEST_ALIGNMENT = 256
_MOST_PLANS = 256
_FLOAT32 = np.dtype(np.float32)

_log = logging.getLogger("fusedmlp")


def mask_words(n: int) -> int:
    """The float32 numbers that the mask of one sample takes, for n units."""
    return -(-n // _MASK_BITS) * _MASK_BITS // 32


class EpilogueProducts:
    """Products with an epilogue on the current device and the current stream of CuPy, in any thread.

    Every thread has its own handle on every device that it uses, and works in the memory of its products by cuBLAS.
    What cuBLASLt has no algorithm for is announced once, and left to the caller.

    Parameters
    ----------
    cupy : module
    products : CublasProducts
        Lends its workspace.

    Notes
    -----
    A thread's first product cannot be captured; later ones can. A graph uses the workspace as one of `products` does.
    """

    def __init__(self, cupy: Any, products: CublasProducts) -> None:
        self._cupy, self._products = cupy, products
        self._threads = threading.local()

    def multiply(
        self,
        epilogue: Epilogue,
        a: Array,
        b: Array,
        out: Array,
        precision: str,
        bias: Array | None = None,
        mask: Array | None = None,
    ) -> bool:
        """out = epilogue(a b), on the current stream.

        Parameters
        ----------
        epilogue : Epilogue
        a, b : float32 arrays of shapes (n, k), (k, m)
            In either memory order; others are copied as in `CublasProducts.gemm`.
        out : float32 array of shape (n, m)
            Its columns have no gaps between their elements. It overlaps neither a nor b.
        precision : {"strict", "high", "medium"}
        bias : float32 array of shape (n,), optional
            Read by the epilogues with BIAS, written by that with BGRAD. Without gaps.
        mask : float32 array of shape (m, mask_words(n)), optional
            Memory for the bits that RELU_AUX writes and DRELU reads. Without gaps.

        Returns
        -------
        bool
            Whether it was computed. False: cuBLASLt has no algorithm for it.

        Raises
        ------
        ValueError
            `out`, `bias` or `mask` is not as above.
        CublasError
            The product failed; the message has the status and the shapes.
        RuntimeError
            cuBLASLt was not found; or memory would have to be allocated during a capture.
        """
        a, left = self._products.readable("a", a)
        b, right = self._products.readable("b", b)
        target = _checked(epilogue, out, bias, mask)
        workspace, device = self._products.workspace(), self._current_device()
        problem = _Problem(epilogue, precision, (*out.shape, a.shape[1]), left, right, target, bias, mask)
        try:
            plan = device.plan(problem, workspace.size)
            if plan is not None:
                stream = self._cupy.cuda.get_current_stream().ptr
                plan.run(problem, workspace.data.ptr, workspace.size, stream)
        except CublasError as error:
            raise CublasError(f"{epilogue.name} of a {a.shape} and b {b.shape}: {error}") from None
        return plan is not None

    @cached_property
    def _library(self) -> CublasLt:
        return cublas.find(self._cupy, "cublasLt", CublasLt)

    def _current_device(self) -> _Device:
        try:
            devices = self._threads.devices
        except AttributeError:
            devices = self._threads.devices = {}
        number = self._cupy.cuda.runtime.getDevice()
        if number not in devices:
            devices[number] = _Device(self._cupy, self._library, number)
        return devices[number]


class _Problem:
    """A product with its operands; `key` is what an algorithm depends on."""

    def __init__(
        self,
        epilogue: Epilogue,
        precision: str,
        sizes: tuple[int, int, int],
        left: Stored,
        right: Stored,
        out: Stored,
        bias: Array | None,
        mask: Array | None,
    ) -> None:
        self.epilogue, self.precision, self.sizes = epilogue, precision, sizes
        self.left, self.right, self.out = left, right, out
        self.bias = 0 if bias is None else bias.data.ptr
        self.mask = 0 if mask is None else mask.data.ptr
        self.alignments = tuple(_alignment(x.pointer) for x in (left, right, out, out))
        layouts = ((x.leading, x.transposed) for x in (left, right, out))
        beside = _alignment(self.bias), _alignment(self.mask)
        self.key = (epilogue, precision, sizes, *layouts, self.alignments, *beside)


class _Device:
    """A cuBLASLt handle of one thread on one device, and the algorithms that were found on it."""

    def __init__(self, cupy: Any, library: CublasLt, device: int) -> None:
        refuse_capture(cupy.cuda.get_current_stream())
        self._library = library
        self._handle = library.create()
        self._plans: dict[tuple[Any, ...], _Plan | None] = {}
        weakref.finalize(self, _destroy, cupy, library, device, self._handle, os.getpid())

    def plan(self, problem: _Problem, workspace_bytes: int) -> _Plan | None:
        """How to compute a product; None if cuBLASLt has no algorithm."""
        if problem.key not in self._plans:
            if len(self._plans) == _MOST_PLANS:
                self._plans.clear()
            self._plans[problem.key] = _Plan.found(self._library, self._handle, problem, workspace_bytes)
        return self._plans[problem.key]


class _Plan:
    """The descriptors of a product, and its algorithm."""

    def __init__(self, library: CublasLt, handle: int, problem: _Problem) -> None:
        self._library, self._handle, self._of = library, handle, constants_of(_FLOAT32)
        rows, columns, inner = problem.sizes
        shapes = ((rows, inner), (inner, columns), (rows, columns))
        self._product = library.create_product(self._of.compute[problem.precision], self._of.data)
        self._layouts: list[int] = []
        weakref.finalize(self, _release, library, self._product, self._layouts, os.getpid())
        for matrix, shape in zip((problem.left, problem.right, problem.out), shapes, strict=True):
            lines = shape[::-1] if matrix.transposed else shape
            self._layouts.append(library.create_layout(self._of.data, *lines, matrix.leading))
        for attribute, matrix in ((Attribute.TRANSA, problem.left), (Attribute.TRANSB, problem.right)):
            library.set(self._product, attribute, cublas.OP_T if matrix.transposed else cublas.OP_N)
        library.set(self._product, Attribute.EPILOGUE, problem.epilogue)
        if problem.mask:
            library.set(self._product, Attribute.EPILOGUE_AUX_LD, -(-rows // _MASK_BITS) * _MASK_BITS)
        self._set_pointers(problem)
        self._algorithm = Algorithm()

    @classmethod
    def found(cls, library: CublasLt, handle: int, problem: _Problem, workspace_bytes: int) -> _Plan | None:
        """A plan with the best algorithm; None, which is announced, if there is none."""
        plan = cls(library, handle, problem)
        left, right, out = plan._layouts
        layouts = left, right, out, out
        algorithm = library.find_algorithm(handle, plan._product, layouts, workspace_bytes, problem.alignments)
        if isinstance(algorithm, str):
            rows, columns, inner = problem.sizes
            _log.info(
                "cuBLASLt has no algorithm for %s of (%d, %d) times (%d, %d), float32, %s, %s: "
                "the product and what follows it run one after the other",
                *(problem.epilogue.name, rows, inner, inner, columns, problem.precision, algorithm),
            )
            return None
        plan._algorithm = algorithm
        return plan

    def run(self, problem: _Problem, workspace: int, workspace_bytes: int, stream: int) -> None:
        """Compute the product on a stream."""
        self._set_pointers(problem)
        alpha, beta = ctypes.addressof(self._of.one), ctypes.addressof(self._of.zero)
        left, right, out = self._layouts
        operands = (problem.left.pointer, left, problem.right.pointer, right)
        target = problem.out.pointer, out
        algorithm = ctypes.addressof(self._algorithm)
        self._library.matmul(
            *(self._handle, self._product, alpha, *operands, beta, *target, *target),
            *(algorithm, workspace, workspace_bytes, stream),
        )

    def _set_pointers(self, problem: _Problem) -> None:
        if problem.bias:
            self._library.set(self._product, Attribute.BIAS_POINTER, problem.bias)
        if problem.mask:
            self._library.set(self._product, Attribute.EPILOGUE_AUX_POINTER, problem.mask)


def _checked(epilogue: Epilogue, out: Array, bias: Array | None, mask: Array | None) -> Stored:
    """How cuBLASLt writes `out`, once the arrays are known to be those that the epilogue takes."""
    rows, columns = out.shape
    target = stored(out)
    if out.dtype != "float32" or target is None or target.transposed:
        raise ValueError(f"out: expected float32 columns without gaps; got {out.dtype}, strides {out.strides}")
    name = epilogue.name
    wanted = {
        "bias": (bias, (rows,) if "BIAS" in name or "BGRAD" in name else None, out.itemsize),
        "mask": (mask, (columns, mask_words(rows)) if "AUX" in name or "DRELU" in name else None, _MASK_ALIGNMENT),
    }
    for argument, (array, shape, alignment) in wanted.items():
        got = None if array is None else array.shape
        if got != shape:
            raise ValueError(f"{argument}: {name} takes {shape}; got {got}")
        if array is not None and (not array.flags.c_contiguous or array.data.ptr % alignment):
            raise ValueError(f"{argument}: expected memory without gaps, from a multiple of {alignment} bytes on")
    return target


def _alignment(address: int) -> int:
    """The largest power of two, up to 256, that an address is a multiple of."""
    return min(_LARGEST_ALIGNMENT, address & -address) if address else _LARGEST_ALIGNMENT


def _release(library: CublasLt, product: int, layouts: list[int], process: int) -> None:
    if os.getpid() != process:  # a fork: the memory belongs to the parent
        return
    with contextlib.suppress(RuntimeError):
        for layout in layouts:
            library.destroy_layout(layout)
        library.destroy_product(product)


def _destroy(cupy: Any, library: CublasLt, device: int, handle: int, process: int) -> None:
    if os.getpid() != process:  # a fork: the handle belongs to the parent
        return
    # No caller is left who could be told of a device in a state of error.
    with contextlib.suppress(RuntimeError), cupy.cuda.Device(device):
        library.destroy(handle)
