"""Samples through the network tile by tile, and whole epochs with the optimizer's steps. Compiled, without the GIL.

Gradients are summed in slots: the samples of a batch are cut into a number of slots that depends on the batch and the
network alone, each slot has sums of its own, and the sums are added in the order of the slots. So the bits of a result
do not depend on how many workers share the slots.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from fusedmlp.backends.numba_cpu.compilation import compiled, internal
from fusedmlp.backends.numba_cpu.primitives import atomic_add, atomic_load, load, where, yield_processor
from fusedmlp.backends.numba_cpu.simd import call
from fusedmlp.backends.numba_cpu.tiles import (
    backward_tile,
    clear_gradient,
    forward_tile,
    matrix,
    samples_of,
    weights_of,
)
from fusedmlp.backends.numba_cpu.updates import BETA_1, BETA_2, EPSILON, NO_STEP, RATE, SCALE

_SPINS_BEFORE_YIELD = 2000
_PIECE = 128
# Parameters whose sums, decay and step are done together, while they are in the first-level cache: 8 KiB in float32.
_CHUNK = 2048


@internal
def copy_targets(Y, y, order, start, t, n):
    """Y[k, i] = y[k, sample i], for any strides (bytes); the last sample's up to n."""
    address, row_step, sample_step = y
    for k in range(Y.shape[0]):
        for i in range(t):
            sample = order[start + i] if order.size else start + i
            Y[k, i] = load(Y[0, 0], address + k * row_step + sample * sample_step)
        for i in range(t, n):
            Y[k, i] = Y[k, t - 1]


@internal
def sum_samples(plan, want_gradient, flat, gradient, arrays, data, start, stop):
    """(Σ wᵢ jᵢ, Σ wᵢ) over samples start to stop, and Σ wᵢ ∂jᵢ/∂parameters into `gradient`."""
    (_, _, _, _, _, losses, activate, error, _, _), code, sizes, _, buffers, T, step, _, _ = plan
    workspace, j = arrays[0], arrays[1]
    x, y, weights, order = data
    if want_gradient:
        clear_gradient(plan, gradient)
    nL, loss, total_weight = sizes[-1], 0.0, 0.0
    Y = matrix(workspace, buffers[-5], nL, step)
    Z = matrix(workspace, buffers[sizes.size - 2], nL, step)
    scratch = matrix(workspace, buffers[-3], 2, step)
    for first in range(start, stop, T):
        t = min(T, stop - first)
        n = samples_of(workspace[0], t)
        copy_targets(Y, y, order, first, t, n)
        w = weights[:0]
        if weights.size:
            w = workspace[buffers[-4] : buffers[-4] + t]
            for i in range(t):
                w[i] = weights[order[first + i] if order.size else first + i]
        reached = forward_tile(plan, flat, arrays, x, order, first, t)
        call(losses, (code, where(Z), where(Y), nL, step, where(j), where(scratch), n))
        for i in range(t):
            weight = np.float64(w[i]) if w.size else 1.0
            loss += weight * j[i]
            total_weight += weight
        if want_gradient:
            call(activate, (code, where(Z), nL, step, n))
            call(error, (code, where(Z), where(Y), nL, step, where(w), w.size, t, n))
            backward_tile(plan, flat, gradient, arrays, reached, t, first > start)
    return loss, total_weight


@compiled
def predict(plan, flat, arrays, x, order, out, start, stop):
    """A_L of samples start to stop into out (nL, m)."""
    (_, _, _, _, _, _, activate, _, _, _), code, sizes, _, buffers, T, step, _, _ = plan
    workspace = arrays[0]
    Z = matrix(workspace, buffers[sizes.size - 2], sizes[-1], step)
    for first in range(start, stop, T):
        t = min(T, stop - first)
        forward_tile(plan, flat, arrays, x, order, first, t)
        call(activate, (code, where(Z), sizes[-1], step, samples_of(workspace[0], t)))
        for k in range(Z.shape[0]):
            for i in range(t):
                out[k, first + i] = Z[k, i]


# After a batch -------------------------------------------------------------------------------------------------------


@internal
def add_decay(flat, gradient, sizes, offsets, start, stop, factor):
    """gradient += factor · W, for the weights among elements start to stop."""
    for layer in range(sizes.size - 1):
        first = max(start, offsets[layer, 0])
        last = min(stop, offsets[layer, 0] + sizes[layer] * sizes[layer + 1])
        if first < last:
            W, dW = flat[first:last], gradient[first:last]
            for i in range(W.size):
                dW[i] += factor * W[i]


