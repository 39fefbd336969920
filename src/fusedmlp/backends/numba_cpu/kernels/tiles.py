"""One tile of samples through the network, forward and backward, without leaving the cache. Compiled once per dtype.

A tile holds t samples. The activations of layer l are rows of a worker's workspace, a row per unit, samples contiguous:
for a unit, its weight and bias are scalars, the loop over samples takes a register at a time and sums stay in
registers. Rows are worked on to the end of a register, n >= t samples: what lies beyond the last one is finite and its
dZ is 0, so it adds nothing. `reference.trace` is the mathematics; each function names the line it fuses. Where things
lie is in `records`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.inputs import hash_samples, reach_X, samples_of
from fusedmlp.backends.numba_cpu.kernels.random_masks import MASK_BYTES, layer_key
from fusedmlp.backends.numba_cpu.machine.compilation import internal
from fusedmlp.backends.numba_cpu.machine.interruption import interrupted
from fusedmlp.backends.numba_cpu.machine.intrinsics import clear_bytes, gemm, load
from fusedmlp.backends.numba_cpu.machine.mathematics import one, zero
from fusedmlp.backends.numba_cpu.machine.records import LAYER_BYTES, layer_at, network_at, run_at, worker_at
from fusedmlp.backends.numba_cpu.machine.simd import call, item_bytes, lane_bytes, load_lanes, splat, store, sum_lanes


@internal
def layer_of(network, layer):
    """The `LayerRecord` of the weights W_{layer + 1}."""
    return layer_at(network.layer + layer * LAYER_BYTES)


@internal
def input_of(network, worker, layer):
    """(address, step, whether BLAS finds a sample in each of its columns): what a layer multiplies its weights with."""
    if layer == 0:
        return worker.x, worker.x_step, worker.x_by_sample != 0
    return worker.workspace + layer_of(network, layer - 1).Z, network.row, False


# Forward --------------------------------------------------------------------------------------------------------------


@internal
def forward_layer(like, network, run, worker, layer, t, n):
    """Z = Wᵀ A + b, A = f(Z) of a layer; before a single output also z_L = w_Lᵀ A, in the same sweep."""
    here, last, item, row = layer_of(network, layer), network.layers - 1, item_bytes(like), network.row
    flat, sparse = run.flat, layer == 0 and run.x_starts != 0
    x, x_step, by_sample = input_of(network, worker, layer)
    W, Z, width, n_in, n_out = flat + here.W, worker.workspace + here.Z, n * item, here.n_in, here.n_out
    z, w = np.int64(0), np.int64(0)
    if layer == last - 1 and layer_of(network, last).n_out == 1:
        z, w = worker.workspace + layer_of(network, last).Z, flat + layer_of(network, last).W
        clear_bytes(z, width)
    if sparse:
        call(run.gather, (worker.nonzeros, W, n_out, Z, row, n, worker.workspace + network.scratch))
    elif here.blocked:
        call(network.multiply, (W, item, n_out * item, n_out, x, x_step, Z, row, n_in, width, 0))
    else:
        samples = t if layer == 0 else n
        gemm(
            network.gemm, by_sample, True, samples, n_out, n_in, one(like), x, x_step // item, W, n_out, zero(like), Z,
            row // item,
        )  # fmt: skip
        for j in range(n_out):
            clear_bytes(Z + j * row + samples * item, (n - samples) * item)
    if layer < last:
        biases, key = flat + here.b if here.b >= 0 else 0, layer_key(worker.key, layer + 1)
        mask, slopes = run.masks + (layer + 1) * MASK_BYTES, Z + network.slopes
        call(network.forward, (Z, slopes, row, n_out, width, biases, w, z, worker.hashes, key, mask))


@internal
def add_biases(like, Z, row, rows, width, biases):
    """Z += b."""
    for k in range(rows):
        bias = load(like, biases + k * item_bytes(like))
        for z in range(Z + k * row, Z + k * row + width, lane_bytes(like)):
            store(load_lanes(like, z) + bias, z)


def forward_tile(like):
    """Z_1 ... A_{L-1} and the logits Z_{L-1} of t samples from `start` on."""

    def forward_tile(run_address, worker_address, start, t):
        run, worker = run_at(run_address), worker_at(worker_address)
        network = network_at(run.network)
        last, n = network.layers - 1, samples_of(like, t)
        if run.masks:
            hash_samples(run, worker, start, t, n)
        reach_X(like, network, run, worker, layer_of(network, 0).n_in, start, t)
        outputs = layer_of(network, last)
        for layer in range(network.layers):
            if network.long_tiles and interrupted(network, run, worker):
                return
            if layer == 0 or layer < last or outputs.n_out > 1:
                forward_layer(like, network, run, worker, layer, t, n)
        if outputs.b >= 0:
            Z, width = worker.workspace + outputs.Z, n * item_bytes(like)
            add_biases(like, Z, network.row, outputs.n_out, width, run.flat + outputs.b)

    return forward_tile


# Backward -------------------------------------------------------------------------------------------------------------


@internal
def clear_gradient(like, network, run, gradient):
    """Zeros where the first tile of a slot adds; the sums of blocked products it writes."""
    last = network.layers - 1
    for layer in range(network.layers):
        here = layer_of(network, layer)
        sparse = layer == 0 and run.x_starts != 0
        if not here.blocked or sparse or (layer == last and layer > 0 and here.n_out == 1):
            clear_bytes(gradient + here.W, here.n_in * here.n_out * item_bytes(like))
        if here.b >= 0:
            clear_bytes(gradient + here.b, here.n_out * item_bytes(like))


@internal
def add_weight_gradient(like, network, run, gradient, worker, layer, dZ, t, add):
    """dW = A_{l-1} dZᵀ, += where `add`, by blocks, by BLAS, or for a sparse X."""
    here, item, row = layer_of(network, layer), item_bytes(like), network.row
    x, x_step, by_sample = input_of(network, worker, layer)
    dW, n_in, n_out = gradient + here.W, here.n_in, here.n_out
    scratch = worker.workspace + network.scratch
    if layer == 0 and run.x_starts != 0:
        call(run.scatter, (worker.nonzeros, dZ, row, n_out, dW, t, worker.sources, scratch))
    elif here.blocked:
        places = network.multiply, x, x_step, n_in, dZ, row, n_out, dW, n_out * item, t, worker.sources, scratch, add
        call(network.samples, places)
    else:
        gemm(
            network.gemm, True, by_sample, n_out, n_in, t, one(like), dZ, row // item, x, x_step // item, one(like),
            dW, n_out,
        )  # fmt: skip


@internal
def error_products(like, network, above, W, dZ, D, n):
    """D = W dZ by BLAS."""
    step = network.row // item_bytes(like)
    gemm(
        network.gemm, False, False, n, above.n_in, above.n_out, one(like), dZ, step, W, above.n_out, zero(like), D, step
    )  # fmt: skip


@internal
def backward_layer(like, network, run, gradient, worker, layer, t, n, add):
    """dZ = W dZ_{l+1} ⊙ f'(A) of a hidden layer, db += Σ dZ, dW += x dZᵀ; with one output also dW_{L-1} += A dzᵀ."""
    here, above, item = layer_of(network, layer), layer_of(network, layer + 1), item_bytes(like)
    units, n_out, row, width = here.n_out, above.n_out, network.row, n * item
    A, dZ, D = worker.workspace + here.Z, worker.workspace + above.Z, worker.workspace + network.D
    W, dW = run.flat + above.W, gradient + above.W
    db = gradient + here.b if here.b >= 0 else 0
    if layer == network.layers - 2 and n_out == 1:
        call(network.backward, (A, A + network.slopes, 0, row, units, width, W, dZ, dW, db))
    else:
        if above.blocked:
            call(network.multiply, (W, n_out * item, item, units, dZ, row, D, row, n_out, width, 0))
        else:
            error_products(like, network, above, W, dZ, D, n)
        call(network.backward, (A, A + network.slopes, D, row, units, width, 0, 0, 0, db))
    add_weight_gradient(like, network, run, gradient, worker, layer, A, t, add)


