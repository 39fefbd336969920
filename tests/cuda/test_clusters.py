"""Clusters of blocks on the CPU: right kernels give right results, and planted mistakes are noticed."""

from __future__ import annotations

import numpy as np
import pytest
from harness import fake_cupy

from fusedmlp.backends.cupy import kernel_sources

HEAD = kernel_sources.folder().joinpath("clusters.cuh").read_text(encoding="utf-8") + (
    """
extern __shared__ __align__(16) unsigned char shared_memory[];
#define KERNEL(name) extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) name(float* x, int rounds)
__device__ Mbarrier* barriers() { return reinterpret_cast<Mbarrier*>(shared_memory); }
__device__ float* room() { return reinterpret_cast<float*>(shared_memory + 16); }
__device__ int next_block() { return (blockIdx.x + 1) % gridDim.x; }
__device__ void begin() {
    if (threadIdx.x < 2) barriers()[threadIdx.x].begin();
    cluster_arrive();
    cluster_wait();
}
// Every thread's x becomes the sum over the cluster, round after round.
__device__ void sum(float* x, int rounds, int rooms) {
    const int blocks = gridDim.x, t = threadIdx.x, at = (blockIdx.y * blocks + blockIdx.x) * blockDim.x + t;
    for (int i = 0; i < rounds; ++i) {
        float* own = room() + (t + i % rooms * blockDim.x) * blocks;
        Mbarrier* barrier = barriers() + i % 2;
        if (t == 0) barrier->expect(4 * blocks * blockDim.x);
        for (int b = 0; b < blocks; ++b) send(own + blockIdx.x, x[at], barrier, b);
        barrier->wait(i / 2 % 2);
        float sum = 0;
        for (int b = 0; b < blocks; ++b) sum += own[b];
        x[at] = sum;
        __syncthreads();
    }
}
"""
)
KERNELS = HEAD + (
    """
KERNEL(sums) {
    begin();
    sum(x, rounds, 2);
}
// Each of the following has one mistake.
KERNEL(no_beginning) {
    if (threadIdx.x == 0) barriers()[0].begin();
    send(room(), x[rounds], barriers(), next_block());
    barriers()[0].expect(4);
    barriers()[0].wait(0);
}
KERNEL(does_not_wait_at_the_end) {
    begin();
    if (threadIdx.x == 0) send(room(), x[rounds], barriers(), blockIdx.x);
}
KERNEL(one_stays_away) {
    const bool stays = blockIdx.x == 1 && threadIdx.x == 3;
    cluster_arrive();
    cluster_wait();
    if (!stays) cluster_arrive();
    if (!stays) cluster_wait();
    x[rounds] = 0;
}
KERNEL(beyond_the_cluster) {
    begin();
    send(room(), x[rounds], barriers(), gridDim.x);
}
KERNEL(not_shared) {
    begin();
    send(x, x[rounds], barriers(), blockIdx.x);
}
KERNEL(expects_too_much) {
    begin();
    if (threadIdx.x == 0) barriers()[0].expect(8);
    if (threadIdx.x == 0) send(room(), x[rounds], barriers(), next_block());
    barriers()[0].wait(0);
}
KERNEL(reads_too_early) {
    begin();
    if (threadIdx.x == 0) barriers()[0].expect(4);
    if (threadIdx.x == 0) send(room(), x[rounds], barriers(), next_block());
    if (threadIdx.x == 1) x[blockIdx.x] = room()[0];
    barriers()[0].wait(0);
}
KERNEL(one_room) {  // for all rounds: a block may send those of the next before this one has read
    begin();
    sum(x, rounds, 1);
}
"""
)


@pytest.fixture
def launch(compiler, cupy):
    """Run a kernel in clusters of `blocks`, `ranges` of them; the array afterwards."""

    def launched(name, x, *, rounds=0, blocks=3, ranges=1, threads=32, shared_mem=128):
        module = cupy.RawModule(code=KERNELS, options=(f"-DCLUSTER={blocks}",))
        x = fake_cupy.copied(np.asarray(x, np.float32))
        module.get_function(name)((blocks, ranges), (threads,), (x, np.int32(rounds)), shared_mem=shared_mem)
        return x.get()

    return launched


@pytest.mark.parametrize("blocks", [1, 2, 5, 8])
def test_sums_of_clusters(launch, thread_order, blocks):
    x = np.random.default_rng(0).integers(0, 9, (3, blocks, 40))
    got = launch("sums", x, rounds=3, blocks=blocks, ranges=3, threads=40, shared_mem=16 + 2 * 4 * 40 * blocks)
    assert np.array_equal(got, np.broadcast_to(x.sum(axis=1, keepdims=True) * blocks**2, x.shape))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_beginning", "shared memory of a block that does not run"),
        ("does_not_wait_at_the_end", "a block that ends before all has come"),
        ("one_stays_away", "a barrier of a cluster that not all its threads reach"),
        ("beyond_the_cluster", "a block that the cluster does not have"),
        ("not_shared", "a place that is not in shared memory"),
        ("expects_too_much", "an mbarrier that waits in vain"),
    ],
)
def test_mistakes_are_reported(launch, thread_order, name, message):
    for _ in range(2):  # and the next launch is not the worse for it
        with pytest.raises(AssertionError, match=f"{name}: .*{message}"):
            launch(name, np.zeros(96), shared_mem=16 + 1024)


def test_one_room_for_all_rounds_is_a_race(launch, thread_order):
    with pytest.raises(AssertionError, match="one_room: a race: .* of shared memory, which .* has"):
        launch("one_room", np.arange(64), rounds=3, blocks=2, shared_mem=16 + 4 * 64)


def test_who_does_not_wait_for_a_message_is_in_a_race_with_it(launch, thread_order):
    with pytest.raises(AssertionError, match="reads_too_early: a race: "):
        launch("reads_too_early", np.zeros(64), blocks=2, shared_mem=16 + 4 * 64)
