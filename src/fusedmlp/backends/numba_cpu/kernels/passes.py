"""Samples through the network tile by tile, and whole epochs with the optimizer's steps. Compiled, without the GIL.

Gradients are summed in slots: the samples of a batch are cut into a number of slots that depends on the batch and the
network alone, each slot has sums of its own, and the sums are added in the order of the slots. So the bits of a result
do not depend on how many workers share the slots, nor on which worker takes which slot.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.elementwise import holds_not_finite
from fusedmlp.backends.numba_cpu.kernels.inputs import copy_targets, is_valid, samples_of
from fusedmlp.backends.numba_cpu.kernels.loss_kernels import add_weighted, sum_of
from fusedmlp.backends.numba_cpu.kernels.random_masks import step_key
from fusedmlp.backends.numba_cpu.kernels.tiles import backward_tile, clear_gradient, forward_tile, layer_of
from fusedmlp.backends.numba_cpu.kernels.updates import NO_STEP
from fusedmlp.backends.numba_cpu.machine.buffers import LINE_BYTES
from fusedmlp.backends.numba_cpu.machine.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.machine.interruption import (
    STOP_AT_ONCE,
    call_python,
    flush_subnormals,
    interrupted,
    set_mode,
)
from fusedmlp.backends.numba_cpu.machine.intrinsics import (
    INTEGER,
    atomic_add,
    atomic_load,
    atomic_store,
    call_function,
    clear_bytes,
    copy_bytes,
    load,
    prefetch,
    relax,
    swap_if,
)
from fusedmlp.backends.numba_cpu.machine.records import network_at, run_at, worker_at
from fusedmlp.backends.numba_cpu.machine.simd import call, item_bytes, store

CHUNK = 2048
"""Parameters whose sums, L2 term and step are done together, in the first-level cache: 8 KiB of them in float32."""
SLOT_STEP = 16
"""Slots start at multiples of so many samples: only the last has a register that is not full."""
_SPINS_BEFORE_YIELD = 1000
_FETCHED_BYTES = 128 * 1024
"""Larger vectors of parameters would take the place of a tile in the cache."""
# A number in memory says what is to be done: batch, part of a batch, and the part's next task, from the high bits on.
_TASK_BITS, _PART_BITS = 32, 3
SUMS, GATHER, PHASE, SCALE, STEP = range(5)
"""The parts of a batch: the sums of the slots; their total; the gradient phase; factor, L2 term and norm; the step.

