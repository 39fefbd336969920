"""cuBLAS through ctypes: the libraries that CuPy uses, with errors as exceptions (`cublaslt.py` has cuBLASLt).

CuPy's own calls of cuBLAS are refused while a CUDA graph is captured, and do not take matrices with gaps.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from typing import Any, NoReturn, TypeVar

OP_N, OP_T = 0, 1
R_32F, R_64F = 0, 1
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
_GEMM_DEFAULT = -1
_VERSION_PARTS = (0, 1, 2)  # major, minor, patch

_PROTOTYPES: dict[str, list[Any]] = {
    "cublasCreate_v2": [POINTER(c_void_p)],
    "cublasDestroy_v2": [c_void_p],
    "cublasSetStream_v2": [c_void_p, c_void_p],
    "cublasSetWorkspace_v2": [c_void_p, c_void_p, c_size_t],
    "cublasGemmEx": [
        *(c_void_p, c_int, c_int, c_int, c_int, c_int),  # handle, op(A), op(B), m, n, k
        *(c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_int),  # alpha, A with type and ld, B with type and ld
        *(c_void_p, c_void_p, c_int, c_int, c_int, c_int),  # beta, C with type and ld, compute type, algorithm
    ],
}


class CublasError(RuntimeError):
    """cuBLAS or cuBLASLt refused a call, or failed in it."""


class Library:
    """A library of C functions that return a cublasStatus_t.

    Parameters
    ----------
    library : ctypes.CDLL
    prefix : {"cublas", "cublasLt"}
        The beginning of the names that both libraries have.
    prototypes : dict of name -> types of the arguments

    Raises
    ------
    AttributeError
        The library lacks a function.
    """

    def __init__(self, library: Any, prefix: str, prototypes: dict[str, list[Any]]) -> None:
        self._prefix = prefix
        self._status_name = _prototyped(library, f"{prefix}GetStatusName", [c_int], c_char_p)
        types = prototypes | {f"{prefix}GetProperty": [c_int, POINTER(c_int)]}
        self._functions = {name: _prototyped(library, name, arguments, c_int) for name, arguments in types.items()}

    def version(self) -> tuple[int, ...]:
        """(major, minor, patch); the major is that of the CUDA it belongs to."""
        number, parts = c_int(), []
        for part in _VERSION_PARTS:
            self._call(f"{self._prefix}GetProperty", part, ctypes.byref(number))
            parts.append(number.value)
        return tuple(parts)

    def _call(self, name: str, *arguments: Any) -> None:
        status = self._functions[name](*arguments)
        if status:
            self._fail(name, status)

    def _fail(self, name: str, status: int) -> NoReturn:
        raise CublasError(f"{name} failed: {self._text(status)}")

    def _text(self, status: int) -> str:
        """The library's name of a status, and its number."""
        return f"{self._status_name(status).decode()} ({status})"

    def _created(self, name: str, *arguments: Any) -> int:
        """What a function creates: the pointer that it writes to its first argument."""
        made = c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        assert made.value is not None
        return made.value


class Cublas(Library):
    """The functions of cuBLAS for products; handles, streams and pointers are integers.

    Parameters
    ----------
    library : ctypes.CDLL

    Raises
    ------
    CublasError
        From every method: the call failed; the message has cuBLAS's name of the status.
    """

    def __init__(self, library: Any) -> None:
        super().__init__(library, "cublas", _PROTOTYPES)
        self._gemm_ex = self._functions["cublasGemmEx"]

    def create(self) -> int:
        """A new handle on the current device."""
        return self._created("cublasCreate_v2")

    def destroy(self, handle: int) -> None:
        """Release a handle, whose device is the current one."""
        self._call("cublasDestroy_v2", handle)

    def set_stream(self, handle: int, stream: int) -> None:
        """Send work to `stream` from now on. cuBLAS resets the handle's workspace."""
        self._call("cublasSetStream_v2", handle, stream)

    def set_workspace(self, handle: int, pointer: int, n_bytes: int) -> None:
        """Set the workspace, device memory, for the current stream of the handle."""
        self._call("cublasSetWorkspace_v2", handle, pointer, n_bytes)

    def gemm_ex(self, *arguments: int) -> None:
        """C = alpha op(A) op(B) + beta C, column-major; the arguments of cublasGemmEx without the algorithm."""
        status = self._gemm_ex(*arguments, _GEMM_DEFAULT)
        if status:
            self._fail("cublasGemmEx", status)


def load(cupy: Any) -> Cublas:
    """cuBLAS of the CUDA version that CuPy was built for; errors as `find`."""
    return find(cupy, "cublas", Cublas)


Found = TypeVar("Found", bound=Library)


def find(cupy: Any, name: str, kind: Callable[[Any], Found]) -> Found:
    """The library of the CUDA version that CuPy was built for.

    Parameters
    ----------
    cupy : module
    name : {"cublas", "cublasLt"}
    kind : subclass of Library
        What it is opened as.

    Raises
    ------
    RuntimeError
        It was not found; the message says what was tried.
    """
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    plain = f"{name}64_{major}.dll" if os.name == "nt" else f"lib{name}.so.{major}"
    # CuPy itself uses the first way. The second finds a library that is loaded already, or in the system's folders.
    ways: dict[str, Callable[[], str]] = {"cuda-pathfinder": lambda: _found_path(name) or plain, plain: lambda: plain}
    failures = []
    for way, path in ways.items():
        try:
            library = kind(open_library(path()))
            found = library.version()[0]
        except (ImportError, OSError, AttributeError, RuntimeError) as error:  # the last: not found, or CublasError
            failures.append(f"{way}: {str(error).partition(chr(10))[0]}")
            continue
        if found == major:
            return library
        failures.append(f"{way}: a library for CUDA {found}")
    title = {"cublas": "cuBLAS", "cublasLt": "cuBLASLt"}[name]
    raise RuntimeError(f"{title} for CUDA {major} ({plain}) cannot be loaded; {'; '.join(failures)}")


open_library: Callable[[str], Any] = ctypes.CDLL


def _found_path(name: str) -> str | None:
    """The path where CuPy finds the library; None if it is loaded already and its path is not known."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return load_nvidia_dynamic_lib(name).abs_path


def _prototyped(library: Any, name: str, argument_types: list[Any], result_type: Any) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = argument_types, result_type
    return function
