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

from fusedmlp.backends.numba_cpu.kernels.batch_ends import (
    GATHER,
    PHASE,
    SCALE,
    SQUARES,
    STEP,
    SUMS,
    apply_phase,
    clip,
    end_of_loss,
    end_of_sums,
    update_task,
)
from fusedmlp.backends.numba_cpu.kernels.elementwise import holds_not_finite
from fusedmlp.backends.numba_cpu.kernels.inputs import copy_targets, is_valid, pack_rows, samples_of
from fusedmlp.backends.numba_cpu.kernels.loss_kernels import add_weighted, sum_of
from fusedmlp.backends.numba_cpu.kernels.random_masks import step_key
from fusedmlp.backends.numba_cpu.kernels.tiles import backward_tile, clear_gradient, forward_tile, layer_of
from fusedmlp.backends.numba_cpu.machine.buffers import LINE_BYTES
from fusedmlp.backends.numba_cpu.machine.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.machine.interruption import (
    STOP_AT_ONCE,
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

SLOT_STEP = 16
"""Slots start at multiples of so many samples: only the last has a register that is not full."""
_SPINS_BEFORE_YIELD = 1000
_FETCHED_BYTES = 128 * 1024
"""Larger vectors of parameters would take the place of a tile in the cache."""
# A number in memory says what is to be done: batch, part of a batch, and the part's next task, from the high bits on.
_TASK_BITS, _PART_BITS = 32, 3


class Passes(NamedTuple):
    """Addresses for a dtype; `work` is the way in."""

    forward_tile: int
    backward_tile: int
    sum_samples: int
    predict: int
    pack_rows: int
    work: int


@cache
def passes(dtype: str) -> Passes:
    """Compiled at the first call."""
    like = np.dtype(dtype).type(0)
    functions = (
        (forward_tile(like), 4),
        (backward_tile(like), 5),
        (sum_samples(like), 6),
        (predict(like), 4),
        (pack_rows(like), 6),
        (work, 2),
    )
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
        squares = run.sums + SQUARES
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
