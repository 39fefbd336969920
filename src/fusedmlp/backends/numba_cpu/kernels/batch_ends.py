"""What follows the sums of a batch: their total, the gradient phase, the L2 term, the norm, the optimizer's step.

The vector of parameters is cut into pieces, and these into chunks that fit the first-level cache.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.tiles import layer_of
from fusedmlp.backends.numba_cpu.kernels.updates import NO_STEP
from fusedmlp.backends.numba_cpu.machine.compilation import internal
from fusedmlp.backends.numba_cpu.machine.interruption import call_python
from fusedmlp.backends.numba_cpu.machine.intrinsics import load
from fusedmlp.backends.numba_cpu.machine.simd import call, store

CHUNK = 2048
"""Parameters whose sums, L2 term and step are done together, in the first-level cache: 8 KiB of them in float32."""
SUMS, GATHER, PHASE, SCALE, STEP = range(5)
"""The parts of a batch: the sums of the slots; their total; the gradient phase; factor, L2 term and norm; the step.

Without a gradient phase or a norm, the step does the second and the fourth for a chunk of parameters at a time.
"""
# Where `RunRecord.sums` has what.
_LOSS, _WEIGHT, _COUNT, SQUARES, _L2, NORMS = 0, 8, 16, 24, 32, 40
_CLIP_EPSILON = 1e-6


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
    decay = 0.5 * l2 * load(0.0, run.sums + SQUARES) if run.alpha > 0 else 0.0
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
    result, moments = run.result + at, (run.first_moment + at, run.second_moment + at)
    if part == STEP and slots == 1 and run.kind != NO_STEP and not (run.separate or run.alpha > 0 or run.decays):
        call(network.step, (run_address, batch, run.flat + at, run.slots + at, moments[0], moments[1], count, 0))
        return
    if part == GATHER or not run.separate:
        call(network.add_slots, (run_address, run.slots + at, network.n_parameters, slots, result, count))
    elif part == SCALE or run.scale != 1.0:
        call(network.add_slots, (run_address, result, network.n_parameters, 1, result, count))
    if run.alpha > 0 and part == (SCALE if run.separate else STEP):
        add_to_weights(network, run, run.sums + _L2, run.flat, run.result, first, last)
    if part == STEP and run.kind != NO_STEP:
        if run.decays:
            add_to_weights(network, run, run.decays + 8 * batch, run.flat, run.flat, first, last)
        call(network.step, (run_address, batch, run.flat + at, result, moments[0], moments[1], count, 1))


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
