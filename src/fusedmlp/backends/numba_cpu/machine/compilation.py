"""Compilation of this backend: without the GIL, cached on disk, and again when any of its sources changes."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.runtime.nrt import rtsys

_log = logging.getLogger("fusedmlp.compilation")

# No fastmath: bits must not depend on how LLVM combines, reorders or contracts. In a process that compiles, a kernel
# calls others as they were compiled by themselves; loaded from the cache, it calls its own copies, which LLVM has
# optimised once more. What shall be contracted says so (`simd.fma`); "no NaN" would hide a training that diverges.
OPTIONS: Any = {"nogil": True, "error_model": "numpy"}


class _NoEnvironment:
    @staticmethod
    def set_env(name, environment):
        """Nothing: numba's environment of a function serves exceptions and calls of Python alone."""


class _PartOfCallers(JITCodeLibrary):
    """Code that is linked into its callers, and optimised and turned into machine code there, not by itself as well.

    With this, the first fit on a machine compiles in three quarters of the time.
    """

    codegen = _NoEnvironment

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        return 0


class _InternalCompiler(Compiler):
    def define_pipelines(self):
        state = self.state
        state.library = _PartOfCallers(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


# For what only compiled code calls: without a way in from Python, and without machine code of its own.
INTERNAL = OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": _InternalCompiler}


# Size and time of every source of this backend: a kernel holds code of the others that it calls.
_STAMP = tuple(
    (path.name, path.stat().st_mtime, path.stat().st_size) for path in sorted(Path(__file__).parents[1].rglob("*.py"))
)


class _AsItIs:
    """A target of numba's that is not refreshed before something is loaded from the cache.

    Machine code needs none of the types and functions that a refresh registers, which takes half a second.
    """

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)

    def refresh(self):
        """Only numba's run-time library, which machine code may call; what has to be compiled refreshes the rest."""
        rtsys.initialize(self._target)


def _prepare(cache):
    """Make a cache of numba's notice a change in any of the sources, and survive a damaged file."""
    # numba compares the stamp of the file that the kernel is defined in, and of no other.
    cache_file = getattr(cache, "_cache_file", None)
    if hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = (cache_file._source_stamp, _STAMP)
    load, save = cache.load_overload, cache.save_overload

    def load_or_compile(signature, target):
        try:
            return load(signature, _AsItIs(target))
        except Exception as error:  # whatever a file that was cut off, or holds something else, leads to
            _log.warning("a file in numba's cache in %s is damaged (%r): compiling again", cache.cache_path, error)
            _renew(cache)
            return None

    def save_or_leave(signature, data):
        try:
            save(signature, data)
        except Exception as error:  # no space, or no permission any more: the code is there all the same
            _log.warning("compiled code cannot be kept in %s: %r", cache.cache_path, error)

    cache.load_overload, cache.save_overload = load_or_compile, save_or_leave


def _renew(cache):
    """An empty index in place of a damaged one, which would also keep new code from being saved."""
    try:
        cache.flush()
    except OSError as error:
        _log.warning("the index of numba's cache in %s cannot be written: %r", cache.cache_path, error)


def compiled(function):
    """Compile on first call, and keep the machine code for later processes where a cache folder is writable.

    It is called from Python and from compiled code. It has no address for C to call, which saves a tenth of the time.
    """
    options = OPTIONS | {"no_cfunc_wrapper": True}
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no writable cache folder: that costs time in every process, nothing else
        return njit(**options)(function)
    _prepare(dispatcher._cache)
    return dispatcher


def from_python(function, arguments):
    """The compiled `function` of so many int64, for Python to call: in a fifth of the time that ctypes takes.

    It lets go of the GIL. Other arguments than int raise TypeError.
    """
    return compiled(function).compile((types.int64,) * arguments)


def internal(function):
    """Compile when another compiled function calls it; the machine code is part of the caller's."""
    return njit(**INTERNAL)(function)


def routine_address(function, arguments, result=types.void):
    """The address of the machine code of `function`, which takes `arguments` int64; cached like `compiled`.

    What is called by address is compiled once, and not again in every kernel that calls it.
    """
    callback = CFunc(function, ((types.int64,) * arguments, result), locals={}, options=OPTIONS)
    try:
        callback.enable_caching()
    except RuntimeError:  # as in `compiled`
        pass
    else:
        _prepare(callback._cache)
    callback.compile()
    _KEPT.append(callback)
    return callback.address


_KEPT: list[CFunc] = []
"""Machine code lives as long as its object."""
