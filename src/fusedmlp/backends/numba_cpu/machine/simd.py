"""Vector registers as a type of compiled code: `Lanes` holds as many float32 or float64 as a register of this CPU does.

+, -, * and / work between two of them, and between one and a number of the same precision; so the same source does
mathematics on numbers and on registers. LLVM's own vectoriser leaves the rest of a loop to scalar code, and cannot
block a product over registers: what uses `Lanes` says both itself. Memory is reached by address (int64).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import operator
from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic, lower_builtin, register_model, type_callable

_INT32 = ir.IntType(32)
ELEMENTS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
BYTES = {types.float32: 4, types.float64: 8}


class Registers(NamedTuple):
    """Vector registers of the CPU that numba compiles for, and whether it multiplies and adds in one instruction."""

    bytes: int
    number: int
    fused: bool


@cache
def registers() -> Registers:
    """512 bits with AVX-512, 256 with AVX, else 128, which every 64-bit CPU has."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    have, is_x86 = set(features.split(",")), triple.startswith("x86")
    fused = "+fma" in have or not is_x86
    if "+avx512f" in have:
        return Registers(64, 32, fused)
    if "+avx" in have:
        return Registers(32, 16, fused)
    return Registers(16, 16 if is_x86 else 32, fused)


class Lanes(types.Type):
    """The type of a register's worth of numbers."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.count = registers().bytes // BYTES[dtype]
        super().__init__(name=f"Lanes({dtype}, {self.count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, vector_of(lanes))


def vector_of(lanes):
    return ir.VectorType(ELEMENTS[lanes.dtype], lanes.count)


def _is_number(kind):
    return kind in ELEMENTS


def element_of(kind):
    """The type of the numbers in `kind`: its own, if it is a number; None if it is neither number nor `Lanes`."""
    return kind.dtype if isinstance(kind, Lanes) else kind if _is_number(kind) else None


def indices(numbers):
    return ir.Constant(ir.VectorType(_INT32, len(numbers)), list(numbers))


def spread(builder, value, vector):
    """LLVM: a vector with `value` in all its elements."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, indices([0] * vector.count))


def as_type(builder, value, kind, wanted):
    """LLVM: `value` of numba type `kind` as `wanted`, which is the same or `Lanes` of it."""
    return spread(builder, value, vector_of(wanted)) if isinstance(wanted, Lanes) and kind != wanted else value


# Arithmetic -----------------------------------------------------------------------------------------------------------


def _arithmetic(operation, instruction):
    @type_callable(operation)
    def type_of(context):
        def typer(a, b):
            for lanes in (a, b):
                if isinstance(lanes, Lanes) and all(kind in (lanes, lanes.dtype) for kind in (a, b)):
                    return lanes
            return None

        return typer

    def lower(context, builder, signature, arguments):
        pairs = zip(arguments, signature.args, strict=True)
        return getattr(builder, instruction)(*(as_type(builder, x, k, signature.return_type) for x, k in pairs))

    for kinds in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(operation, *kinds)(lower)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@type_callable(operator.neg)
def _type_of_negative(context):
    return lambda a: a if isinstance(a, Lanes) else None


@lower_builtin(operator.neg, Lanes)
def _lower_negative(context, builder, signature, arguments):
    return builder.fneg(arguments[0])


def multiply_add(builder, a, b, c):
    """LLVM: a b + c, rounded once where the CPU can."""
    if not registers().fused:
        return builder.fadd(builder.fmul(a, b), c)
    element = a.type.element if isinstance(a.type, ir.VectorType) else a.type
    name = (
        f"llvm.fma.{f'v{a.type.count}' if a.type is not element else ''}{'f32' if element == ir.FloatType() else 'f64'}"
    )
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, (a, b, c))


