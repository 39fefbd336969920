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

from fusedmlp.backends.numba_cpu.kernels import _OPTIONS, _one, compiled, internal, summing
from fusedmlp.backends.numba_cpu.primitives import atomic_add, atomic_load, yield_processor
from fusedmlp.backends.numba_cpu.tiles import (
    activate,
    activate_and_sum,
    add_row_sums,
    back_through_one_output,
    back_through_products,
    error_products,
    layer_products,
    output,
    output_error,
    pack_rows,
    pack_samples,
    per_sample,
    short_outer_products,
    short_products,
    weight_products,
)

# How a tile of X is reached: in place with samples or rows contiguous, or packed.
SAMPLES_IN_PLACE, ROWS_IN_PLACE, ROWS_PACKED, SAMPLES_PACKED = range(4)
NO_STEP, SGD_STEP, MOMENTUM_STEP, NESTEROV_STEP, ADAM_STEP = range(5)
_SPINS_BEFORE_YIELD = 2000
_PIECE = 128


def _number(like, value):
    """`value` in the type of `like`."""


def _number_32(like, value):
    return np.float32(value)


def _number_64(like, value):
    return np.float64(value)


@overload(_number, jit_options=_OPTIONS)
def _select_number(like, value):
    return {types.float32: _number_32, types.float64: _number_64}.get(like)


@internal
def matrix(workspace, offset, rows, T):
    """`rows` rows of T numbers in a workspace."""
    return workspace[offset : offset + rows * T].reshape(rows, T)


@internal
def weights_of(flat, sizes, offsets, layer):
    """W_{layer+1} (n_in, n_out), a view of a flat vector."""
    n_in, n_out = sizes[layer], sizes[layer + 1]
    return flat[offsets[layer, 0] : offsets[layer, 0] + n_in * n_out].reshape(n_in, n_out)


@internal
def biases_of(flat, sizes, offsets, layer):
    """b_{layer+1} (n_out,), a view of a flat vector; empty where the network has none."""
    if offsets[layer, 1] < 0:
        return flat[:0]
    return flat[offsets[layer, 1] : offsets[layer, 1] + sizes[layer + 1]]


