"""Records in memory, by which Python passes arguments to compiled code.

Compiled functions that take arrays and tuples are slow to compile, as every level of calls hands dozens of values
down, and slow to call. These take the address of a `RunRecord`, which leads to all the rest. Steps and offsets are
bytes.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import struct
from functools import cache, partial
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from fusedmlp.backends.numba_cpu.machine.buffers import AlignedArray


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
    """`register_products.SCRATCH_BYTES`, and two rows."""
    D: int
    """W dZ of the layer below."""
    X: int
    """A packed tile of X."""
    slopes: int
    """From a row of Z to the row with its slopes; 0 where there are none."""
    targets: int
    """What the loss allows: a code of `inputs`."""
    long_tiles: int
    """Whether a tile takes so long that a run can end in the middle of one."""
    forward: int
    """Address of a routine, like those that follow: of `sweeps`, `register_products`, `loss_kernels`, ..."""
    backward: int
    mask_inputs: int
    multiply: int
    samples: int
    losses: int
    activate: int
    error: int
    add_slots: int
    add_scaled: int
    sum_squares: int
    step: int
    forward_tile: int
    backward_tile: int
    sum_samples: int
    predict: int
    pack_rows: int
    gemm: int
    yielder: int
    """Address of sched_yield, or 0."""
    clock: int
    """Address of clock_gettime, or 0."""
    loss_parameter: float
    """The number that the loss has, such as a quantile; 0 where it has none."""


class RunRecord(NamedTuple):
    """Work to share: batches to sum, perhaps to step after, or samples to predict. Unnamed ints are addresses."""

    state: int
    """The next task, see `passes.work`. This and the next three each have a cache line of their own."""
    done: int
    """The number of tasks that are done."""
    stop: int
    """Not 0: the run is to end, see `passes.STOP_EARLY` and `passes.STOP_AT_ONCE`."""
    steps: int
    """The number of batches that had their step."""
    slot_sums: int
    """Loss and weight of each slot."""
    sums: int
    """float64: Σ w j, Σ w, count and Σ‖W‖² of a batch, the L2 term's factor, then ‖gradient‖² of each piece."""
    pieces: int
    """The number of pieces that the vector of parameters is cut into, as tasks after each batch."""
    piece: int
    """Parameters of a piece, a multiple of `batch_ends.CHUNK`."""
    network: int
    flat: int
    X: int
    x_row: int
    x_sample: int
    x_access: int
    """One of the ways to read a tile of X in `inputs`."""
    convert: int
    """A routine that packs a tile of an X of another dtype; 0 for the network's own."""
    samples: int
    """Their number."""
    order: int = 0
    """The order of the samples, int64; 0: as they lie."""
    out: int = 0
    """A_{L-1}, shape (nL, samples), if it is wanted; then nothing of what follows is."""
    part: int = 0
    """Samples to predict at a time."""
    invalid: int = 0
    """Where to say that X is not finite, or Y not what the loss allows; 0: both are known to be valid."""
    Y: int = 0
    y_row: int = 0
    y_sample: int = 0
    weights: int = 0
    """The weights of the samples; 0 for none."""
    batch_size: int = 0
    batches: int = 1
    batch_slots: int = 1
    """Slots of a batch."""
    last_slots: int = 1
    """Slots of the last batch, which may be smaller."""
    slots: int = 0
    """Gradients of the slots, one after the other."""
    losses: int = 0
    """J of each batch."""
    result: int = 0
    """The gradient of the last batch; 0 if none is wanted."""
    kind: int = 0
    """The rule of the step: a code of `optimizers.RULES`, 0 for no step."""
    rates: int = 0
    """Learning rate of each batch's step, with Adam's corrections in it."""
    epsilons: int = 0
    """Adam's epsilon of each batch's step."""
    decays: int = 0
    """Minus the share of the weights that each batch's step takes off first; address 0: no decay."""
    first_moment: int = 0
    second_moment: int = 0
    separate: int = 0
    """Whether the sums of a batch are complete before anything else happens to them: for a gradient phase or a norm."""
    phase: int = 0
    """The gradient phase: compiled, of (gradient, its length, sums, context); 0 for none."""
    phase_context: int = 0
    phase_callback: int = 0
    """In its place, a callback into Python without arguments."""
    poll: int = 0
    """A callback into Python that the leader makes every `passes.POLL_NS`; 0 for none."""
    next_poll: int = 0
    """When, in nanoseconds of the clock."""
    x_starts: int = 0
    """For a sparse X, int64: where each sample's numbers start in `X` and in `x_inputs`; 0 for a dense X."""
    x_inputs: int = 0
    """The inputs of these numbers, int32."""
    gather: int = 0
    """A routine of `sparse_products`, like the next two."""
    scatter: int = 0
    mask_nonzeros: int = 0
    masks: int = 0
    """`random_masks.MaskRecord` of the inputs of every layer; 0 without dropout."""
    seed: int = 0
    first_step: int = 0
    """Steps that were taken before this run."""
    parts: int = 0
    """(first sample, slots) of each batch, int64, and once more at the end; 0: batches of `batch_size`."""
    numbers: int = 0
    """The number of each sample of X that dropout's masks are drawn by, int64; 0: where it lies in X."""
    penalty_by_weight: int = 0
    """Whether a batch's L2 term is divided by its Σ w, else by its number of samples."""
    alpha: float = 0.0
    loss_factor: float = 1.0
    """Multiplies Σ w j in the losses that are returned."""
    mean_weight: float = 0.0
    """Divides the sums, times the number of samples; 0: the batch's own sum of weights divides them."""
    clip_norm: float = 0.0
    """The largest norm of the gradient; 0 for any."""
    beta_1: float = 0.0
    beta_2: float = 0.0
    scale: float = 0.0
    """The factor of sums in `add_slots`; written by compiled code."""