@intrinsic
def fma(typing_context, a, b, c):
    """a b + c, rounded once where the CPU can; numbers, `Lanes`, or both of one precision."""
    kinds = (a, b, c)
    wanted = next((kind for kind in kinds if isinstance(kind, Lanes)), a)
    if element_of(wanted) is None or any(kind not in (wanted, element_of(wanted)) for kind in kinds):
        raise TypingError(f"expected numbers or Lanes of one precision; got {kinds}")

    def codegen(context, builder, signature, arguments):
        pairs = zip(arguments, kinds, strict=True)
        return multiply_add(builder, *(as_type(builder, value, kind, wanted) for value, kind in pairs))

    return wanted(*kinds), codegen


@intrinsic
def magnitude(typing_context, x):
    """|x| of a number or `Lanes`."""
    element = element_of(x)
    if element is None:
        raise TypingError(f"expected a number or Lanes; got {x}")

    def codegen(context, builder, signature, arguments):
        (value,) = arguments
        count = f"v{value.type.count}" if isinstance(x, Lanes) else ""
        name = f"llvm.fabs.{count}f{8 * BYTES[element]}"
        kind = ir.FunctionType(value.type, [value.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [value])

    return x(x), codegen


def _choice(comparison, pick):
    """An intrinsic of (x, bound) for numbers and `Lanes`: pick(x, bound) gives (where true, where false)."""

    @intrinsic
    def choose(typing_context, x, bound):
        if bound not in (x, element_of(x)):
            raise TypingError(f"expected a number or Lanes, and a bound of the same precision; got {x}, {bound}")

        def codegen(context, builder, signature, arguments):
            limit = as_type(builder, arguments[1], bound, x)
            where = builder.fcmp_ordered(comparison, arguments[0], limit)
            return builder.select(where, *pick(arguments[0], limit))

        return x(x, bound), codegen

    return choose


at_least = _choice("<=", lambda x, bound: (bound, x))
"""max(x, bound); NaN stays."""
at_most = _choice(">=", lambda x, bound: (bound, x))
"""min(x, bound); NaN stays."""
above = _choice(">", lambda x, bound: (ir.Constant(x.type, _all(x.type, 1.0)), ir.Constant(x.type, _all(x.type, 0.0))))
"""1 where x > bound, else 0."""


@intrinsic
def where_above(typing_context, x, bound, yes, no):
    """`yes` where x > bound, else `no`: numbers or `Lanes` of the precision of x, and of its form."""
    kinds = (bound, yes, no)
    if element_of(x) is None or any(kind not in (x, element_of(x)) for kind in kinds):
        raise TypingError(f"expected numbers or Lanes of one precision; got {(x, *kinds)}")

    def codegen(context, builder, signature, arguments):
        pairs = zip(arguments[1:], kinds, strict=True)
        limit, first, second = (as_type(builder, value, kind, x) for value, kind in pairs)
        return builder.select(builder.fcmp_ordered(">", arguments[0], limit), first, second)

    return x(x, *kinds), codegen


def _all(vector, value):
    return [value] * vector.count if isinstance(vector, ir.VectorType) else value


@intrinsic
def power_of_two(typing_context, shifted):
    """2ⁿ, where n sits in the low bits of `shifted`, a number or `Lanes`: n moves into the exponent."""
    element = element_of(shifted)
    if element is None:
        raise TypingError(f"expected float32, float64 or Lanes; got {shifted}")
    width, mantissa_bits, exponent_bias = (32, 23, 127) if element == types.float32 else (64, 52, 1023)

    def codegen(context, builder, signature, arguments):
        integer = ir.IntType(width)
        if isinstance(shifted, Lanes):
            integer = ir.VectorType(integer, shifted.count)
        exponent = builder.shl(
            builder.bitcast(arguments[0], integer), ir.Constant(integer, _all(integer, mantissa_bits))
        )
        one = ir.Constant(integer, _all(integer, exponent_bias << mantissa_bits))
        return builder.bitcast(builder.add(exponent, one), arguments[0].type)

    return shifted(shifted), codegen


# Memory ---------------------------------------------------------------------------------------------------------------


@intrinsic
def splat(typing_context, x):
    """`Lanes` with x in all of them."""
    lanes = Lanes(x)
    return lanes(x), lambda context, builder, signature, arguments: spread(builder, arguments[0], vector_of(lanes))


@intrinsic
def load_lanes(typing_context, like, address):
    """`Lanes` of the type of the number `like`, from an address."""
    lanes = Lanes(like)

    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[1], vector_of(lanes).as_pointer())
        return builder.load(pointer, align=BYTES[like])

    return lanes(like, types.int64), codegen


