"""numpy's BLAS without its threads: products are cut into parts that run on the same threads as everything else.

OpenBLAS's workers spin for a while after each product. Compiled kernels that follow on threads of our own would share
the cores with them, and both would crawl.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.workers import threads


class _Library(NamedTuple):
    """How to read and set the number of threads of a BLAS library."""

    get_num_threads: Callable[[], int]
    set_num_threads: Callable[[int], None]


@cache
def _libraries(package: str) -> list[_Library]:
    """The BLAS of numpy or scipy: its own copy, or where it shares one, every BLAS in the process."""
    import scipy.linalg.cython_blas  # noqa: F401 - loads SciPy's BLAS, so that it can be found
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    own = [library for library in found if package in os.path.basename(os.path.dirname(library.filepath))]
    return [
        _openblas(library) or _Library(library.get_num_threads, library.set_num_threads) for library in own or found
    ]


def _openblas(library: Any) -> _Library | None:
    """OpenBLAS's own functions: threadpoolctl lets one Python thread change its setting and ignores the others."""
    if library.internal_api != "openblas" or library.threading_layer != "pthreads":
        return None
    dynamic = ctypes.CDLL(library.filepath)
    for affixes in product(("", "scipy_"), ("", "64_", "_64")):
        names = (f"openblas_{verb}_num_threads".join(affixes) for verb in ("get", "set"))
        functions = [getattr(dynamic, name, None) for name in names]
        if all(functions):
            return _Library(*functions)  # type: ignore[arg-type]
    return None


class _OneThread:
    """``with one_thread:`` holds a BLAS to one thread; the last of several threads to leave gives it back."""

    def __init__(self, package: str) -> None:
        self._package = package
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[_Library, int]] = []

    def leave(self) -> None:
        """In a forked child, which has one thread: give the BLAS back its threads, where another held it to one."""
        before = self._before if self._inside else []
        self.reset()
        for library, count in before:
            library.set_num_threads(count)

    @property
    def held(self) -> bool:
        """Whether any thread is inside."""
        return self._inside > 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [(library, library.get_num_threads()) for library in _libraries(self._package)]
                for library, _ in self._before:
                    library.set_num_threads(1)
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside = max(0, self._inside - 1)  # 0 already, where a fork came in between
            if self._inside == 0:
                for library, count in self._before:
                    library.set_num_threads(count)


one_thread = _OneThread("numpy")
scipy_one_thread = _OneThread("scipy")

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_thread.leave)
    os.register_at_fork(after_in_child=scipy_one_thread.leave)


# A part is worth a thread from about here: 100 µs at some 80 GFLOP/s, or at some 4 G elements/s.
_SMALLEST_FLOPS = 1 << 23
_SMALLEST_ELEMENTS = 1 << 19


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out = a b, for a (n, k), b (k, m), out (n, m) of any strides: 2nkm flops, cut along the longer side of `out`.

    While no engine computes, numpy multiplies with its own threads.
    """
    if not one_thread.held:
        np.matmul(a, b, out=out)
        return
    (n, k), m = a.shape, b.shape[1]
    with one_thread:
        # A product with a vector reads its matrix once and is bound by that, any other by its flops.
        cost, smallest = (k * max(n, m), _SMALLEST_ELEMENTS) if min(n, m) == 1 else (2 * n * k * m, _SMALLEST_FLOPS)
        if cost < 2 * smallest:
            np.matmul(a, b, out=out)
        elif n > m:
            parts = threads.split(n, smallest * n // cost + 1)
            threads.run([partial(np.matmul, a[start:stop], b, out=out[start:stop]) for start, stop in parts])
        else:
            parts = threads.split(m, smallest * m // cost + 1)
            threads.run([partial(np.matmul, a, b[:, start:stop], out=out[:, start:stop]) for start, stop in parts])
