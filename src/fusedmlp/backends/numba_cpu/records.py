"""What Python tells compiled code: records in memory, read by address.

Compiled functions that take arrays and tuples are slow to compile, as every level of calls hands dozens of values
down, and slow to call. These take the address of a `RunRecord`, which leads to all the rest. Steps and offsets are bytes.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import struct
from functools import cache
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from fusedmlp.backends.numba_cpu.buffers import AlignedArray


class LayerRecord(NamedTuple):
    """A layer's sizes, and where its numbers lie."""

    n_in: int
    n_out: int
    W: int
    """From the start of a vector of parameters."""
    b: int
    """As W; -1 where there are no biases."""
    Z: int
    """From the start of a workspace: `n_out` rows that hold Z, then A, then dZ."""
    blocked: int
    """Whether its products are blocked over registers; else BLAS makes them."""


class NetworkRecord(NamedTuple):
    """A network, how its tiles lie in a workspace, and the compiled routines that work on them."""

    layers: int
    layer: int
    """Address of the first `LayerRecord`; the others follow."""
    n_parameters: int
    item: int
    """Bytes of a number."""
    loss: int
    """Of `outputs.LOSS_CODES`."""
    mean: int
    """Whether J is a mean over samples, not a sum."""
    tile: int
    """Samples of a tile."""
    row: int
    """From one row of a workspace to the next."""
    Y: int
    """From the start of a workspace, like those that follow: the targets."""
    weights: int
    scratch: int
    """`products.SCRATCH_BYTES`, and two rows."""
    D: int
    """W dZ of the layer below."""
    X: int
    """A packed tile of X."""
    forward: int
    """Address of a sweep, like those that follow: of `sweeps`, `products.Products`, `outputs.Outputs`, ..."""
    backward: int
    multiply: int
    deep: int
    samples: int
    losses: int
    activate: int
    error: int
    add_slots: int
    add_decay: int
    sum_squares: int
    step: int
    forward_tile: int
    backward_tile: int
    sum_samples: int
    predict: int
    gemm: int
    yielder: int
    """Address of sched_yield, or 0."""


class RunRecord(NamedTuple):
    """Work to share: batches to sum, perhaps to step after, or samples to predict. Unnamed ints are addresses."""

    network: int
    state: int
    """What is to be done next, and, a cache line away, how much of it is done; see `passes.work`."""
    done: int
    flat: int
    X: int
    x_row: int
    x_sample: int
    x_access: int
    """How a tile of X is reached; see `inputs`."""
    samples: int
    """Their number."""
    order: int = 0
    """Of the samples, int64; 0 for their own."""
    out: int = 0
    """A_L, shape (nL, samples), if it is wanted; then nothing of what follows is."""
    part: int = 0
    """Samples to predict at a time."""
    Y: int = 0
    y_row: int = 0
    y_sample: int = 0
    weights: int = 0
    """Of the samples; 0 for none."""
    batch_size: int = 0
    batches: int = 1
    batch_slots: int = 1
    """Slots of a batch."""
    last_slots: int = 1
    """Of the last batch, which may be smaller."""
    slots: int = 0
    """Gradients of the slots, one after the other."""
    slot_sums: int = 0
    """Loss and weight of each slot."""
    losses: int = 0
    """J of each batch."""
    result: int = 0
    """The gradient of the last batch; 0 if none is wanted."""
    pieces: int = 0
    """Of the vector of parameters, for the workers to take after each batch."""
    piece: int = 0
    """Parameters of a piece, a multiple of `passes.CHUNK`."""
    kind: int = 0
    """Of step, see `updates`."""
    rates: int = 0
    """Learning rate of each batch's step, with Adam's corrections in it."""
    first_moment: int = 0
    second_moment: int = 0
    alpha: float = 0.0
    beta_1: float = 0.0
    beta_2: float = 0.0
    epsilon: float = 0.0
    scale: float = 0.0
    """Of a batch's sums, written by compiled code, as is what follows."""
    squares: float = 0.0
    """Σ‖W‖²."""


class WorkerRecord(NamedTuple):
    """What a thread has for itself: addresses, then how it reached its tile of X."""

    workspace: int
    losses: int
    """Of a tile's samples, float64."""
    sources: int
    """AddressCache of a tile's samples."""
    x: int = 0
    x_step: int = 0
    x_by_sample: int = 0
    """Whether BLAS finds a sample in each of its columns."""


_FORMATS = {int: "q", float: "d"}


@cache
def _format(kind: type) -> struct.Struct:
    return struct.Struct("".join(_FORMATS[hint] for hint in get_type_hints(kind).values()))


def size_of(kind: type) -> int:
    """Bytes of a record."""
    return _format(kind).size


def written(*records: NamedTuple) -> AlignedArray:
    """Memory that holds records of one kind, one after the other."""
    size = size_of(type(records[0]))
    block = AlignedArray(len(records) * size // 8, "int64")
    for place, record in enumerate(records):
        write(record, block, place * size)
    return block


def write(record: NamedTuple, block: AlignedArray, offset: int = 0) -> None:
    """Put a record into memory, so many bytes from its start."""
    _format(type(record)).pack_into(block.numbers.data, offset, *record)


def _reader(kind: type) -> Any:
    record = from_dtype(np.dtype(list(get_type_hints(kind).items()), align=True))

    @intrinsic
    def at(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(record))

        return record(address), codegen

    return at


layer_at, network_at, run_at, worker_at = (_reader(kind) for kind in (LayerRecord, NetworkRecord, RunRecord, WorkerRecord))
"""Compiled: the record at an address."""
LAYER_BYTES = size_of(LayerRecord)
