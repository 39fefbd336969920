"""Samples through the network tile by tile, and whole epochs with the optimizer's steps. Compiled, without the GIL.

Gradients are summed in slots: the samples of a batch are cut into a number of slots that depends on the batch and the
network alone, each slot has sums of its own, and the sums are added in the order of the slots. So the bits of a result
do not depend on how many workers share the slots, nor on who takes which.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from fusedmlp.backends.numba_cpu.compilation import internal, routine_address
from fusedmlp.backends.numba_cpu.inputs import copy_targets, samples_of
from fusedmlp.backends.numba_cpu.intrinsics import (
    atomic_add,
    atomic_load,
    atomic_store,
    copy_bytes,
    load,
    relax,
    swap_if,
    yield_processor,
)
from fusedmlp.backends.numba_cpu.records import network_at, run_at, worker_at
from fusedmlp.backends.numba_cpu.simd import call, item_bytes, lane_bytes, load_lanes, splat, store, sum_lanes
from fusedmlp.backends.numba_cpu.tiles import backward_tile, clear_gradient, forward_tile, layer_of
from fusedmlp.backends.numba_cpu.updates import NO_STEP

CHUNK = 2048
"""Parameters whose sums, L2 term and step are done together, in the first-level cache: 8 KiB of them in float32."""
SLOT_STEP = 16
"""Slots start at multiples of so many samples: only the last has a register that is not full."""
_SPINS_BEFORE_YIELD = 1000
_TASK_BITS = 32


class Passes(NamedTuple):
    """AddressCache for a dtype; `work` is the way in."""

    forward_tile: int
    backward_tile: int
    sum_samples: int
    predict: int
    work: int


@cache
def passes(dtype: str) -> Passes:
    """Compiled at the first call."""
    like = np.dtype(dtype).type(0)
    functions = (forward_tile(like), 4), (backward_tile(like), 5), (sum_samples(like), 5), (predict(like), 4), (work, 2)
    return Passes(*(routine_address(function, arguments) for function, arguments in functions))


# The samples of a slot, or of a part to predict -----------------------------------------------------------------------


@internal
def add_weighted(like, losses, weights, t, loss, total_weight):
    """(loss + Σ wᵢ jᵢ, total_weight + Σ wᵢ)."""
    for i in range(t):
        weight = np.float64(load(like, weights + i * item_bytes(like)))
        loss += weight * load(0.0, losses + 8 * i)
        total_weight += weight
    return loss, total_weight


@internal
def sum_of(losses, t):
    """Σ jᵢ, a register at a time: one sum would wait for itself."""
    whole = 8 * t // lane_bytes(0.0) * lane_bytes(0.0)
    total = splat(0.0)
    for j in range(losses, losses + whole, lane_bytes(0.0)):
        total = total + load_lanes(0.0, j)
    rest = sum_lanes(total)
    for j in range(losses + whole, losses + 8 * t, 8):
        rest += load(0.0, j)
    return rest


def sum_samples(like):
    """Σ wᵢ jᵢ and Σ wᵢ over samples start to stop, and Σ wᵢ ∂jᵢ/∂parameters, into what the run has for a slot."""

    def sum_samples(run_address, worker_address, slot, start, stop):
        run, worker = run_at(run_address), worker_at(worker_address)
        network = network_at(run.network)
        item, workspace, outputs = item_bytes(like), worker.workspace, layer_of(network, network.layers - 1)
        Z, Y, weights, step = workspace + outputs.Z, workspace + network.Y, workspace + network.weights, network.row // item
        gradient = run.slots + slot * network.n_parameters * item
        if run.result:
            clear_gradient(like, network, gradient)
        loss, total_weight = 0.0, 0.0
        for first in range(start, stop, network.tile):
            t = min(network.tile, stop - first)
            n = samples_of(like, t)
            copy_targets(like, network, run, worker, outputs.n_out, first, t, n)
            call(network.forward_tile, (run_address, worker_address, first, t))
            call(network.losses, (network.loss, Z, Y, outputs.n_out, step, worker.losses, workspace + network.scratch, n))
            if run.weights:
                loss, total_weight = add_weighted(like, worker.losses, weights, t, loss, total_weight)
            else:
                loss, total_weight = loss + sum_of(worker.losses, t), total_weight + t
            if run.result:
                call(network.activate, (network.loss, Z, outputs.n_out, step, n))
                weighted = t if run.weights else 0
                call(network.error, (network.loss, Z, Y, outputs.n_out, step, weights, weighted, t, n))
                call(network.backward_tile, (run_address, worker_address, gradient, t, np.int64(first > start)))
        store(loss, run.slot_sums + 16 * slot)
        store(total_weight, run.slot_sums + 16 * slot + 8)

    return sum_samples


def predict(like):
    """A_L of samples start to stop into the run's `out`."""

    def predict(run_address, worker_address, start, stop):
        run, worker = run_at(run_address), worker_at(worker_address)
        network = network_at(run.network)
        outputs, item = layer_of(network, network.layers - 1), item_bytes(like)
        Z = worker.workspace + outputs.Z
        for first in range(start, stop, network.tile):
            t = min(network.tile, stop - first)
            call(network.forward_tile, (run_address, worker_address, first, t))
            call(network.activate, (network.loss, Z, outputs.n_out, network.row // item, samples_of(like, t)))
            for k in range(outputs.n_out):
                copy_bytes(run.out + (k * run.samples + first) * item, Z + k * network.row, t * item)

    return predict


# After the sums of a batch --------------------------------------------------------------------------------------------


@internal
def end_of_sums(network, run, batch, slots, size):
    """J of a batch, and the factor that its sums take."""
    loss, total_weight = 0.0, 0.0
    for slot in range(slots):
        loss += load(0.0, run.slot_sums + 16 * slot)
        total_weight += load(0.0, run.slot_sums + 16 * slot + 8)
    run.scale = 1.0
    if network.mean:  # a batch whose weights are all 0 adds nothing
        run.scale = 1.0 / total_weight if total_weight > 0 else 0.0
    decay = 0.5 * run.alpha / size * run.squares if run.alpha > 0 else 0.0
    store(loss * run.scale + decay, run.losses + 8 * batch)


@internal
def update(network, run, run_address, batch, first, slots, size):
    """A chunk of the vector after a batch: add the slots and the L2 term, take the optimizer's step."""
    item = network.item
    last = min(network.n_parameters, first + CHUNK)
    count, at = last - first, first * item
    result = run.result + at
    call(network.add_slots, (run_address, run.slots + at, network.n_parameters, slots, result, count))
    if run.alpha > 0:
        for layer in range(network.layers):
            here = layer_of(network, layer)
            start = max(first, here.W // item)
            stop = min(last, here.W // item + here.n_in * here.n_out)
            if start < stop:
                at_W = start * item
                call(network.add_decay, (run_address, size, run.flat + at_W, run.result + at_W, stop - start))
    if run.kind != NO_STEP:
        moments = run.first_moment + at, run.second_moment + at
        call(network.step, (run_address, batch, run.flat + at, result, moments[0], moments[1], count))


# Sharing the work -----------------------------------------------------------------------------------------------------


@internal
def start_of(slot, slots, size):
    """Where a slot starts in a batch."""
    return size if slot == slots else size * slot // slots // SLOT_STEP * SLOT_STEP


@internal
def sum_task(network, run, run_address, worker_address, start, size, task, slots):
    """One of the tasks before a batch's update: a slot, or Σ‖W‖² for the L2 term."""
    if run.out:
        first = task * run.part
        call(network.predict, (run_address, worker_address, first, min(run.samples, first + run.part)))
    elif task < slots:
        first, last = start + start_of(task, slots, size), start + start_of(task + 1, slots, size)
        call(network.sum_samples, (run_address, worker_address, task, first, last))
    else:
        run.squares = 0.0
        for layer in range(network.layers):
            here = layer_of(network, layer)
            call(network.sum_squares, (run_address, run.flat + here.W, here.n_in * here.n_out))


def work(run_address, worker_address):
    """A worker's part in a run; any number of workers may come, at any time, and each stays to the end.

    The phases of a run are two a batch: sums, then updates. `state` holds the phase and the next of its tasks; who
    moves it from one task to the next has that task. Who finishes the last task of a phase begins the next phase. So a
    worker that is late, or on a slower core, does less, and nobody waits for one that has not come.
    """
    run = run_at(run_address)
    network = network_at(run.network)
    spins = 0
    while True:
        state = atomic_load(run.state)
        phase, task = state >> _TASK_BITS, state & ((1 << _TASK_BITS) - 1)
        batch, updating = phase >> 1, phase & 1
        if batch >= run.batches:
            return
        start = batch * run.batch_size
        size = min(run.batch_size, run.samples - start)
        slots = run.last_slots if batch == run.batches - 1 else run.batch_slots
        tasks = slots + np.int64(run.alpha > 0)
        if updating:
            tasks = run.pieces
        elif run.out:
            tasks = (run.samples + run.part - 1) // run.part
        if task >= tasks:
            relax()
            spins += 1
            if spins > _SPINS_BEFORE_YIELD and network.yielder:
                yield_processor(network.yielder)
            continue
        if not swap_if(run.state, state, state + 1):
            continue
        spins = 0
        if updating:
            end = min(network.n_parameters, (task + 1) * run.piece)
            for first in range(task * run.piece, end, CHUNK):
                update(network, run, run_address, batch, first, slots, size)
        else:
            sum_task(network, run, run_address, worker_address, start, size, task, slots)
        if atomic_add(run.done, 1) + 1 == tasks:
            atomic_store(run.done, 0)
            if not updating and not run.out:
                end_of_sums(network, run, batch, slots, size)
            skipped = 0 if updating or run.result else 1
            atomic_store(run.state, (phase + 1 + skipped) << _TASK_BITS)
