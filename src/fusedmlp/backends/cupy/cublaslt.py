"""cuBLASLt through ctypes: products with an epilogue, which is computed before the product is written to memory.

Numbers and signatures are those of cublasLt.h. cuBLAS itself is built on this library, so it is always there.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from typing import Any

from fusedmlp.backends.cupy.cublas import Library

SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15
_WITHOUT_ALGORITHM = (INVALID_VALUE, NOT_SUPPORTED)  # of a search: a bias that is not aligned well may give the first


class Epilogue(IntEnum):
    """cublasLtEpilogue_t, for D = epilogue(A B). A mask has a bit for every number of D: whether it was above 0."""

    RELU = 2
    RELU_BIAS = 6  # bias is added to A B
    RELU_AUX = 130  # the mask is written as well
    RELU_AUX_BIAS = 134
    DRELU = 136  # A B where the mask is set, else 0
    DRELU_BGRAD = 152  # and the sums over the columns of D, written to bias


class Attribute(IntEnum):
    """cublasLtMatmulDescAttributes_t."""

    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8
    EPILOGUE_AUX_POINTER = 11
    EPILOGUE_AUX_LD = 12  # in bits; a multiple of 128


_ATTRIBUTE_TYPES = {
    Attribute.TRANSA: c_int,
    Attribute.TRANSB: c_int,
    Attribute.EPILOGUE: c_uint32,
    Attribute.BIAS_POINTER: c_void_p,
    Attribute.EPILOGUE_AUX_POINTER: c_void_p,
    Attribute.EPILOGUE_AUX_LD: c_int64,
}
_PREF_WORKSPACE_BYTES = 1
_PREF_ALIGNMENTS = (5, 6, 7, 8)  # of A, B, C, D, in bytes


class Algorithm(Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, and what is known of it."""

    _fields_ = [
        ("data", c_uint64 * 8),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


_PROTOTYPES: dict[str, list[Any]] = {
    "cublasLtCreate": [POINTER(c_void_p)],
    "cublasLtDestroy": [c_void_p],
    "cublasLtMatmulDescCreate": [POINTER(c_void_p), c_int, c_int],  # compute type, type of alpha
    "cublasLtMatmulDescDestroy": [c_void_p],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatrixLayoutCreate": [POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64],  # type, rows, columns, ld
    "cublasLtMatrixLayoutDestroy": [c_void_p],
    "cublasLtMatmulPreferenceCreate": [POINTER(c_void_p)],
    "cublasLtMatmulPreferenceDestroy": [c_void_p],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulAlgoGetHeuristic": [
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),  # handle, product, layouts of A, B, C, D
        *(c_void_p, c_int, POINTER(Algorithm), POINTER(c_int)),  # preference, how many, the results, their number
    ],
    "cublasLtMatmul": [
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),  # handle, product, alpha, A, B
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),  # beta, C, D
        *(c_void_p, c_void_p, c_size_t, c_void_p),  # algorithm, workspace, its bytes, stream
    ],
}


class CublasLt(Library):
    """The functions of cuBLASLt for products; handles, descriptors, streams and pointers are integers.

    Parameters
    ----------
    library : ctypes.CDLL

    Raises
    ------
    CublasError
        From every method: the call failed; the message has cuBLASLt's name of the status.
    """

    def __init__(self, library: Any) -> None:
        super().__init__(library, "cublasLt", _PROTOTYPES)
        self._matmul = self._functions["cublasLtMatmul"]

    def create(self) -> int:
        """A new handle on the current device."""
        return self._created("cublasLtCreate")

    def destroy(self, handle: int) -> None:
        """Release a handle, whose device is the current one."""
        self._call("cublasLtDestroy", handle)

    def create_product(self, compute: int, scale: int) -> int:
        """A new descriptor of a product: its compute type and the type of alpha and beta."""
        return self._created("cublasLtMatmulDescCreate", compute, scale)

    def destroy_product(self, product: int) -> None:
        """Release a descriptor."""
        self._call("cublasLtMatmulDescDestroy", product)

    def set(self, product: int, attribute: Attribute, value: int) -> None:
        """Set an attribute of a product's descriptor."""
        number = _ATTRIBUTE_TYPES[attribute](value)
        arguments = attribute, byref(number), ctypes.sizeof(number)
        self._call("cublasLtMatmulDescSetAttribute", product, *arguments)

    def create_layout(self, data: int, rows: int, columns: int, leading: int) -> int:
        """A new descriptor of a column-major matrix: its type and sizes."""
        return self._created("cublasLtMatrixLayoutCreate", data, rows, columns, leading)

    def destroy_layout(self, layout: int) -> None:
        """Release a layout."""
        self._call("cublasLtMatrixLayoutDestroy", layout)

    def find_algorithm(
        self, handle: int, product: int, layouts: tuple[int, ...], workspace_bytes: int, alignments: tuple[int, ...]
    ) -> Algorithm | str:
        """The algorithm that cuBLASLt expects to be fastest; if it has none, the status that says so.

        Parameters
        ----------
        handle, product : int
        layouts : tuple of int
            Of A, B, C and D.
        workspace_bytes : int
            What the algorithm may use at most.
        alignments : tuple of int
            The numbers of bytes that the addresses of A, B, C and D are multiples of.
        """
        preference = self._created("cublasLtMatmulPreferenceCreate")
        try:
            numbers = [(_PREF_WORKSPACE_BYTES, c_uint64(workspace_bytes))]
            numbers += zip(_PREF_ALIGNMENTS, map(c_uint32, alignments), strict=True)  # type: ignore[arg-type]
            for attribute, number in numbers:
                arguments = attribute, byref(number), ctypes.sizeof(number)
                self._call("cublasLtMatmulPreferenceSetAttribute", preference, *arguments)
            algorithm, count = Algorithm(), c_int()
            search = self._functions["cublasLtMatmulAlgoGetHeuristic"]
            status = search(handle, product, *layouts, preference, 1, byref(algorithm), byref(count))
        finally:
            self._call("cublasLtMatmulPreferenceDestroy", preference)
        if status == SUCCESS:
            status = algorithm.state if count.value else NOT_SUPPORTED
            if status == SUCCESS:
                return algorithm
        if status not in _WITHOUT_ALGORITHM:
            self._fail("cublasLtMatmulAlgoGetHeuristic", status)
        return self._text(status)

    def matmul(self, *arguments: Any) -> None:
        """D = epilogue(alpha op(A) op(B) + beta C); the arguments of cublasLtMatmul."""
        status = self._matmul(*arguments)
        if status:
            self._fail("cublasLtMatmul", status)
