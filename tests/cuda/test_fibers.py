"""What the CPU makes of barriers, warps, shared memory and atomics: right kernels give right results, in every order of
the threads, and planted mistakes are noticed.
"""

from __future__ import annotations

import numpy as np
import pytest
from harness import fake_cupy

RIGHT = """
extern __shared__ __align__(16) unsigned char shared_memory[];
extern "C" __global__ void block_sum(const float* x, float* out, int n) {
    float* parts = reinterpret_cast<float*>(shared_memory);
    const int t = threadIdx.x + blockDim.x * threadIdx.y, threads = blockDim.x * blockDim.y;
    float sum = 0;
    for (int i = blockIdx.x * threads + t; i < n; i += gridDim.x * threads) sum += x[i];
    parts[t] = sum;
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (t < half) parts[t] += parts[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = parts[0];
}
extern "C" __global__ void shuffles(int* out) {
    const int lane = threadIdx.x;
    out[lane] = __shfl_xor_sync(0xffffffff, lane, 1);
    if (lane < 4) {
        __syncwarp(0xf);
        out[32 + lane] = __shfl_xor_sync(0xf, 10 * lane, 1);
    }
}
"""
# Each has one mistake; the launch says which.
WRONG = """
extern "C" __global__ void barrier_in_a_branch(float* x) {
    if (threadIdx.x < 16) __syncthreads();
    x[threadIdx.x] = 1;
}
extern "C" __global__ void early_return(float* x) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    x[threadIdx.x] = 1;
}
extern "C" __global__ void half_a_warp(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
    __syncthreads();
}
extern "C" __global__ void not_in_its_mask(float* x) {
    x[threadIdx.x] = __shfl_xor_sync(0xf, x[threadIdx.x], 1);
}
extern "C" __global__ void beyond_shared_memory(float* x) {
    reinterpret_cast<float*>(shared_memory)[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void misaligned(float* x) {
    struct alignas(16) Four { float x[4]; };
    *reinterpret_cast<Four*>(x + 1) = Four{};
}
extern "C" __global__ void stray(float* x) {
    x[blockIdx.x * blockDim.x + threadIdx.x] = 0;
}
extern "C" __global__ void overflows(float* x) { x[0] = int(x[1] + 65536) * 65536; }
"""
# Races, and the same with what orders them.
RACES = """
extern "C" __global__ void no_barrier(float* x) {
    float* own = reinterpret_cast<float*>(shared_memory);
    own[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = own[(threadIdx.x + 1) % blockDim.x];
}
extern "C" __global__ void uninitialised(float* x) { x[0] = reinterpret_cast<float*>(shared_memory)[3]; }
// A lane hands its number to the one in front, in its own warp, behind a shuffle, half of the lanes, all of them.
__device__ void hand_on(float* x, int how) {
    float* own = reinterpret_cast<float*>(shared_memory);
    const unsigned lane = threadIdx.x;
    own[lane] = x[lane];
    if (how == 1) x[lane] = __shfl_xor_sync(0xffffffff, x[lane], 1);
    if (how == 2 && lane < 16) __syncwarp(0xffff);
    if (how == 2 && lane >= 16) __syncwarp(0xffff0000);
    if (how == 3) __syncwarp();
    x[lane] = own[(lane + 1) % (how == 2 ? 17 : 32)];
}
extern "C" __global__ void shuffle_for_a_barrier(float* x) { hand_on(x, 1); }
extern "C" __global__ void half_of_the_lanes(float* x) { hand_on(x, 2); }
extern "C" __global__ void all_lanes(float* x) { hand_on(x, 3); }
extern "C" __global__ void same_number(float* x) { reinterpret_cast<float*>(shared_memory)[0] = x[0]; }
// Each warp hands its number to the next one, again and again, in one room; with a barrier behind it, or without.
__device__ void hand_round(int* out, int rounds, bool meet) {
    int* room = reinterpret_cast<int*>(shared_memory);
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int own = warp;
    for (int i = 0; i < rounds; ++i) {
        if (threadIdx.x % 32 == 0) room[warp] = own;
        __syncthreads();
        own = room[(warp + 1) % warps];
        __syncwarp();
        if (meet) __syncthreads();
    }
    if (threadIdx.x % 32 == 0) out[warp] = own;
}
extern "C" __global__ void met(int* out, int rounds) { hand_round(out, rounds, true); }
extern "C" __global__ void raced(int* out, int rounds) { hand_round(out, rounds, false); }
"""


@pytest.fixture
def kernels(compiler, cupy):
    return cupy.RawModule(code=RIGHT + WRONG + RACES).get_function


def zeros(n, dtype):
    return fake_cupy.copied(np.zeros(n, dtype))


