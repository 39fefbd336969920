"""How this backend compiles: without the GIL, kept for later processes, recompiled when any of its sources changes."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.ccallback import CFunc

# No fastmath: bits must not depend on how LLVM combines, reorders or contracts. In a process that compiles, a kernel
# calls others as they were compiled by themselves; loaded from the cache, it calls its own copies, which LLVM has
# optimised once more. What shall be contracted says so (`simd.fma`); "no NaN" would hide a training that diverges.
OPTIONS: Any = {"nogil": True, "error_model": "numpy"}


# For what only compiled code calls: without a way in from Python it compiles in half the time.
INTERNAL = OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


# Size and time of every source in this folder: a kernel holds code of the others that it calls.
_STAMP = tuple(
    (path.name, path.stat().st_mtime, path.stat().st_size) for path in sorted(Path(__file__).parent.glob("*.py"))
)


def _stamp(cache):
    # numba compares the stamp of the file that the kernel is defined in, and of no other.
    cache_file = getattr(cache, "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = (cache_file._source_stamp, _STAMP)


def _compile(function, options):
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no writable cache folder: that costs time in every process, nothing else
        return njit(**options)(function)
    _stamp(dispatcher._cache)
    return dispatcher


def compiled(function):
    """Compile on first call, and keep the machine code for later processes where a cache folder is writable."""
    return _compile(function, OPTIONS)


def internal(function):
    """`compiled`, for what only compiled code calls."""
    return _compile(function, INTERNAL)


def routine_address(function, arguments):
    """Where machine code of `function` starts, which takes so many int64 and returns nothing; kept like `compiled`.

    What is called by address is compiled once, and not again in every kernel that calls it.
    """
    callback = CFunc(function, ((types.int64,) * arguments, types.void), locals={}, options=OPTIONS)
    try:
        callback.enable_caching()
    except RuntimeError:  # as in _compile
        pass
    else:
        _stamp(callback._cache)
    callback.compile()
    _KEPT.append(callback)
    return callback.address


_KEPT: list[CFunc] = []
"""Machine code goes with its object."""