@internal
def reach_X(workspace, buffers, T, n1, x, order, start, t):
    """(address, whether transposed, step) of a tile of X for BLAS; it is packed first where it must be."""
    address, row_step, sample_step, how = x
    itemsize = workspace.itemsize
    packed = workspace[buffers[-1] : buffers[-1] + n1 * T]
    if how == ROWS_PACKED:
        pack_rows(packed.reshape(n1, T), address, row_step, sample_step, order, start, t)
        return packed.ctypes.data, False, T
    if how == SAMPLES_PACKED:
        pack_samples(packed.reshape(T, n1), address, row_step, sample_step, order, start, t)
        return packed.ctypes.data, True, n1
    at = address + start * sample_step
    return (at, True, sample_step // itemsize) if how == SAMPLES_IN_PLACE else (at, False, row_step // itemsize)


@internal
def forward_tile(plan, flat, workspace, x, order, start, t):
    """Z_1 ... A_{L-1} and the logits Z_L into the workspace: Z = Wᵀ A + b, A = f(Z); how X was reached."""
    tag, _, sizes, offsets, buffers, T, routine = plan
    last, n1 = sizes.size - 2, sizes[0]
    one_output = sizes[-1] == 1 and last > 0
    reached = reach_X(workspace, buffers, T, n1, x, order, start, t)
    for layer in range(last + 1):
        W, b = weights_of(flat, sizes, offsets, layer), biases_of(flat, sizes, offsets, layer)
        Z = matrix(workspace, buffers[layer], sizes[layer + 1], T)
        if layer == 0:
            if x[3] == ROWS_PACKED:
                short_products(W, matrix(workspace, buffers[-1], n1, T), Z, t)
            else:
                layer_products(routine, W, reached, Z, t)
        elif layer < last or not one_output:
            A = matrix(workspace, buffers[layer - 1], sizes[layer], T)
            layer_products(routine, W, (A.ctypes.data, False, T), Z, t)
        if layer == last:
            for k in range(b.size):
                z = Z[k, :t]
                for i in range(z.size):
                    z[i] += b[k]
        elif layer == last - 1 and one_output:
            w = weights_of(flat, sizes, offsets, last)[:, 0]
            activate_and_sum(tag, Z, b, w, workspace[buffers[last] : buffers[last] + T], t)
        else:
            activate(tag, Z, b, t)
    return reached


@internal
def backward_tile(plan, flat, gradient, workspace, few_inputs, reached, t):
    """dW_l += A_{l-1} dZ_lᵀ, db_l += Σ dZ_l, dZ_{l-1} = W_l dZ_l ⊙ f'(A_{l-1}), from dZ_L in the workspace."""
    tag, _, sizes, offsets, buffers, T, routine = plan
    last, n1 = sizes.size - 2, sizes[0]
    dZ = matrix(workspace, buffers[last], sizes[-1], T)
    db = biases_of(gradient, sizes, offsets, last)
    if db.size:
        add_row_sums(dZ, db, t)
    for layer in range(last, -1, -1):
        W, dW = weights_of(flat, sizes, offsets, layer), weights_of(gradient, sizes, offsets, layer)
        if layer == 0:
            if few_inputs:
                short_outer_products(matrix(workspace, buffers[-1], n1, T), dZ, dW, t)
            else:
                weight_products(routine, reached, dZ, dW, t)
            return
        A = matrix(workspace, buffers[layer - 1], sizes[layer], T)
        db = biases_of(gradient, sizes, offsets, layer - 1)
        if layer == last and sizes[-1] == 1:
            back_through_one_output(tag, A, W[:, 0], dZ[0], dW[:, 0], db, t)
        else:
            weight_products(routine, (A.ctypes.data, False, T), dZ, dW, t)
            D = matrix(workspace, buffers[-2], sizes[layer], T)
            error_products(routine, W, dZ, D, t)
            back_through_products(tag, A, D, db, t)
        dZ = A


@internal
def sum_samples(plan, want_gradient, flat, gradient, arrays, data, start, stop):
    """(Σ wᵢ jᵢ, Σ wᵢ) over samples start to stop, and Σ wᵢ ∂jᵢ/∂parameters into `gradient`."""
    code, sizes, buffers, T = plan[1], plan[2], plan[4], plan[5]
    workspace, j = arrays
    x, y, weights, order = data
    if want_gradient:
        for i in range(gradient.size):
            gradient[i] = 0
    nL, loss, total_weight = sizes[-1], 0.0, 0.0
    Y = matrix(workspace, buffers[-4], nL, T)
    Z = matrix(workspace, buffers[sizes.size - 2], nL, T)
    for first in range(start, stop, T):
        t = min(T, stop - first)
        pack_rows(Y, y[0], y[1], y[2], order, first, t)
        w = weights[:0]
        if weights.size:
            w = workspace[buffers[-3] : buffers[-3] + t]
            for i in range(t):
                w[i] = weights[order[first + i] if order.size else first + i]
        reached = forward_tile(plan, flat, workspace, x, order, first, t)
        per_sample(code, Z, Y, j, t)
        for i in range(t):
            weight = np.float64(w[i]) if w.size else 1.0
            loss += weight * j[i]
            total_weight += weight
        if want_gradient:
            output(code, Z, t)
            output_error(code, Z, Y, w, t)
            backward_tile(plan, flat, gradient, workspace, x[3] == ROWS_PACKED, reached, t)
    return loss, total_weight


@compiled
def predict(plan, flat, workspace, x, order, out, start, stop):
    """A_L of samples start to stop into out (nL, m)."""
    code, sizes, buffers, T = plan[1], plan[2], plan[4], plan[5]
    Z = matrix(workspace, buffers[sizes.size - 2], sizes[-1], T)
    for first in range(start, stop, T):
        t = min(T, stop - first)
        forward_tile(plan, flat, workspace, x, order, first, t)
        output(code, Z, t)
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
    one = _one(theta[0])
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
            theta[i] -= rate_ * m[i] / (one * np.sqrt(v[i]) + epsilon_)


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
    if start == stop:
        return
    add_slots(slot_gradients, slots, result, start, stop, scale)
    if alpha > 0:
        add_decay(flat, result, sizes, offsets, start, stop, alpha / size)
    kind, rate, beta_1, beta_2, epsilon = optimizer
    if kind == ADAM_STEP:
        rate *= np.sqrt(1 - beta_2**steps) / (1 - beta_1**steps)
    if kind != NO_STEP:
        m, v = moments[0][start:stop], moments[1][start:stop]
        step(kind, flat[start:stop], result[start:stop], m, v, rate, beta_1, beta_2, epsilon)


@compiled
def run_batches(
    plan, team, batches, alpha, optimizer, flat, result, moments, slot_gradients, slot_sums, arrays, data, losses
):
    """One worker's share of a run over batches: its slots of each batch, then its piece of the parameter vector.

    The workers meet after the slots, when all sums are there, and after the step, when all parameters are new.

    Parameters
    ----------
    plan : (tag, loss code, sizes, offsets, buffers, T, address of gemm)
    team : (me, workers, counter to meet at, address of sched_yield)
    batches : (samples, batch size, most slots, samples worth a slot, whether J is a mean, whether to go backward, steps
        taken before)
    optimizer : (kind, learning rate, beta_1, beta_2, epsilon)
    arrays : (workspace, losses of a tile), this worker's own
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