Without a gradient phase or a norm, the step does the second and the fourth for a chunk of parameters at a time.
"""
# Where `RunRecord.sums` has what.
_LOSS, _WEIGHT, _COUNT, _SQUARES, _L2, NORMS = 0, 8, 16, 24, 32, 40
_CLIP_EPSILON = 1e-6


class Passes(NamedTuple):
    """Addresses for a dtype; `work` is the way in."""

    forward_tile: int
    backward_tile: int
    sum_samples: int
    predict: int
    work: int


@cache
def passes(dtype: str) -> Passes:
    """Compiled at the first call."""
    like = np.dtype(dtype).type(0)
    functions = (forward_tile(like), 4), (backward_tile(like), 5), (sum_samples(like), 6), (predict(like), 4), (work, 2)
    return Passes(*(routine_address(function, arguments) for function, arguments in functions))


# The samples of a slot, or of a part to predict -----------------------------------------------------------------------


@internal
def end_invalid(run):
    """End the run, and say that X or Y is invalid."""
    atomic_store(run.invalid, 1)
    atomic_store(run.stop, STOP_AT_ONCE)


def sum_samples(like):
    """Σ wᵢ jᵢ and Σ wᵢ over samples start to stop, and Σ wᵢ ∂jᵢ/∂parameters, into what the run has for a slot.

    The run ends where it is to see that X and Y are valid, and they are not.
    """

    def sum_samples(run_address, worker_address, slot, start, stop, batch):
        run, worker = run_at(run_address), worker_at(worker_address)
        network = network_at(run.network)
        item, workspace, outputs = item_bytes(like), worker.workspace, layer_of(network, network.layers - 1)
        Z, Y, row = workspace + outputs.Z, workspace + network.Y, network.row
        weights, n_in = workspace + network.weights if run.weights else 0, layer_of(network, 0).n_in
        gradient = run.slots + slot * network.n_parameters * item
        if run.result and start < stop:
            clear_gradient(like, network, run, gradient)
        elif run.result:  # the samples of the batch lie in other processes: no tile writes anything
            clear_bytes(gradient, network.n_parameters * item)
        if run.masks:
            worker.key = step_key(run.seed, run.first_step + batch)
        loss, total_weight = 0.0, 0.0
        for first in range(start, stop, network.tile):
            if interrupted(network, run, worker):
                return
            t = min(network.tile, stop - first)
            n = samples_of(like, t)
            copy_targets(like, network, run, worker, outputs.n_out, first, t, n)
            call(network.forward_tile, (run_address, worker_address, first, t))
            if run.invalid and not is_valid(like, network, worker, n_in, outputs.n_out, t, n):
                end_invalid(run)
                return
            call(network.losses, (Z, Y, outputs.n_out, row, worker.losses, workspace + network.scratch, n, run.network))
            if weights:
                loss, total_weight = add_weighted(like, worker.losses, weights, t, loss, total_weight)
            else:
                loss, total_weight = loss + sum_of(worker.losses, t), total_weight + t
            if run.result:
                call(network.activate, (Z, outputs.n_out, row, n))
                call(network.error, (Z, Y, outputs.n_out, row, weights, t, n, run.network))
                call(network.backward_tile, (run_address, worker_address, gradient, t, np.int64(first > start)))
        store(loss, run.slot_sums + 16 * slot)
        store(total_weight, run.slot_sums + 16 * slot + 8)

    return sum_samples


def predict(like):
    """A_{L-1} of samples start to stop into the run's `out`; the run ends where it is to see that X is finite."""

    def predict(run_address, worker_address, start, stop):
        run, worker = run_at(run_address), worker_at(worker_address)
        network = network_at(run.network)
        outputs, item = layer_of(network, network.layers - 1), item_bytes(like)
        Z, n_in = worker.workspace + outputs.Z, layer_of(network, 0).n_in
        for first in range(start, stop, network.tile):
            if interrupted(network, run, worker):
                return
            t = min(network.tile, stop - first)
            n = samples_of(like, t)
            call(network.forward_tile, (run_address, worker_address, first, t))
            if run.invalid and holds_not_finite(like, worker.x, n_in, n, worker.x_step, item):
                end_invalid(run)
                return
            call(network.activate, (Z, outputs.n_out, network.row, n))
            for k in range(outputs.n_out):
                copy_bytes(run.out + (k * run.samples + first) * item, Z + k * network.row, t * item)

    return predict


# After the sums of a batch --------------------------------------------------------------------------------------------


@internal
def end_of_sums(run, slots, size):
    """Σ w j, Σ w and the number of samples of a batch, from its slots."""
    loss, total_weight = 0.0, 0.0
    for slot in range(slots):
        loss += load(0.0, run.slot_sums + 16 * slot)
        total_weight += load(0.0, run.slot_sums + 16 * slot + 8)
    store(loss, run.sums + _LOSS)
    store(total_weight, run.sums + _WEIGHT)
    store(np.float64(size), run.sums + _COUNT)
    run.scale = 1.0


@internal
def end_of_loss(network, run, batch):
    """J of a batch, and the factors of its sums and of the L2 term."""
    count, total_weight = load(0.0, run.sums + _COUNT), load(0.0, run.sums + _WEIGHT)
    divisor = 1.0
    if network.mean:
        divisor = run.mean_weight * count if run.mean_weight > 0 else total_weight
    run.scale = 1.0 / divisor if divisor > 0 else 0.0  # a batch whose weights are all 0 adds nothing
    penalized = total_weight if run.penalty_by_weight else count
    l2 = run.alpha / penalized if run.alpha > 0 and penalized > 0 else 0.0
    store(l2, run.sums + _L2)
    decay = 0.5 * l2 * load(0.0, run.sums + _SQUARES) if run.alpha > 0 else 0.0
    store(load(0.0, run.sums + _LOSS) * (run.scale * run.loss_factor) + decay, run.losses + 8 * batch)