class WorkerRecord(NamedTuple):
    """A worker's own memory: addresses, then the tile of X that it reads."""

    workspace: int
    losses: int
    """The losses of a tile's samples, float64."""
    sources: int
    """Addresses of a tile's samples."""
    hashes: int
    """The hashes of a tile's samples, for dropout."""
    nonzeros: int
    """What a tile's samples hold of a sparse X: see `sparse_products`."""
    leader: int
    """Whether it is the thread that called the engine."""
    x: int = 0
    x_step: int = 0
    x_by_sample: int = 0
    """Whether BLAS finds a sample in each of its columns."""
    key: int = 0
    """The key of the step, for dropout."""


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


class Run:
    """A `RunRecord` in memory, and what is written of it for a run: two microseconds count in a small one.

    Parameters
    ----------
    state, done, stop, steps, slot_sums, sums, pieces, piece : int
        The fields that stay the same.
    """

    def __init__(self, **fields: int) -> None:
        self._values = list(RunRecord(**dict.fromkeys(_ALWAYS, 0) | fields))
        self._block = AlignedArray(size_of(RunRecord) // 8, "int64")
        self.address = self._block.address
        self._pack_all = partial(_format(RunRecord).pack_into, self._block.numbers.data, 0)
        first = _PLACES[_ALWAYS[0]]
        self._always = slice(first, first + len(_ALWAYS))
        self._pack = partial(struct.Struct(f"{len(_ALWAYS)}q").pack_into, self._block.numbers.data, 8 * first)
        self._pack_all(*self._values)
        self._more = False

    def write(self, always: tuple[int, ...], fields: dict[str, Any]) -> None:
        """The fields from `network` to `result`, and others that are not to have their defaults."""
        if fields or self._more:
            values = self._values.copy()
            values[self._always] = always
            for name, value in fields.items():
                values[_PLACES[name]] = value
            self._pack_all(*values)
            self._more = bool(fields)
        else:
            self._pack(*always)


_PLACES = {name: place for place, name in enumerate(RunRecord._fields)}
_ALWAYS = RunRecord._fields[RunRecord._fields.index("network") : RunRecord._fields.index("result") + 1]


def reader(kind: type) -> Any:
    """Compiled: the record of a kind at an address."""
    record = from_dtype(np.dtype(list(get_type_hints(kind).items()), align=True))

    @intrinsic
    def at(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(record))

        return record(address), codegen

    return at


layer_at, network_at, run_at, worker_at = (
    reader(kind) for kind in (LayerRecord, NetworkRecord, RunRecord, WorkerRecord)
)
LAYER_BYTES = size_of(LayerRecord)
