"""Instructions and calls that Python cannot express: a BLAS call, a load from an address, atomic operations.

Addresses are arguments: one that is compiled in could not be kept in numba's cache, because it changes from process to
process.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from fusedmlp.backends.numba_cpu.machine.compilation import internal

_BYTE = ir.IntType(8)
INTEGER = np.int64(0)
"""Passed to `load` for an int64."""


@cache
def yield_address() -> int:
    """The address of the C library's sched_yield; 0 where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (OSError, AttributeError, TypeError):
        return 0


def _by_reference(builder: Any, value: Any, llvm_type: Any) -> Any:
    pointer = cgutils.alloca_once(builder, llvm_type)
    builder.store(value, pointer)
    return pointer


@intrinsic
def gemm(typing_context, routine, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C ← alpha op(A) op(B) + beta C, column-major, C (m, n): BLAS's gemm at the address `routine`.

    Leading dimensions count elements, arrays are addresses, trans_a and trans_b whether to transpose. alpha and beta
    have the type of the elements.
    """
    integers = [types.int64] * 3
    signature = types.void(
        types.int64, types.boolean, types.boolean, *integers, alpha, types.int64, types.int64, types.int64, types.int64,
        beta, types.int64, types.int64,
    )  # fmt: skip

    def codegen(context, builder, signature, arguments):
        int32 = ir.IntType(32)
        number = arguments[6].type
        pointers = []
        for kind, value in zip("tteeenpepenpe", arguments[1:], strict=True):
            if kind == "p":
                pointers.append(builder.inttoptr(value, number.as_pointer()))
            elif kind == "n":
                pointers.append(_by_reference(builder, value, number))
            elif kind == "e":
                pointers.append(_by_reference(builder, builder.trunc(value, int32), int32))
            else:
                flag = builder.icmp_unsigned("!=", value, ir.Constant(value.type, 0))
                letter = builder.select(flag, ir.Constant(_BYTE, ord("T")), ir.Constant(_BYTE, ord("N")))
                pointers.append(_by_reference(builder, letter, _BYTE))
        function = ir.FunctionType(ir.VoidType(), [pointer.type for pointer in pointers])
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), pointers)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _pointer(typing_context, like, address):
    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[1], arguments[0].type.as_pointer())

    return types.CPointer(like)(like, types.int64), codegen


@internal
def vector_at(like, address, count):
    """The array of `count` numbers of the type of `like` at an address: LLVM vectorises loops over arrays."""
    return carray(_pointer(like, address), (count,))


@intrinsic
def load(typing_context, like, address):
    """The number at an address, of the type of `like`."""

    def codegen(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[1], arguments[0].type.as_pointer()), align=1)

    return like(like, types.int64), codegen


@intrinsic
def copy_bytes(typing_context, destination, source, count):
    """Copy `count` bytes from one address to another."""

    def codegen(context, builder, signature, arguments):
        pointer = _BYTE.as_pointer()
        to, start = (builder.inttoptr(address, pointer) for address in arguments[:2])
        cgutils.raw_memcpy(builder, to, start, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def clear_bytes(typing_context, address, count):
    """`count` bytes from an address on become 0."""

    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _BYTE.as_pointer())
        cgutils.memset(builder, pointer, arguments[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


# Between threads: an int64 at an address ------------------------------------------------------------------------------


def _shared(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def atomic_add(typing_context, address, value):
    """Add to the number; what it was before."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _shared(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typing_context, address):
    """The number, and everything written before it was last stored."""

    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(_shared(builder, arguments[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typing_context, address, value):
    """Store `value`; a thread that loads it sees everything that this one wrote before."""

    def codegen(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _shared(builder, arguments[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def build_prefetch(builder: Any, pointer: Any, to_write: bool, locality: int) -> None:
    """LLVM: the cache line at a pointer to bytes will be read, or written to; locality 3 is the first-level cache."""
    kind, flag = _BYTE.as_pointer(), ir.IntType(32)
    function = ir.FunctionType(ir.VoidType(), [kind, flag, flag, flag])
    fetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
    builder.call(fetch, [pointer, *(ir.Constant(flag, number) for number in (int(to_write), locality, 1))])


@intrinsic
def prefetch(typing_context, address):
    """Bring the cache line at an address into the second-level cache."""

    def codegen(context, builder, signature, arguments):
        build_prefetch(builder, builder.inttoptr(arguments[0], _BYTE.as_pointer()), to_write=False, locality=2)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def swap_if(typing_context, address, expected, value):
    """If the number is `expected` it becomes `value`; whether it did."""

    def codegen(context, builder, signature, arguments):
        pair = builder.cmpxchg(_shared(builder, arguments[0]), arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def relax(typing_context):
    """Tell the core that this is a loop that waits: it saves power, and leaves more to what shares the core."""
    machine = cpu_target.target_context.codegen().magic_tuple()[0].partition("-")[0]

    def codegen(context, builder, signature, arguments):
        hint = ir.IntType(32)
        name, values = {
            "x86_64": ("llvm.x86.sse2.pause", []),
            "aarch64": ("llvm.aarch64.hint", [ir.Constant(hint, 1)]),
            "arm64": ("llvm.aarch64.hint", [ir.Constant(hint, 1)]),
        }.get(machine, ("", []))
        if name:
            kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_function(typing_context, routine):
    """Call the C function at the address `routine`, which takes nothing, such as sched_yield."""

    def codegen(context, builder, signature, arguments):
        function = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