@internal
def sum_of_squares(x):
    """Σ x² in float64, in eight sums that are added in order."""
    sums = np.zeros(8)
    for start in range(0, x.size - 7, 8):
        part = x[start : start + 8]
        for k in range(8):
            sums[k] += np.float64(part[k]) * np.float64(part[k])
    total = 0.0
    for k in range(8):
        total += sums[k]
    for i in range(x.size // 8 * 8, x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@internal
def wait_for_all(counter, workers, meeting, yielder):
    """Return when every worker has come to this meeting; what each wrote before is then visible to all."""
    if workers == 1:
        return
    atomic_add(counter, 1)
    spins = 0
    while atomic_load(counter) < meeting * workers:
        spins += 1
        if spins > _SPINS_BEFORE_YIELD and yielder:
            yield_processor(yielder)


@compiled
def slots_of(samples, most_slots, slot_samples):
    """Slots of a batch: a power of two, so that two workers, or four, have as many each."""
    slots = 1
    while 2 * slots <= most_slots and 2 * slots * slot_samples <= samples:
        slots *= 2
    return slots


@internal
def weight_decay_loss(flat, sizes, offsets, factor):
    """½ · factor · Σ‖W‖²."""
    total = 0.0
    for layer in range(sizes.size - 1):
        total += sum_of_squares(weights_of(flat, sizes, offsets, layer).reshape(-1))
    return 0.5 * factor * total


@internal
def finish_batch(plan, team, alpha, optimizer, rate, flat, result, moments, slot_gradients, slots, scale, size):
    """A worker's piece of the vector after a batch: add the slots and the L2 term, take the optimizer's step."""
    sizes, offsets = plan[2], plan[3]
    me, workers = team[0], team[1]
    # Pieces start at multiples of what a vectorised loop takes at a time: the elements of its scalar rest, which may
    # round otherwise, are then the same ones whatever the number of workers.
    blocks = (flat.size + _PIECE - 1) // _PIECE
    start = min(flat.size, blocks * me // workers * _PIECE)
    stop = min(flat.size, blocks * (me + 1) // workers * _PIECE)
    add_slots, step = plan[0][8], plan[0][9]
    kind, beta_1, beta_2, epsilon = optimizer
    settings = np.empty(5)
    settings[SCALE], settings[RATE], settings[BETA_1], settings[BETA_2] = scale, rate, beta_1, beta_2
    settings[EPSILON] = epsilon
    for first in range(start, stop, _CHUNK):
        last = min(stop, first + _CHUNK)
        count, at = last - first, first * flat.itemsize
        slot, row = where(slot_gradients) + at, slot_gradients.shape[1]
        call(add_slots, (slot, row, slots, where(result) + at, count, where(settings)))
        if alpha > 0:
            add_decay(flat, result, sizes, offsets, first, last, alpha / size)
        if kind != NO_STEP:
            m, v = where(moments[0]) + at, where(moments[1]) + at
            call(step, (kind, where(flat) + at, where(result) + at, m, v, count, where(settings)))


@compiled
def run_batches(
    plan, team, batches, alpha, optimizer, rates, flat, result, moments, slot_gradients, slot_sums, arrays, data, losses
):
    """One worker's share of a run over batches: its slots of each batch, then its piece of the parameter vector.

    The workers meet after the slots, when all sums are there, and after the step, when all parameters are new.

    Parameters
    ----------
    plan : (addresses of sweeps, `Products`, `Outputs` and `Updates`, loss code, sizes, offsets, buffers,
        T, numbers from one row of the workspace to the next, address of gemm, whether each layer's products are blocked
        over registers)
    team : (me, workers, counter to meet at, address of sched_yield)
    batches : (samples, batch size, most slots, samples worth a slot, whether J is a mean, whether to go backward)
    optimizer : (kind, beta_1, beta_2, epsilon)
    rates : learning rate of each batch's step, with Adam's corrections in it
    arrays : (workspace, losses of a tile, addresses of its samples), this worker's own
    data : (how X is reached, how Y is, sample weights or none, order or none)
    losses : J of each batch, written
    """
    me, workers, counter, yielder = team
    samples, batch_size, most_slots, slot_samples, mean, backward = batches
    meeting = 0
    for batch in range(losses.size):
        start = batch * batch_size
        size = min(batch_size, samples - start)
        slots = slots_of(size, most_slots, slot_samples)
        for slot in range(slots * me // workers, slots * (me + 1) // workers):
            first, last = start + size * slot // slots, start + size * (slot + 1) // slots
            sums = sum_samples(plan, backward, flat, slot_gradients[slot], arrays, data, first, last)
            slot_sums[slot, 0], slot_sums[slot, 1] = sums
        decay = weight_decay_loss(flat, plan[2], plan[3], alpha / size) if me == 0 and alpha > 0 else 0.0
        meeting += 1
        wait_for_all(counter, workers, meeting, yielder)
        loss, total_weight = 0.0, 0.0
        for slot in range(slots):
            loss += slot_sums[slot, 0]
            total_weight += slot_sums[slot, 1]
        scale = 1.0
        if mean:  # a batch whose weights are all 0 adds nothing
            scale = 1.0 / total_weight if total_weight > 0 else 0.0
        if me == 0:
            losses[batch] = loss * scale + decay
        if backward:
            finish_batch(
                plan,
                team,
                alpha,
                optimizer,
                rates[batch],
                flat,
                result,
                moments,
                slot_gradients,
                slots,
                scale,
                size,
            )
        meeting += 1
        wait_for_all(counter, workers, meeting, yielder)
