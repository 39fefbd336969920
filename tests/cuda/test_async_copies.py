"""Asynchronous copies on the CPU: right kernels give right results, and planted mistakes are noticed."""

from __future__ import annotations

import numpy as np
import pytest
from harness import emulator, fake_cupy

from fusedmlp.backends.cupy import cuda_tables, kernel_sources

KERNELS = (
    cuda_tables.header()
    + "".join(
        kernel_sources.folder().joinpath(name).read_text(encoding="utf-8").replace('#include "', "// ")
        for name in ("common.cuh", "async_copies.cuh")
    )
    + """
#define UNUSED [[maybe_unused]]
#define KERNEL(name) extern "C" __global__ void name(UNUSED const float* x, UNUSED float* out, UNUSED int rounds)
__device__ float* shared() { return reinterpret_cast<float*>(shared_memory); }
__device__ float* room(int stage) { return shared() + (stage * THREADS + threadIdx.x) * 4; }
__device__ void start(const float* x, int stage, int round, int rounds) {
    if (round < rounds) start_copy<4>(room(stage), x + (round * THREADS + threadIdx.x) * 4, 4);
}
__device__ void write(float* out, int stage, int round) {
    for (int j = 0; j < 4; ++j) out[(round * THREADS + threadIdx.x) * 4 + j] = room(stage)[j];
}
// out = x through a ring of three stages.
template <int LATER, int AHEAD>
__device__ void through_a_ring(const float* x, float* out, int rounds) {
    for (int round = 0; round < AHEAD; ++round) {
        start(x, round, round, rounds);
        commit_copies();
    }
    for (int round = 0; round < rounds; ++round) {
        start(x, (round + AHEAD) % 3, round + AHEAD, rounds);
        commit_copies();
        wait_for_copies<LATER>();
        write(out, round % 3, round);
    }
    wait_for_copies();
}
KERNEL(ring) { through_a_ring<2, 2>(x, out, rounds); }
KERNEL(counts) {  // only 1 of 4, then 0 of 4
    start_copy<4>(room(0), x + 4 * threadIdx.x, 1);
    start_copy<4>(room(1), x, 0);
    wait_for_copies();
    write(out, 0, 0);
    write(out, 1, 1);
}
KERNEL(of_others) {
    start(x, 0, 0, rounds);
    wait_for_copies();
    __syncthreads();
    for (int j = 0; j < 4; ++j) out[4 * threadIdx.x + j] = shared()[4 * (THREADS - 1 - threadIdx.x) + j];
}
// Each of the following has one mistake.
KERNEL(waits_for_too_few) { through_a_ring<3, 2>(x, out, rounds); }
KERNEL(copies_into_the_stage_in_use) { through_a_ring<2, 3>(x, out, rounds); }
KERNEL(no_barrier) {
    start(x, 0, 0, rounds);
    wait_for_copies();
    for (int j = 0; j < 4; ++j) out[4 * threadIdx.x + j] = shared()[4 * (THREADS - 1 - threadIdx.x) + j];
}
KERNEL(no_group) {
    start(x, 0, 0, rounds);
    wait_for_copies<1>();
    write(out, 0, 0);
}
KERNEL(does_not_wait) {
    start(x, 0, 0, rounds);
    commit_copies();
    write(out, 1, 0);
}
KERNEL(misaligned) { start_copy<4>(room(0), x + 1, 4); }
"""
)


@pytest.fixture(scope="module")
def module(compiler):
    return emulator.compile_source(KERNELS)


def launch(module, name, rounds=7):
    x = np.random.default_rng(0).normal(size=(rounds, 256, 4)).astype(np.float32)
    out = fake_cupy.copied(np.full_like(x, np.nan))
    arguments = (fake_cupy.copied(x), out, np.int32(rounds))
    module.get_function(name)((1,), (256,), arguments, shared_mem=3 * 16 * 256)
    out.memory.check(name)
    return x, out.get()


def test_copies_arrive(module, thread_order):
    x, got = launch(module, "ring")
    assert np.array_equal(got, x)
    x, got = launch(module, "of_others")
    assert np.array_equal(got[0], x[0, ::-1])


def test_what_is_not_read_arrives_as_zero(module):
    x, got = launch(module, "counts")
    assert np.array_equal(got[0], x[0] * (1, 0, 0, 0))
    assert np.all(got[1] == 0)


@pytest.mark.parametrize("name", ["waits_for_too_few", "copies_into_the_stage_in_use"])
def test_numbers_are_wrong_after_a_mistake(module, thread_order, name):
    x, got = launch(module, name)
    assert np.isnan(got).any() or not np.array_equal(got, x)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_barrier", "a race: thread"),
        ("no_group", "a thread that ends before what it copies has arrived"),
        ("does_not_wait", "a thread that ends before what it copies has arrived"),
        ("misaligned", "a misaligned access"),
    ],
)
def test_mistakes_are_reported(module, thread_order, name, message):
    for _ in range(2):  # and the next launch is not the worse for it
        with pytest.raises(AssertionError, match=f"{name}: .*{message}"):
            launch(module, name)
