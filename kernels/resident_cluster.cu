// Whole epochs of networks with one hidden layer that are too large for one block: as resident.cu, in a cluster, sm_90.
//
//   z = Σ over blocks of W2ᵀ A + b2, of each block's own units; everything else as in resident.cu
//
//   jobs (gridDim.y,); plans (gridDim.x, ints), one for each block of a cluster; everything else as in resident.cu
//
// A block has some of the hidden units: their columns of W1, of b1, their rows of W2, and the moments and gradients of all
// these. The first one has b2. Every block works on all samples of a tile. It sends its part of the logits to the shared
// memory of all blocks, and each adds the parts in their order, so that all have the same logits and the same dz. There are
// two rooms for parts: a block may send those of the next tile while another one still reads. It cannot get further ahead,
// because it waits for the other block's parts. Sums for the L2 term and for clipping go the same way.
//
// Bytes moved, in elements: (n_in + n_out) m an epoch by all blocks of a cluster together, 2 (1 + moments) P a launch.
// Flops: 6 P m an epoch, and 4 P to 16 P a batch.

#include "common.cuh"
#include "clusters.cuh"
#include "resident_block.cuh"

constexpr int MOST_BLOCKS = 8;  // of a cluster on every GPU that has clusters

// Where parts arrive: of the logits in `Blocks::parts`, of sums here. resident_plan.py has the size.
struct Rooms {
    Mbarrier of_logits[2], of_sums[2];
    double sums[2][MOST_BLOCKS];
};

template <typename T>
struct Blocks {
    Rooms* rooms;
    T* parts;  // (2, blocks, samples n_out)
    int n_out;
    int exchanges = 0, sums = 0;  // that are done

    __device__ __forceinline__ static int rank() { return int(blockIdx.x); }
    __device__ __forceinline__ static int blocks() { return int(gridDim.x); }
    __device__ __forceinline__ static bool writes_losses() { return rank() == 0; }

    __device__ __forceinline__ void begin() const {
        if (threadIdx.x < 2) rooms->of_logits[threadIdx.x].begin(), rooms->of_sums[threadIdx.x].begin();
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }

    // z (samples, n_out) becomes the sum over the blocks.
    __device__ __forceinline__ void add_logits(T* z, int pitch, int samples) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, length = samples * n_out;
        Mbarrier* barrier = rooms->of_logits + exchanges % 2;
        T* room = parts + exchanges % 2 * (blocks() * length);
        if (threadIdx.x == 0) barrier->expect(blocks() * length * sizeof(T));
        if (warp < blocks())
            for (int i = lane; i < length; i += 32)
                send(room + rank() * length + i, z[i / n_out * pitch + i % n_out], barrier, warp);
        barrier->wait(exchanges / 2 % 2);
        __syncthreads();  // z has been read
        for (int i = threadIdx.x; i < length; i += THREADS) {
            T sum = 0;
            for (int block = 0; block < blocks(); ++block) sum += room[block * length + i];
            z[i / n_out * pitch + i % n_out] = sum;
        }
        exchanges += 1;
        __syncthreads();
    }

    // The sum over the blocks, which have the same number in all of their threads.
    __device__ __forceinline__ double add(double x) {
        Mbarrier* barrier = rooms->of_sums + sums % 2;
        double* room = rooms->sums[sums % 2];
        if (threadIdx.x == 0) barrier->expect(blocks() * sizeof(double));
        if (int(threadIdx.x) < blocks()) send(room + rank(), x, barrier, int(threadIdx.x));
        barrier->wait(sums / 2 % 2);
        double sum = 0;
        for (int block = 0; block < blocks(); ++block) sum += room[block];
        sums += 1;
        return sum;
    }
};

// Shared memory: the block's plan, then the numbers.
template <typename T, Arithmetic KIND>
__device__ __forceinline__ void resident_cluster(const Job<T>* jobs, const int* plans, int ints, int activation, int loss,
                                                 T most) {
    const Plan& plan = read_plan(plans + Blocks<T>::rank() * ints, ints);
    T* numbers = reinterpret_cast<T*>(shared_memory + plan.begin);
    const Blocks<T> blocks = {reinterpret_cast<Rooms*>(numbers + plan.rooms), numbers + plan.parts, plan.n_out};
    Trainer<T, KIND, Blocks<T>>(jobs[blockIdx.y], plan, numbers, blocks, activation, loss, most).train();
}

#ifndef CLUSTER  // -DCLUSTER=4: the blocks of a cluster
#define CLUSTER 2
#endif
#define RESIDENT_CLUSTER(T, KIND, t)                                                                                \
    extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1) resident_cluster_##t(  \
        const Job<T>* jobs, const int* plans, int ints, int activation, int loss, T most) {                         \
        resident_cluster<T, KIND>(jobs, plans, ints, activation, loss, most);                                       \
    }

#ifdef ONE  // -DONE=float,STRICT,float32: a network uses one of these kernels
#define JUST(...) RESIDENT_CLUSTER(__VA_ARGS__)
JUST(ONE)
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
RESIDENT_CLUSTER(float, STRICT, float32)
RESIDENT_CLUSTER(double, STRICT, float64)
RESIDENT_CLUSTER(float, TF32, tf32)
RESIDENT_CLUSTER(float, TF32X3, tf32x3)
#endif
