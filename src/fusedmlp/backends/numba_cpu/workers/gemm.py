"""The gemm that the fused engine calls for wide layers: MKL's where its package is installed, else SciPy's.

Both are called on one thread at a time by each worker. MKL is loaded with its sequential layer, so it starts no threads
of its own; where another library of the process has loaded it already, it is left to that one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from fusedmlp.checks import check_choice
from fusedmlp.errors import BackendUnavailableError

ENVIRONMENT_VARIABLE = "FUSEDMLP_BLAS"
_SEQUENTIAL = 1
_ROUTINES = {"float32": "sgemm", "float64": "dgemm"}


class Gemm(NamedTuple):
    """sgemm or dgemm, with 32-bit integers as Fortran has them.

    Attributes
    ----------
    address : int
        Where it starts.
    library : str
        "MKL" or "SciPy".
    """

    address: int
    library: str


def library() -> str:
    """The library whose gemm is called: "mkl" or "scipy", as FUSEDMLP_BLAS says, else MKL where it is installed.

    Raises
    ------
    ValueError
        FUSEDMLP_BLAS is neither.
    BackendUnavailableError
        FUSEDMLP_BLAS is "mkl", and MKL is not installed or in use already.
    """
    wanted = _wanted()
    if wanted == "scipy":
        return "scipy"
    reason = unavailable_reason()
    if reason:
        raise BackendUnavailableError("numba-cpu", reason)
    return "scipy" if _why_no_mkl() else "mkl"


def unavailable_reason() -> str | None:
    """Why the library that FUSEDMLP_BLAS names cannot be used, or None.

    Raises
    ------
    ValueError
        FUSEDMLP_BLAS names none.
    """
    reason = _why_no_mkl() if _wanted() == "mkl" else None
    return f"{ENVIRONMENT_VARIABLE} is mkl, but {reason}" if reason else None


def _wanted() -> str:
    """The value of FUSEDMLP_BLAS, "" where it is not set."""
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    return check_choice(ENVIRONMENT_VARIABLE, wanted, ("mkl", "scipy")) if wanted else ""


@cache
def gemm(dtype: str, chosen: str) -> Gemm:
    """The gemm of float32 or float64 that `library` chose."""
    if chosen == "mkl":
        function = getattr(_mkl(), f"{_ROUTINES[dtype]}_")
        return Gemm(ctypes.cast(function, ctypes.c_void_p).value or 0, "MKL")
    from numba.extending import get_cython_function_address

    return Gemm(get_cython_function_address("scipy.linalg.cython_blas", _ROUTINES[dtype]), "SciPy")


@cache
def _why_no_mkl() -> str | None:
    """Why MKL cannot be had, or None. The answer stays the same in a process."""
    path = _mkl_path()
    if path is None:
        return 'it is not installed: pip install "fusedmlp[mkl]"'
    if _is_loaded(path):
        return "another library of this process uses it, with threads of its own"
    return None


def _mkl_path() -> Path | None:
    """MKL's single dynamic library, in the package `mkl`."""
    try:
        installed = files("mkl") or []
    except PackageNotFoundError:
        return None
    for file in installed:
        if "mkl_rt" in file.name and (".so" in file.name or file.suffix in (".dll", ".dylib")):
            path = Path(str(file.locate())).resolve()
            if path.exists():
                return path
    return None


def _is_loaded(path: Path) -> bool:
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.GetModuleHandleW(path.name))
    try:
        ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


@cache
def _mkl() -> ctypes.CDLL:
    reason = _why_no_mkl()  # asked, and kept, before it is loaded here
    path = _mkl_path()
    if reason or path is None:
        raise RuntimeError(f"MKL cannot be used: {reason}")
    dynamic = ctypes.CDLL(str(path))
    dynamic.MKL_Set_Threading_Layer(_SEQUENTIAL)
    return dynamic
