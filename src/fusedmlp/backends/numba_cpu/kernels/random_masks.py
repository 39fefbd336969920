"""Dropout's masks from a counter-based generator, as `model.dropout` defines them; compiled, a register at a time.

A mask depends on the seed, the step, the layer, the unit and the sample alone: tiles, workers and their order change
no bit. All arithmetic is on unsigned integers that wrap around.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fusedmlp.backends.numba_cpu.machine.compilation import internal
from fusedmlp.backends.numba_cpu.machine.intrinsics import INTEGER, load
from fusedmlp.backends.numba_cpu.machine.simd import (
    Lanes,
    as_type,
    item_bytes,
    lane_bytes,
    load_lanes,
    store,
    vector_of,
)

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
HASH_BYTES = 4
INPUT_BYTES = 4
"""The number of an input of a sparse X, int32."""
_LAYER_BITS = 40
_INPUT = np.int32(0)


class MaskRecord(NamedTuple):
    """The mask of the inputs of a layer."""

    threshold: int
    """A unit of a sample is kept where its hash, as an unsigned 32-bit number, is not below this."""
    scale: float
    """1 / (1 - rate)."""


MASK_BYTES = 16


def _constant(kind, value):
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    value &= (1 << element.width) - 1
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _scrambled(builder, value, *steps):
    """LLVM: the value after steps of (right shift that is xored to it, factor)."""
    for shift, factor in steps:
        value = builder.xor(value, builder.lshr(value, _constant(value.type, shift)))
        if factor is not None:
            value = builder.mul(value, _constant(value.type, factor))
    return value


def _mix32(builder, value):
    return _scrambled(builder, value, (16, 0x7FEB352D), (15, 0x846CA68B), (16, None))


def _splitmix64(builder, value):
    value = builder.add(value, _constant(value.type, 0x9E3779B97F4A7C15))
    return _scrambled(builder, value, (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))


def _low(builder, value):
    return builder.trunc(value, _INT32)


def _high(builder, value):
    return builder.trunc(builder.lshr(value, ir.Constant(_INT64, 32)), _INT32)


@intrinsic
def step_key(typing_context, seed, step):
    """The key of a step, an int64 of which all bits count."""

    def codegen(context, builder, signature, arguments):
        return _splitmix64(builder, builder.xor(arguments[0], _splitmix64(builder, arguments[1])))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def store_sample_hash(typing_context, key, sample, address):
    """The hash of a sample (its column in X) in the step of a key, to an address: HASH_BYTES."""

    def codegen(context, builder, signature, arguments):
        key, sample, address = arguments
        low = _mix32(builder, builder.xor(_low(builder, sample), _low(builder, key)))
        high = _mix32(builder, builder.add(_high(builder, sample), _high(builder, key)))
        pointer = builder.inttoptr(address, _INT32.as_pointer())
        builder.store(builder.xor(low, high), pointer, align=HASH_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@internal
def layer_key(key, layer):
    """The counter of unit 0 among the inputs of a layer, for `unit_key`; unit u has this plus u."""
    return key + (layer << _LAYER_BITS) + 1


@intrinsic
def unit_key(typing_context, counter):
    """The key of a unit, from `layer_key` plus the unit's number."""

    def codegen(context, builder, signature, arguments):
        return builder.zext(_low(builder, _splitmix64(builder, arguments[0])), _INT64)

    return types.int64(types.int64), codegen


@intrinsic
def masked_scale(typing_context, like, hashes, key, threshold, scale):
    """`Lanes` with `scale` for the samples that keep a unit, else 0.

    `like` and `scale` are numbers of the precision. hashes : address of the samples' hashes. key : of `unit_key`.
    """
    lanes = Lanes(like)

    def codegen(context, builder, signature, arguments):
        _, hashes, key, threshold, scale = arguments
        vector = ir.VectorType(_INT32, lanes.count)
        samples = builder.load(builder.inttoptr(hashes, vector.as_pointer()), align=HASH_BYTES)
        keys, limits = (_spread(builder, _low(builder, value), vector) for value in (key, threshold))
        kept = builder.icmp_unsigned(">=", _mix32(builder, builder.xor(samples, keys)), limits)
        scales = as_type(builder, scale, like, lanes)
        return builder.select(kept, scales, ir.Constant(vector_of(lanes), [0.0] * lanes.count))

    return lanes(like, types.int64, types.int64, types.int64, like), codegen


@intrinsic
def keeps(typing_context, sample_hash, key, threshold):
    """Whether a sample, the address of whose hash is given, keeps a unit; key : of `unit_key`."""

    def codegen(context, builder, signature, arguments):
        sample_hash, key, threshold = arguments
        sample = builder.load(builder.inttoptr(sample_hash, _INT32.as_pointer()), align=HASH_BYTES)
        return builder.icmp_unsigned(
            ">=", _mix32(builder, builder.xor(sample, _low(builder, key))), _low(builder, threshold)
        )

    return types.boolean(types.int64, types.int64, types.int64), codegen


def _spread(builder, value, vector):
    undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(_INT32, 0)
    first = builder.insert_element(undefined, value, zero)
    return builder.shuffle_vector(first, undefined, ir.Constant(vector, [0] * vector.count))


def mask_nonzeros(like):
    """out = x * mask · scale for a sample's `count` numbers that are not 0: the inputs of the network.

    sample : address of the addresses of its inputs' numbers and values. sample_hash : address of its hash.
    """
    number = type(like)

    def mask_nonzeros(sample, count, out, sample_hash, key, mask):
        threshold, scale, item = load(INTEGER, mask), number(load(0.0, mask + 8)), item_bytes(like)
        inputs, values = load(INTEGER, sample), load(INTEGER, sample + 8)
        for p in range(count):
            unit = unit_key(key + load(_INPUT, inputs + INPUT_BYTES * p))
            kept = scale if keeps(sample_hash, unit, threshold) else number(0)
            store(load(like, values + item * p) * kept, out + item * p)

    return mask_nonzeros


def mask_rows(like):
    """A *= mask · scale: the inputs of the network, a row per unit."""
    number = type(like)

    def mask_rows(A, row, rows, width, hashes, key, mask):
        threshold, scale = load(INTEGER, mask), number(load(0.0, mask + 8))
        item = item_bytes(like)
        for j in range(rows):
            a, unit = A + j * row, unit_key(key + j)
            for i in range(0, width, lane_bytes(like)):
                kept = masked_scale(like, hashes + i // item * HASH_BYTES, unit, threshold, scale)
                store(load_lanes(like, a + i) * kept, a + i)

    return mask_rows
