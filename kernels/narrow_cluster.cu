// The whole step of a narrow network, as narrow_step.cu, for more units than a block has: in a cluster of blocks, sm_90.
//
//   Z = W1ᵀ X + b1;  A = f(Z);  z = W2ᵀ A + b2;  A_{L-1} and dz from z by the loss (losses.cuh);
//   dZ = (W2 dz) ⊙ f'(A);  dW1 = X dZᵀ;  db1 = Σ dZ;  dW2 = A dzᵀ;  db2 = Σ dz
//
//   X (n_in, m) and all other arguments as in narrow_step.cu
//
// The blocks of a range of samples, blockIdx.x, form a cluster. For every tile of 32 samples each block sends W2ᵀ A of its
// own units to the shared memory of all blocks, and every block adds the parts, in their order: X is read once and Z is
// computed once. While the parts are on their way, the block adds the previous tile to dW1; so X has two buffers. The parts
// have two buffers as well: a block may send those of the next tile while another block still reads. It cannot get further
// ahead, because it waits for the other block's parts.
//
// Bytes moved, in elements: n_in m + 2 n_out m (X and Y read, by all blocks of a cluster together; logits written), and P
// a range. Flops: 4 n_in n m for the two products and about (6 n_out + 20) n m. The flops bound it. With TF32X3 the
// products have three times as many.

#include "common.cuh"
#include "narrow_block.cuh"
#include "clusters.cuh"

constexpr int MOST_TILES = 8;  // of a cluster on every GPU that has clusters

template <typename T, int R, int C, int N, Arithmetic KIND>
struct ClusterStep : Step<T, R, C, N, KIND> {
    using Base = Step<T, R, C, N, KIND>;
    using Shared = typename Base::Shared;
    using Base::p, Base::shared, Base::warp, Base::lane, Base::tile;
    T *others, *parts;   // (SAMPLES, X_PITCH): the second buffer for X; (2, MOST_TILES, SAMPLES, N)
    Mbarrier* barriers;  // (2,): of the parts

    __device__ __forceinline__ explicit ClusterStep(const Problem<T>& problem) : Base(problem) {
        others = shared.W1 + Shared::INPUTS * Shared::W_PITCH;
        parts = others + SAMPLES * Shared::X_PITCH;
        barriers = reinterpret_cast<Mbarrier*>(parts + 2 * MOST_TILES * SAMPLES * N);
    }

    // Of the tile `count`, counted from the block's first.
    __device__ __forceinline__ T* X(Index count) const { return count % 2 ? others : shared.X; }
    __device__ __forceinline__ T* parts_of(Index count) const { return parts + count % 2 * (MOST_TILES * SAMPLES * N); }

    // W2ᵀ A over the block's units to all blocks: a warp to each.
    __device__ __forceinline__ void send_outputs(Index count) const {
        Mbarrier* barrier = barriers + count % 2;
        if (threadIdx.x == 0) barrier->expect(gridDim.x * SAMPLES * p.n_out * sizeof(T));
        if (warp >= int(gridDim.x)) return;
        for (int o = 0; o < p.n_out; ++o)
            send(parts_of(count) + (tile * SAMPLES + lane) * N + o, this->summed_output(o), barrier, warp);
    }
    __device__ __forceinline__ void receive_outputs(Index count) const { barriers[count % 2].wait(count / 2 % 2); }

    // Output o of the lane's sample, from the parts of all blocks.
    __device__ __forceinline__ T received_output(Index count, int o) const {
        T z = 0;
        for (int t = 0; t < int(gridDim.x); ++t) z += parts_of(count)[(t * SAMPLES + lane) * N + o];
        return z;
    }
};

template <typename T, int R, int C, int N, Arithmetic KIND>
__device__ __forceinline__ void narrow_cluster(const Problem<T>& p, Index length) {
    ClusterStep<T, R, C, N, KIND> block(p);
    if (threadIdx.x < 2) block.barriers[threadIdx.x].begin();
    __syncwarp();
    cluster_arrive();
    block.read_weights();
    const Index begin = Index(blockIdx.y) * SAMPLES, stride = Index(gridDim.y) * SAMPLES;
    block.fetch_X(begin);
    cluster_wait();
    Index count = 0;
#pragma unroll 1
    for (Index first = begin; first < p.m; first += stride, ++count) {
        __syncthreads();  // X of two tiles before, z of the tile before are done with
        block.put_X(block.X(count));
        block.fetch_X(first + stride);
        block.fetch_Y(first + block.lane);
        __syncthreads();
        T a[M][C];
        block.hidden(a, block.X(count));
        block.sum_outputs(a);
        __syncthreads();
        block.send_outputs(count);
        if (count) block.add_dW1(block.X(count - 1));
        block.receive_outputs(count);
        block.output_layer(first + block.lane, [&](int o) { return block.received_output(count, o); }, block.tile == 0);
        block.backward(a);
    }
    if (count) block.add_dW1(block.X(count - 1));
    block.write_sums(length);
}

// As steps_at_a_time of narrow_step.cu, with a tile's A beside the sums during the product. narrow_step.py has the twin.
constexpr int blocks_at_a_time(int R, int N, Arithmetic KIND) { return KIND == TF32 && N == 1 && R <= 4 ? 2 : 1; }

#ifndef CLUSTER  // -DCLUSTER=4: the blocks of a cluster
#define CLUSTER 2
#endif
#define NARROW_CLUSTER(N, R, C, T, KIND, t)                                                                          \
    extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1)                                                       \
        __launch_bounds__(THREADS, blocks_at_a_time(R, N, KIND)) narrow_cluster_##N##_##R##_##C##_##t(               \
            const T* X, Index x_line, Index x_step, const T* W1, const T* b1, const T* W2, const T* b2, const T* Y,  \
            Index y_line, Index y_step, const T* weights, Index weight_step, T* logits, T* partial, Index length,    \
            Index m, int n_in, int n, int n_out, int activation, int loss, T most) {                                 \
        narrow_cluster<T, R, C, N, KIND>({X, x_line, x_step, W1, b1, W2, b2, Y, y_line, y_step, weights,             \
                                          weight_step, logits, partial, m, n_in, n, n_out, activation, loss, most},  \
                                         length);                                                                    \
    }

#ifdef ONE  // -DONE=1,8,8,float,STRICT,float32: a network uses one of these kernels, and all take long
#define JUST(...) NARROW_CLUSTER(__VA_ARGS__)
JUST(ONE)
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define NARROW_CLUSTER_FLOAT(R, C)                  \
    NARROW_CLUSTER(1, R, C, float, STRICT, float32) \
    NARROW_CLUSTER(4, R, C, float, STRICT, float32) \
    NARROW_CLUSTER(1, R, C, float, TF32, tf32)      \
    NARROW_CLUSTER(4, R, C, float, TF32, tf32)      \
    NARROW_CLUSTER(1, R, C, float, TF32X3, tf32x3)
NARROW_CLUSTER_FLOAT(2, 8)
NARROW_CLUSTER_FLOAT(4, 8)
NARROW_CLUSTER_FLOAT(8, 8)
NARROW_CLUSTER_FLOAT(16, 4)
NARROW_CLUSTER(4, 2, 8, float, TF32X3, tf32x3)
NARROW_CLUSTER(4, 4, 8, float, TF32X3, tf32x3)
NARROW_CLUSTER(4, 16, 4, float, TF32X3, tf32x3)  // with R = 8 it needs more registers than there are
FOR_EACH_FLOAT64(NARROW_CLUSTER)
#endif
