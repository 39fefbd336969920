// The whole step of a narrow network with one hidden layer, without storing activations.
//
//   Z = W1ᵀ X + b1;  A = f(Z);  z = W2ᵀ A + b2;  A_{L-1} and dz from z by the loss (losses.cuh);
//   dZ = (W2 dz) ⊙ f'(A);  dW1 = X dZᵀ;  db1 = Σ dZ;  dW2 = A dzᵀ;  db2 = Σ dz
//
//   X (n_in, m), Y (n_out, m), weights (m,) with any strides; weights may be a null pointer
//   W1 (n_in, n), b1 (n,), W2 (n, n_out), b2 (n_out,): as they lie in the flat vector; b1 and b2 may be null pointers
//   logits (m, n_out); partial (ranges, P), P the length of the flat vector: the sums of a block's samples, in its order
//
// A block has U = 32 C units and goes through its range of samples, 32 at a time (narrow_block.cuh explains N, R and C).
// The blocks of a range are blockIdx.x, the ranges blockIdx.y; sum_rows.cu adds the ranges. There are no atomics: the same
// bits every time.
//
// z needs all units of a sample. If one block has them (n <= U), one launch of `narrow_step` is enough. If not, and the GPU
// has no clusters (narrow_cluster.cu), `narrow_forward` comes first: part t of `parts` (tiles, m, n_out) is W2ᵀ A over the
// units of tile t (tile 0 adds b2), sum_rows.cu adds the parts, and narrow_step reads the logits and computes Z a second
// time, which is cheaper than storing it.
//
// Bytes moved, in elements: n_in m + 2 n_out m (X and Y read, logits written), and P a range; narrow_forward n_in m +
// tiles n_out m (X read, parts written), so that with several tiles X is read twice: the tiles' blocks of a range run side
// by side, and read it together. Flops: 4 n_in n m for the two products (6 n_in n m with several tiles) and about
// (6 n_out + 20) n m. The flops bound it. With TF32X3 the products have three times as many.

#include "common.cuh"
#include "narrow_block.cuh"

template <typename T, int R, int C, int N, Arithmetic KIND>
__device__ __forceinline__ void narrow_forward(const Problem<T>& p) {
    Block<T, R, C, N, KIND> block(p);
    block.read_weights();
    const Index stride = Index(gridDim.y) * SAMPLES;
    Index first = Index(blockIdx.y) * SAMPLES;
    block.fetch_X(first);
#pragma unroll 1
    for (; first < p.m; first += stride) {
        __syncthreads();  // X and z of the tile before are done with
        block.put_X(block.shared.X);
        block.fetch_X(first + stride);
        __syncthreads();
        T a[M][C];
        block.hidden(a, block.shared.X);
        block.sum_outputs(a);
        __syncthreads();
        const Index sample = first + block.lane;
        if (block.warp != 0 || sample >= p.m) continue;
        for (int o = 0; o < p.n_out; ++o)
            // own: a tile's part of a sample is one block's
            p.logits[(block.tile * p.m + sample) * p.n_out + o] = block.summed_output(o);
    }
}

template <typename T, int R, int C, int N, Arithmetic KIND>
__device__ __forceinline__ void narrow_step(const Problem<T>& p, Index length) {
    Step<T, R, C, N, KIND> block(p);
    const bool whole = gridDim.x == 1;
    block.read_weights();
    const Index stride = Index(gridDim.y) * SAMPLES;
    Index first = Index(blockIdx.y) * SAMPLES;
    block.fetch_X(first);
#pragma unroll 1
    for (; first < p.m; first += stride) {
        __syncthreads();  // X, z of the tile before are done with
        block.put_X(block.shared.X);
        // Three products for one leave no registers for the next X: it is on its way from the first product's end on.
        if constexpr (KIND != TF32X3) block.fetch_X(first + stride);
        const Index sample = first + block.lane;
        block.fetch_Y(sample);
        __syncthreads();
        T a[M][C];
        block.hidden(a, block.shared.X);
        if constexpr (KIND == TF32X3) block.fetch_X(first + stride);
        if (whole) {
            block.sum_outputs(a);
            __syncthreads();
        }
        const auto logit = [&](int o) {
            return whole ? block.summed_output(o) : sample < p.m ? p.logits[sample * p.n_out + o] : T(0);
        };
        block.output_layer(sample, logit, whole);  // where there is one tile, a sample is one block's
        block.backward(a);
        block.add_dW1(block.shared.X);
    }
    block.write_sums(length);
}

// Two blocks of a multiprocessor at a time where their registers are enough for it: those of the sums, of A and of the
// next X, beside those that products take, fewer on the tensor cores.
constexpr int steps_at_a_time(int item, int R, int C, int N, Arithmetic KIND) {
    return item / 4 * (R * C + C * N + C + N + M * C + R) <= (KIND == TF32 ? 88 : 70) ? 2 : 1;
}
constexpr int forwards_at_a_time(int R) { return R <= 8 ? 2 : 1; }

#define NARROW_STEP(N, R, C, T, KIND, t)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, forwards_at_a_time(R)) narrow_forward_##N##_##R##_##C##_##t( \
        const T* X, Index x_line, Index x_step, const T* W1, const T* b1, const T* W2, const T* b2, T* parts, Index m, \
        int n_in, int n, int n_out, int activation) {                                                                  \
        narrow_forward<T, R, C, N, KIND>({X, x_line, x_step, W1, b1, W2, b2, nullptr, 0, 0, nullptr, 0, parts,         \
                                          nullptr, m, n_in, n, n_out, activation, 0, 0});                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, steps_at_a_time(sizeof(T), R, C, N, KIND))                   \
        narrow_step_##N##_##R##_##C##_##t(                                                                             \
            const T* X, Index x_line, Index x_step, const T* W1, const T* b1, const T* W2, const T* b2, const T* Y,    \
            Index y_line, Index y_step, const T* weights, Index weight_step, T* logits, T* partial, Index length,      \
            Index m, int n_in, int n, int n_out, int activation, int loss, T most) {                                   \
        narrow_step<T, R, C, N, KIND>({X, x_line, x_step, W1, b1, W2, b2, Y, y_line, y_step, weights, weight_step,     \
                                       logits, partial, m, n_in, n, n_out, activation, loss, most},                    \
                                      length);                                                                         \
    }

#ifdef ONE  // -DONE=1,8,8,float,STRICT,float32: a network uses one of these kernels, and all take long
#define JUST(...) NARROW_STEP(__VA_ARGS__)
JUST(ONE)
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define NARROW_STEP_TF32(R, C)
#else
#define NARROW_STEP_TF32(R, C)                  \
    NARROW_STEP(1, R, C, float, TF32, tf32)     \
    NARROW_STEP(4, R, C, float, TF32, tf32)     \
    NARROW_STEP(1, R, C, float, TF32X3, tf32x3) \
    NARROW_STEP(4, R, C, float, TF32X3, tf32x3)
#endif
#define NARROW_STEP_FLOAT(R, C)                 \
    NARROW_STEP(1, R, C, float, STRICT, float32) \
    NARROW_STEP(4, R, C, float, STRICT, float32) \
    NARROW_STEP_TF32(R, C)
NARROW_STEP_FLOAT(2, 4)
NARROW_STEP_FLOAT(4, 4)
NARROW_STEP_FLOAT(8, 4)
NARROW_STEP_FLOAT(16, 4)
NARROW_STEP_FLOAT(2, 8)
NARROW_STEP_FLOAT(4, 8)
NARROW_STEP_FLOAT(8, 8)
FOR_EACH_FLOAT64(NARROW_STEP)
#endif