def backward_tile(like):
    """dW_l += A_{l-1} dZ_lᵀ, db_l += Σ dZ_l, dZ_{l-1} = W_l dZ_l ⊙ f'(A_{l-1}), from dZ_{L-1} in the workspace.

    The sums of blocked products are written anew, unless `add`.
    """

    def backward_tile(run_address, worker_address, gradient, t, add):
        run, worker = run_at(run_address), worker_at(worker_address)
        network = network_at(run.network)
        last, n = network.layers - 1, samples_of(like, t)
        outputs = layer_of(network, last)
        dZ = worker.workspace + outputs.Z
        if outputs.b >= 0:
            add_row_sums(like, dZ, network.row, outputs.n_out, n, gradient + outputs.b)
        for layer in range(last, -1, -1):
            if network.long_tiles and interrupted(network, run, worker):
                return
            if layer < last:
                backward_layer(like, network, run, gradient, worker, layer, t, n, add)
            elif last == 0 or outputs.n_out > 1:
                add_weight_gradient(like, network, run, gradient, worker, last, dZ, t, add)

    return backward_tile


@internal
def add_row_sums(like, D, row, rows, n, sums):
    """sums += Σ over samples of each row of D."""
    item = item_bytes(like)
    for j in range(rows):
        total, at = splat(zero(like)), D + j * row
        for i in range(at, at + n * item, lane_bytes(like)):
            total = total + load_lanes(like, i)
        store(load(like, sums + j * item) + sum_lanes(total), sums + j * item)