@intrinsic
def store(typing_context, value, address):
    """A number, an int64 or `Lanes` to an address."""
    align = 8 if value == types.int64 else BYTES[element_of(value)]

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[0], builder.inttoptr(arguments[1], arguments[0].type.as_pointer()), align=align)
        return context.get_dummy_value()

    return types.void(value, types.int64), codegen


@intrinsic
def store_as_int32(typing_context, value, address):
    """An int64 that fits to an address, as an int32."""

    def codegen(context, builder, signature, arguments):
        builder.store(builder.trunc(arguments[0], _INT32), builder.inttoptr(arguments[1], _INT32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def sum_lanes(typing_context, lanes):
    """The sum of all lanes, by halves."""

    def codegen(context, builder, signature, arguments):
        (vector,) = arguments
        count = lanes.count
        while count > 1:
            count //= 2
            halves = (indices(range(count)), indices(range(count, 2 * count)))
            vector = builder.fadd(*(builder.shuffle_vector(vector, vector, half) for half in halves))
        return builder.extract_element(vector, ir.Constant(_INT32, 0))

    return lanes.dtype(lanes), codegen


@intrinsic
def item_bytes(typing_context, like):
    """Bytes of a number of the type of `like`, an int64."""
    return types.int64(like), lambda context, *_: context.get_constant(types.int64, BYTES[like])


@intrinsic
def lane_bytes(typing_context, like):
    """Bytes of a register, an int64."""
    size = registers().bytes
    return types.int64(like), lambda context, *_: context.get_constant(types.int64, size)


@intrinsic
def call(typing_context, routine, arguments):
    """Call the compiled function at the address `routine`, which takes these int64 and returns nothing."""
    if not (isinstance(arguments, types.UniTuple) and arguments.dtype == types.int64):
        raise TypingError(f"expected a tuple of int64; got {arguments}")

    def codegen(context, builder, signature, given):
        integer = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [integer] * arguments.count)
        values = cgutils.unpack_tuple(builder, given[1], arguments.count)
        builder.call(builder.inttoptr(given[0], function.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), codegen


def transposition(width):
    """An intrinsic that transposes a block of `width` x `width` numbers, a power of two; None: as many as `Lanes`."""

    @intrinsic
    def transpose(typing_context, like, sources, offset, destination, step):
        """Row p of the result, at destination + p·step, is element p of each row; row q of the block lies at the
        address in sources[q] (an array of int64 at the address `sources`) plus `offset`."""

        def codegen(context, builder, signature, arguments):
            _, sources, offset, destination, step = arguments
            size = width or Lanes(like).count
            vector = ir.VectorType(ELEMENTS[like], size)
            integer, align = ir.IntType(64), BYTES[like]
            table = builder.inttoptr(sources, integer.as_pointer())
            rows = []
            for q in range(size):
                row = builder.add(builder.load(builder.gep(table, [ir.Constant(integer, q)])), offset)
                rows.append(builder.load(builder.inttoptr(row, vector.as_pointer()), align=align))
            half = size // 2
            while half:  # swaps the off-diagonal quarters of every block of 2·half rows
                low = indices([p if not p & half else size + p - half for p in range(size)])
                high = indices([p + half if not p & half else size + p for p in range(size)])
                for q in range(size):
                    if not q & half:
                        pair = rows[q], rows[q + half]
                        rows[q], rows[q + half] = (builder.shuffle_vector(*pair, mask) for mask in (low, high))
                half //= 2
            for p, row in enumerate(rows):
                address = builder.add(destination, builder.mul(step, ir.Constant(integer, p)))
                builder.store(row, builder.inttoptr(address, vector.as_pointer()), align=align)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 4), codegen

    return transpose