@internal
def clip(run):
    """The factor that brings the gradient to the largest norm allowed."""
    squares = 0.0
    for piece in range(run.pieces):
        squares += load(0.0, run.sums + NORMS + 8 * piece)
    coefficient = run.clip_norm / (np.sqrt(squares) + _CLIP_EPSILON)
    run.scale = 1.0 if coefficient > 1.0 else coefficient  # NaN stays


@internal
def add_to_weights(network, run, factor, source, target, first, last):
    """target += factor · source, where parameters first to last are weights."""
    for layer in range(network.layers):
        here = layer_of(network, layer)
        start = max(first, here.W // network.item)
        stop = min(last, here.W // network.item + here.n_in * here.n_out)
        if start < stop:
            at = start * network.item
            call(network.add_scaled, (factor, source + at, target + at, stop - start))


@internal
def update(network, run, run_address, batch, first, slots, part):
    """A part of a batch for a chunk of the vector: the sum of the slots, the L2 term, the optimizer's step."""
    item = network.item
    last = min(network.n_parameters, first + CHUNK)
    count, at = last - first, first * item
    result = run.result + at
    if part == GATHER or not run.separate:
        call(network.add_slots, (run_address, run.slots + at, network.n_parameters, slots, result, count))
    elif part == SCALE or run.scale != 1.0:
        call(network.add_slots, (run_address, result, network.n_parameters, 1, result, count))
    if run.alpha > 0 and part == (SCALE if run.separate else STEP):
        add_to_weights(network, run, run.sums + _L2, run.flat, run.result, first, last)
    if part == STEP and run.kind != NO_STEP:
        if run.decays:
            add_to_weights(network, run, run.decays + 8 * batch, run.flat, run.flat, first, last)
        moments = run.first_moment + at, run.second_moment + at
        call(network.step, (run_address, batch, run.flat + at, result, moments[0], moments[1], count))


@internal
def update_task(network, run, run_address, batch, slots, part, piece):
    """A part of a batch for a piece of the vector, chunk by chunk."""
    norm = run.sums + NORMS + 8 * piece
    if part == SCALE:
        store(0.0, norm)
    end = min(network.n_parameters, (piece + 1) * run.piece)
    for first in range(piece * run.piece, end, CHUNK):
        update(network, run, run_address, batch, first, slots, part)
        if part == SCALE and run.clip_norm > 0:
            count = min(network.n_parameters, first + CHUNK) - first
            call(network.sum_squares, (norm, run.result + first * network.item, count))


@internal
def apply_phase(network, run):
    """The gradient phase, with the sums of a batch."""
    if run.phase_callback:
        call_python(run.phase_callback)
    else:
        call(run.phase, (run.result, network.n_parameters, run.sums, run.phase_context))


# Sharing the work -----------------------------------------------------------------------------------------------------


@internal
def start_of(slot, slots, size):
    """The first sample of a slot, from the start of the batch."""
    return size if slot == slots else size * slot // slots // SLOT_STEP * SLOT_STEP


@internal
def batch_of(run, batch):
    """The first sample of a batch, the number of its samples, and that of its slots."""
    if run.parts:
        part = run.parts + 16 * batch
        start = load(INTEGER, part)
        return start, load(INTEGER, part + 16) - start, load(INTEGER, part + 8)
    start = batch * run.batch_size
    slots = run.last_slots if batch == run.batches - 1 else run.batch_slots
    return start, min(run.batch_size, run.samples - start), slots


@internal
def fetch_parameters(network, run):
    """Bring the parameters into this core's cache: another one has updated a part of them.

    Products read a column of W at a time, a line for each number, and would wait for each line.
    """
    n_bytes = network.n_parameters * network.item
    if n_bytes <= _FETCHED_BYTES:
        for line in range(run.flat, run.flat + n_bytes, LINE_BYTES):
            prefetch(line)


@internal
def sum_task(network, run, run_address, worker_address, batch, start, size, task, slots):
    """One of the tasks before a batch's update: a slot, or Σ‖W‖² for the L2 term."""
    if run.out:
        first = task * run.part
        call(network.predict, (run_address, worker_address, first, min(run.samples, first + run.part)))
    elif task < slots:
        first, last = start + start_of(task, slots, size), start + start_of(task + 1, slots, size)
        if slots > 1:
            fetch_parameters(network, run)
        call(network.sum_samples, (run_address, worker_address, task, first, last, batch))
    else:
        squares = run.sums + _SQUARES
        store(0.0, squares)
        for layer in range(network.layers):
            here = layer_of(network, layer)
            call(network.sum_squares, (squares, run.flat + here.W, here.n_in * here.n_out))


@internal
def number_of_tasks(run, part, slots):
    """Tasks of a part of a batch."""
    if part == PHASE:
        return 1
    if part != SUMS:
        return run.pieces
    return (run.samples + run.part - 1) // run.part if run.out else slots + np.int64(run.alpha > 0)


@internal
def next_part(network, run, batch, part, slots, size):
    """Finish a part of a batch whose tasks are all done; returns the (batch, part) that comes next."""
    if part == SUMS:
        if run.out:
            return batch + 1, SUMS
        end_of_sums(run, slots, size)
        if run.result and run.separate:
            return batch, GATHER
        end_of_loss(network, run, batch)
        return (batch, STEP) if run.result else (batch + 1, SUMS)
    if part == GATHER and (run.phase or run.phase_callback):
        return batch, PHASE
    if part in (GATHER, PHASE):
        end_of_loss(network, run, batch)
        return batch, SCALE
    if part == SCALE:
        run.scale = 1.0
        if run.clip_norm > 0:
            clip(run)
        return batch, STEP
    store(batch + 1, run.steps)
    return batch + 1, SUMS


@internal
def state_of(batch, part):
    """The number that says: the first task of a part."""
    return ((batch << _PART_BITS) + part) << _TASK_BITS


@internal
def wait(network, run, worker, spins):
    """Look again later."""
    relax()
    if spins > _SPINS_BEFORE_YIELD:
        interrupted(network, run, worker)
        if network.yielder:
            call_function(network.yielder)


@internal
def share(run_address, worker_address):
    """See `work`."""
    run, worker = run_at(run_address), worker_at(worker_address)
    network = network_at(run.network)
    spins = 0
    while True:
        state = atomic_load(run.state)
        phase, task = state >> _TASK_BITS, state & ((1 << _TASK_BITS) - 1)
        batch, part = phase >> _PART_BITS, phase & ((1 << _PART_BITS) - 1)
        if batch >= run.batches:
            return
        stop = atomic_load(run.stop)
        if stop and (part == SUMS or stop == STOP_AT_ONCE):
            swap_if(run.state, state, state_of(run.batches, SUMS))
            continue
        start, size, slots = batch_of(run, batch)
        tasks = number_of_tasks(run, part, slots)
        if task >= tasks or (part == PHASE and not worker.leader):
            spins += 1
            wait(network, run, worker, spins)
            continue
        if not swap_if(run.state, state, state + 1):
            continue
        spins = 0
        if part == SUMS:
            sum_task(network, run, run_address, worker_address, batch, start, size, task, slots)
        elif part == PHASE:
            apply_phase(network, run)
        else:
            update_task(network, run, run_address, batch, slots, part, task)
        stop = atomic_load(run.stop)
        if stop and (part == SUMS or stop == STOP_AT_ONCE):
            continue  # what this was may not be complete
        if atomic_add(run.done, 1) + 1 == tasks:
            atomic_store(run.done, 0)
            following = next_part(network, run, batch, part, slots, size)
            swap_if(run.state, state_of(batch, part) + tasks, state_of(following[0], following[1]))


def work(run_address, worker_address):
    """A worker's part in a run; any number of workers may come, at any time, and each stays to the end.

    The number at `state` holds the part of a batch that is being done, and the next of its tasks; whoever advances it
    owns that task. Whoever completes the last task of a part begins the next one. So a worker that is late, or on a
    slower core, does less, and no worker waits for one that has not come. A gradient phase is left to the leader.

    A run that is to stop ends at the next tile. Numbers below the normal ones count as 0 meanwhile, in products, sums
    and parameters alike: a weight, an input or a moment that small (1.2e-38 in float32) is a 0.
    """
    mode = flush_subnormals()
    share(run_address, worker_address)
    set_mode(mode)