@pytest.mark.parametrize("block", [(256,), (32, 8), (1, 64), (2,)])
def test_sums_of_blocks(kernels, thread_order, block):
    x = np.random.default_rng(0).integers(0, 100, 5000).astype(np.float32)
    threads = int(np.prod(block))
    out = zeros(5, np.float32)
    kernels("block_sum")((5,), block, (fake_cupy.copied(x), out, np.int32(5000)), shared_mem=4 * threads)
    owner = np.arange(5000) // threads % 5
    assert out.get().tolist() == [x[owner == b].sum() for b in range(5)]


def test_shuffles(kernels, thread_order):
    out = zeros(36, np.int32)
    kernels("shuffles")((1,), (32,), (out,))
    assert out.get().tolist() == [*(np.arange(32) ^ 1), 10, 0, 30, 20]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("barrier_in_a_branch", "a barrier that not all threads of the block reach"),
        ("early_return", "a barrier that not all threads of the block reach"),
        ("half_a_warp", "a function of a warp that not all lanes of its mask reach"),
        ("not_in_its_mask", "a mask that it is not in"),
        ("beyond_shared_memory", "a write to shared memory beyond what the launch asked for"),
        ("misaligned", "a misaligned access"),
        ("stray", "wrote out of bounds"),
        ("overflows", "a multiplication that overflows"),
    ],
)
def test_mistakes_are_reported(kernels, thread_order, name, message):
    for _ in range(2):  # and the next launch is not the worse for it
        with pytest.raises(AssertionError, match=f"{name}.*{message}"):
            kernels(name)((2,), (32,), (zeros(60 if name == "stray" else 64, np.float32),), shared_mem=124)


def test_what_nobody_wrote_is_nan(kernels, thread_order):
    x = fake_cupy.copied(np.arange(32, dtype=np.float32))
    kernels("uninitialised")((1,), (32,), (x,), shared_mem=128)
    assert np.isnan(x.get()).any()


@pytest.mark.parametrize("name", ["no_barrier", "shuffle_for_a_barrier", "half_of_the_lanes", "same_number"])
def test_races_are_reported(kernels, thread_order, name):
    x = fake_cupy.copied(np.arange(32, dtype=np.float32))
    with pytest.raises(AssertionError, match=f"{name}: a race: thread .* byte .* of shared memory, which thread"):
        kernels(name)((1,), (32,), (x,), shared_mem=128)


def test_lanes_that_meet_are_in_order(kernels, thread_order):
    x = fake_cupy.copied(np.arange(32, dtype=np.float32))
    kernels("all_lanes")((1,), (32,), (x,), shared_mem=128)
    assert x.get().tolist() == [*range(1, 32), 0]


def test_a_barrier_that_is_missing_between_rounds(kernels, thread_order):
    """Each warp hands its number on, round after round: it may not overwrite what another one still reads."""
    out = zeros(8, np.int32)
    kernels("met")((1,), (256,), (out, np.int32(20)), shared_mem=32)
    assert out.get().tolist() == [(warp + 20) % 8 for warp in range(8)]
    with pytest.raises(
        AssertionError, match=r"raced: a race: thread \d+ writes byte \d+ of shared memory, which .* has read"
    ):
        kernels("raced")((1,), (256,), (out, np.int32(20)), shared_mem=32)


@pytest.mark.parametrize("arguments", [(15, np.float32), (np.int32(15),), (None, None), ()])
def test_arguments_of_the_wrong_kind(kernels, arguments):
    with pytest.raises(AssertionError, match="argument"):
        kernels("stray")((1,), (32,), [zeros(32, np.float32) if x is None else x for x in arguments])


STATIC = """
extern "C" __global__ void turned(const float* x, float* out, int meet) {
    __shared__ float tile[32][2];
    __shared__ int ready;
    if (threadIdx.x == 0) ready = meet;
    tile[threadIdx.x][0] = x[threadIdx.x];
    if (meet) __syncthreads();
    out[threadIdx.x] = ready ? tile[31 - threadIdx.x][0] : tile[threadIdx.x][1];
}
"""


def test_static_variables_in_shared_memory(cupy, compiler, thread_order):
    """One for all threads of a block, NaN when it begins, and watched for races like the rest."""
    kernel = cupy.RawModule(code=STATIC).get_function("turned")
    x, out = fake_cupy.copied(np.arange(32, dtype=np.float32)), zeros(32, np.float32)
    kernel((2,), (32,), (x, out, np.int32(1)))
    assert out.get().tolist() == [*range(31, -1, -1)]
    with pytest.raises(AssertionError, match="turned: a race: "):
        kernel((2,), (32,), (x, out, np.int32(0)))


def test_static_variables_that_are_not_understood(cupy, compiler):
    code = 'extern "C" __global__ void f() { __shared__ float a[3], b[4]; }'
    with pytest.raises(ValueError, match=r"one static variable .* got __shared__ float a\[3\], b\[4\]"):
        cupy.RawModule(code=code).get_function("f")
