"""Ending a run early: callbacks into Python while compiled code runs, a clock, and floating-point modes.

The thread that called the engine makes a callback about twenty times a second. That runs Python, so a signal such as
Ctrl-C is handled there. Whatever is raised is kept, and raised again when the run has ended.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Generator
from functools import cache

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from fusedmlp.backends.numba_cpu.machine.compilation import internal
from fusedmlp.backends.numba_cpu.machine.intrinsics import atomic_load, call_function


class GuardedCallback:
    """A Python function that compiled code calls by address, and what it raised.

    A signal handler may run, and raise, as soon as Python runs: before the first line of a function, outside of any
    ``try``. So the callback is a generator that waits inside of one.

    Parameters
    ----------
    function : callable
    stop : array of int64
        Its first number becomes `reason` when something is raised.
    reason : int
    """

    def __init__(self, function: Callable[[], object], stop: np.ndarray, reason: int) -> None:
        self.error: BaseException | None = None
        self._function, self._stop, self._reason = function, stop, reason
        steps = self._run()
        next(steps)
        self._routine = ctypes.CFUNCTYPE(None)(steps.__next__)
        self.address = ctypes.cast(self._routine, ctypes.c_void_p).value or 0

    def _run(self) -> Generator[None]:
        while True:
            try:
                while True:
                    yield
                    self._function()
            except GeneratorExit:  # the callback itself is no longer needed
                return
            except BaseException as error:
                self._stop[0] = self._reason
                self.error = self.error or error


@cache
def clock_address() -> int:
    """The address of the C library's clock_gettime; 0 where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0
    except (OSError, AttributeError, TypeError):
        return 0


@intrinsic
def nanoseconds(typing_context, clock):
    """`time.monotonic_ns()`, by clock_gettime at the address `clock`."""
    integer, identity = ir.IntType(64), ir.IntType(32)
    monotonic = ir.Constant(identity, getattr(time, "CLOCK_MONOTONIC", 1))

    def codegen(context, builder, signature, arguments):
        pair = ir.ArrayType(integer, 2)
        now = cgutils.alloca_once(builder, pair)
        function = ir.FunctionType(identity, [identity, pair.as_pointer()])
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [monotonic, now])
        seconds, rest = (builder.extract_value(builder.load(now), part) for part in (0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(integer, 10**9)), rest)

    return types.int64(types.int64), codegen


# Floating-point modes -------------------------------------------------------------------------------------------------

# Results below the normal numbers become 0, and operands count as 0: bits 15 and 6 of MXCSR, 24 of FPCR.
_FLUSH = {"x86_64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}


def _machine() -> str:
    return cpu_target.target_context.codegen().magic_tuple()[0].partition("-")[0]


FLUSH_BITS = _FLUSH.get(_machine(), 0)


def _x86_register(builder, name, pointer):
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), name)
    builder.call(function, [builder.bitcast(pointer, byte)])


def _read_mode(builder):
    """LLVM: the floating-point mode of this thread, an int64."""
    integer = ir.IntType(64)
    if _machine() == "x86_64":
        word = cgutils.alloca_once(builder, ir.IntType(32))
        _x86_register(builder, "llvm.x86.sse.stmxcsr", word)
        return builder.zext(builder.load(word), integer)
    if _machine() in _FLUSH:
        return builder.asm(ir.FunctionType(integer, []), "mrs $0, fpcr", "=r", [], side_effect=True)
    return ir.Constant(integer, 0)


def _write_mode(builder, mode):
    if _machine() == "x86_64":
        word = cgutils.alloca_once(builder, ir.IntType(32))
        builder.store(builder.trunc(mode, ir.IntType(32)), word)
        _x86_register(builder, "llvm.x86.sse.ldmxcsr", word)
    elif _machine() in _FLUSH:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.asm(kind, "msr fpcr, $0", "r", [mode], side_effect=True)


@intrinsic
def flush_subnormals(typing_context):
    """From here on numbers below the normal ones count as 0 in this thread; the mode that it had before.

    They make a pass some 70 times as slow, and are less than 1.2e-38 (2.3e-308).
    """

    def codegen(context, builder, signature, arguments):
        before = _read_mode(builder)
        _write_mode(builder, builder.or_(before, ir.Constant(ir.IntType(64), FLUSH_BITS)))
        return before

    return types.int64(), codegen


@intrinsic
def set_mode(typing_context, mode):
    """The floating-point mode of this thread, as `flush_subnormals` gave it."""

    def codegen(context, builder, signature, arguments):
        _write_mode(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# Callbacks, and the end of a run --------------------------------------------------------------------------------------

POLL_NS = 50_000_000
STOP_EARLY, STOP_AT_ONCE = 1, 2
"""Why a run ends: with the batch, if its sums are complete, or without its step."""


@internal
def call_python(routine):
    """Make a callback into Python, in the floating-point mode that Python has."""
    mode = flush_subnormals()
    set_mode(mode & ~FLUSH_BITS)
    call_function(routine)
    set_mode(mode)


@internal
def interrupted(network, run, worker):
    """Whether the run is to end. The leader gives Python its turn first, if it is time for that."""
    if run.poll and worker.leader:
        now = nanoseconds(network.clock) if network.clock else run.next_poll
        if now >= run.next_poll:
            call_python(run.poll)
            run.next_poll = now + POLL_NS
    return atomic_load(run.stop) != 0
