"""Samples through the network tile by tile, and whole epochs with the optimizer's steps. Compiled, without the GIL.

Gradients are summed in slots: the samples of a batch are cut into a number of slots that depends on the batch and the
network alone, each slot has sums of its own, and the sums are added in the order of the slots. So the bits of a result
do not depend on how many workers share the slots.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from fusedmlp.backends.numba_cpu.compilation import OPTIONS, compiled, internal, summing
from fusedmlp.backends.numba_cpu.mathematics import one
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

NO_STEP, SGD_STEP, MOMENTUM_STEP, NESTEROV_STEP, ADAM_STEP = range(5)
_SPINS_BEFORE_YIELD = 2000
_PIECE = 128
# Parameters whose sums, decay and step are done together, while they are in the first-level cache: 8 KiB in float32.
_CHUNK = 2048


def _number(like, value):
    """`value` in the type of `like`."""


def _number_32(like, value):
    return np.float32(value)


def _number_64(like, value):
    return np.float64(value)


@overload(_number, jit_options=OPTIONS)
def _select_number(like, value):
    return {types.float32: _number_32, types.float64: _number_64}.get(like)


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
    (_, _, _, _, _, losses, activate, error), code, sizes, _, buffers, T, step, _, _ = plan
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
    (_, _, _, _, _, _, activate, _), code, sizes, _, buffers, T, step, _, _ = plan
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
def add_slots(slot_gradients, slots, result, start, stop, scale):
    """result = scale · Σ over slots, in the order of the slots; elements start to stop."""
    total = result[start:stop]
    part = slot_gradients[0, start:stop]
    for i in range(total.size):
        total[i] = part[i]
    for slot in range(1, slots):
        part = slot_gradients[slot, start:stop]
        for i in range(total.size):
            total[i] += part[i]
    factor = _number(slot_gradients[0, 0], scale)
    for i in range(total.size):
        total[i] *= factor


@internal
def add_decay(flat, gradient, sizes, offsets, start, stop, decay):
    """gradient += decay · W, for the weights among elements start to stop."""
    factor = _number(flat[0], decay)
    for layer in range(sizes.size - 1):
        first = max(start, offsets[layer, 0])
        last = min(stop, offsets[layer, 0] + sizes[layer] * sizes[layer + 1])
        if first < last:
            W, dW = flat[first:last], gradient[first:last]
            for i in range(W.size):
                dW[i] += factor * W[i]


@summing
def sum_of_squares(x):
    """Σ x² in float64."""
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@internal
def step(kind, theta, g, m, v, rate, beta_1, beta_2, epsilon):
    """One optimizer step on a piece of the flat vector: `optimizers.SGD.update` and `optimizers.Adam.update`."""
    rate_, beta_1_, beta_2_ = _number(theta[0], rate), _number(theta[0], beta_1), _number(theta[0], beta_2)
    unit = one(theta[0])
    if kind == SGD_STEP:
        for i in range(theta.size):
            theta[i] -= rate_ * g[i]
    elif kind == MOMENTUM_STEP:
        for i in range(theta.size):
            m[i] = beta_1_ * m[i] - rate_ * g[i]
            theta[i] += m[i]
    elif kind == NESTEROV_STEP:
        for i in range(theta.size):
            m[i] = beta_1_ * m[i] - rate_ * g[i]
            theta[i] += beta_1_ * m[i] - rate_ * g[i]
    elif kind == ADAM_STEP:
        rest_1, rest_2 = _number(theta[0], 1 - beta_1), _number(theta[0], 1 - beta_2)
        epsilon_ = _number(theta[0], epsilon)
        for i in range(theta.size):
            m[i] = beta_1_ * m[i] + rest_1 * g[i]
            v[i] = beta_2_ * v[i] + rest_2 * (g[i] * g[i])
            theta[i] -= rate_ * m[i] / (unit * np.sqrt(v[i]) + epsilon_)


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
def finish_batch(plan, team, alpha, optimizer, steps, flat, result, moments, slot_gradients, slots, scale, size):
    """A worker's piece of the vector after a batch: add the slots and the L2 term, take the optimizer's step."""
    sizes, offsets = plan[2], plan[3]
    me, workers = team[0], team[1]
    # Pieces start at multiples of what a vectorised loop takes at a time: the elements of its scalar rest, which may
    # round otherwise, are then the same ones whatever the number of workers.
    blocks = (flat.size + _PIECE - 1) // _PIECE
    start = min(flat.size, blocks * me // workers * _PIECE)
    stop = min(flat.size, blocks * (me + 1) // workers * _PIECE)
    kind, rate, beta_1, beta_2, epsilon = optimizer
    if kind == ADAM_STEP:
        rate *= np.sqrt(1 - beta_2**steps) / (1 - beta_1**steps)
    for first in range(start, stop, _CHUNK):
        last = min(stop, first + _CHUNK)
        add_slots(slot_gradients, slots, result, first, last, scale)
        if alpha > 0:
            add_decay(flat, result, sizes, offsets, first, last, alpha / size)
        if kind != NO_STEP:
            m, v = moments[0][first:last], moments[1][first:last]
            step(kind, flat[first:last], result[first:last], m, v, rate, beta_1, beta_2, epsilon)


@compiled
def run_batches(
    plan, team, batches, alpha, optimizer, flat, result, moments, slot_gradients, slot_sums, arrays, data, losses
):
    """One worker's share of a run over batches: its slots of each batch, then its piece of the parameter vector.

    The workers meet after the slots, when all sums are there, and after the step, when all parameters are new.

    Parameters
    ----------
    plan : (addresses of sweeps, `products.Products` and `outputs.Outputs`, loss code, sizes, offsets, buffers,
        T, numbers from one row of the workspace to the next, address of gemm, whether each layer's products are blocked
        over registers)
    team : (me, workers, counter to meet at, address of sched_yield)
    batches : (samples, batch size, most slots, samples worth a slot, whether J is a mean, whether to go backward, steps
        taken before)
    optimizer : (kind, learning rate, beta_1, beta_2, epsilon)
    arrays : (workspace, losses of a tile, addresses of its samples), this worker's own
    data : (how X is reached, how Y is, sample weights or none, order or none)
    losses : J of each batch, written
    """
    me, workers, counter, yielder = team
    samples, batch_size, most_slots, slot_samples, mean, backward, steps = batches
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
                steps + batch + 1,
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
