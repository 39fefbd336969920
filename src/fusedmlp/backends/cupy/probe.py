"""Whether CuPy works on this machine: it computes something, and the result is checked."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.backends.cupy.own_gpu import take_own_gpu

_lock = threading.Lock()
_proven: set[Any] = set()
"""The CuPy modules that work. A success is remembered for the process; after a failure the test is run again."""


def find_reason(backend_class: type[Backend]) -> str | None:
    """Why the backend cannot run on this machine, in one line with the pip command that helps; None if it can."""
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            return f"CuPy does not import ({one_line(error)}); reinstall it: {_pip(13)}, or cuda12 for CUDA 12"
        return f"CuPy is not installed: {_pip(13)}, or cuda12 where the NVIDIA driver is too old for CUDA 13"
    except Exception as error:
        return f"CuPy does not import ({one_line(error)}); reinstall it: {_pip(13)}, or cuda12 for CUDA 12"
    with _lock:
        if cupy in _proven:
            return None
        try:
            reason = _driver_reason(cupy)
            if reason is None:
                take_own_gpu(cupy)
                reason = _work_reason(cupy, backend_class())
        except Exception as error:
            reason = f"CuPy does not work here ({one_line(error)})"
        if reason is None:
            _proven.add(cupy)
        return reason


def _driver_reason(cupy: Any) -> str | None:
    """The problem with the driver or the GPU; None if there is none."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except Exception as error:
        needed, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
        if driver == 0:
            status = str(error).partition(":")[0]
            return f"CuPy {cupy.__version__} finds no NVIDIA driver ({status}): it needs an NVIDIA GPU with its driver"
        if driver < needed // 1000 * 1000:
            older = f", or pip uninstall cupy-cuda{needed // 1000}x and {_pip(12)}" if driver >= 12000 else ""
            versions = f"for CUDA {version_text(driver)}, CuPy for CUDA {version_text(needed)}"
            return f"the NVIDIA driver is {versions}: update it{older}"
        return f"no NVIDIA GPU can be used ({one_line(error)})"
    return None if count else "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set?)"


def _work_reason(cupy: Any, backend: Backend) -> str | None:
    """The problem with a product, CuPy's own functions or a kernel, which are run and checked; None if they work."""
    z = np.array([[-1e4, -3.0, -0.5, 0.0, 0.5, 3.0, 1e4]], dtype=np.float32)
    expected = 1 / (1 + np.exp(-np.clip(z.astype(np.float64), -80, 80)))
    step = "copying to the GPU"
    try:
        Z = backend.asarray(z)
        step = "compiling and running kernels/activations.cu"
        A = backend.sigmoid(Z)
        activated = backend.to_numpy(A)
        step = "a product by cuBLAS"
        product = backend.matmul(A.T, A)
        step = "a sum by CuPy"
        total = float((product + 1).sum())
    except Exception as error:
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        return f"{step} failed ({one_line(error)}). CUDA's libraries and headers come with {_pip(major)}"
    if not np.allclose(activated, expected, rtol=1e-5, atol=1e-30):
        return f"the GPU computes wrong numbers: the sigmoid of {z[0].tolist()} came out as {activated[0].tolist()}"
    expected_total = float((expected.T @ expected + 1).sum())
    if not np.isclose(total, expected_total, rtol=1e-3):  # NVIDIA_TF32_OVERRIDE may have products in TF32
        return f"the GPU computes wrong numbers: a sum of products of {expected_total} came out as {total}"
    return None


def one_line(error: BaseException, width: int = 200) -> str:
    """The type of an exception and the first line of its message with "error" in it, cut to `width` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= width else text[: width - 1] + "…"


def version_text(version: int) -> str:
    """ "13.2" for CUDA's 13020."""
    return f"{version // 1000}.{version % 1000 // 10}"


def gigabytes(n_bytes: int) -> str:
    """ "78.6 GB", in units of 10⁹ bytes."""
    return f"{n_bytes / 1e9:.1f} GB"


def _pip(cuda_major: int) -> str:
    return f'pip install "fusedmlp[cuda{cuda_major}]"'
