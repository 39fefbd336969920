// What a mini-batch step does besides its pass and its update. It runs on the device: the host takes no part in a step.
//
//   gather    sample s of the batch is sample i of X, Y and the weights, i = order[first + s], first = BATCH batch_size
//             (first + s without an order); x (size, n_in) and y (size, n_out), a row per sample, w (size,)
//   squares   squares[block] = Σ W² of the block's share of the weight matrices, in double
//   finish    FACTOR = 1 / Σ w, or 1 / divisor where one is given;  J = FACTOR Σ w j + decay Σ W² / 2;
//             LOSS += share J;  BATCH += 1;  STEP_RATE and ROOT, by the bias corrections of Adam's step t
//
//   X (n_in, m), Y (n_out, m) and weights (m,) with any strides; sums = (Σ w j, Σ w); progress (7,): cuda_tables.py
//   weight ranges: 2 numbers per layer, where its W starts in the flat vector and where it ends
//
// finish has one block. For a small batch it sums the losses itself, from the logits (size, n_out), Y and weights, which
// saves two launches; for a large one it reads `sums` from output_layer.cu.
//
// Bytes moved, in elements: gather 2 (n_in + n_out) size; squares n. Flops: squares 2 n. Launching
// costs more than the work: a batch of 200 samples with 64 inputs is 50 kB.

#include "common.cuh"
#include "losses.cuh"

// Column `sample` of x (n, ·) into row s of out, for every s: neighbouring threads write neighbours.
template <typename T>
__device__ __forceinline__ void gather_columns(const T* x, Index line, Index step, T* out, Index n, Index size, Index first,
                                               const Index* order) {
#pragma unroll 1
    for (Index s = first_line(); s < size; s += next_lines()) {
        const Index sample = order ? order[first + s] : first + s;
#pragma unroll 1
        for (Index k = first_element<1>(); k < n; k += next_elements<1>()) out[s * n + k] = x[k * line + sample * step];
    }
}

template <typename T>
__device__ __forceinline__ void gather(const double* progress, const Index* order, const T* X, Index x_line, Index x_step,
                                       const T* Y, Index y_line, Index y_step, const T* weights, Index weight_step, T* x,
                                       T* y, T* w, Index n_in, Index n_out, Index size, Index batch_size) {
    const Index first = Index(progress[BATCH]) * batch_size;
    gather_columns(X, x_line, x_step, x, n_in, size, first, order);
    gather_columns(Y, y_line, y_step, y, n_out, size, first, order);
    if (weights) gather_columns(weights, 0, weight_step, w, 1, size, first, order);
}

template <typename T>
__device__ __forceinline__ void squares(const T* theta, const Index* ranges, int layers, double* out) {
    double sum = 0;
    for (int layer = 0; layer < layers; ++layer)
#pragma unroll 1
        for (Index i = ranges[2 * layer] + first_element<1>(); i < ranges[2 * layer + 1]; i += next_elements<1>())
            sum += double(theta[i]) * theta[i];
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// What `finish` is told of the optimizer and the loss. beta_1 and beta_2 are 0 for optimizers without bias corrections.
struct Rules {
    double decay, share, beta_1, beta_2, divisor;
    int divided;  // whether sums are divided by `divisor`, else by Σ w
};

// (Σ w j, Σ w) of a small batch, in thread 0.
template <typename T>
__device__ __forceinline__ void sum_losses(const T* logits, const T* Y, Index y_line, Index y_step, const T* weights,
                                           Index weight_step, Index size, int n_out, int loss, T most, double (&sums)[2]) {
    sums[0] = sums[1] = 0;
#pragma unroll 1
    for (Index i = threadIdx.x; i < size; i += THREADS) {
        const double weight = weights ? weights[i * weight_step] : T(1);
        sums[0] += weight * loss_of_sample(loss, logits + i * n_out, Y + i * y_step, y_line, n_out, most);
        sums[1] += weight;
    }
    sums[0] = sum_of_block(sums[0]);
    sums[1] = sum_of_block(sums[1]);
}

__device__ __forceinline__ void finish(double* progress, const double (&sums)[2], double squared, const Rules& rules) {
    const double divisor = rules.divided ? rules.divisor : sums[1];
    const double factor = divisor != 0 ? 1 / divisor : 0;  // weights that are all 0 add nothing
    const double t = progress[STEPS] + progress[BATCH] + 1, root = sqrt(1 - pow(rules.beta_2, t));
    // own: there is one block, and one thread of it is here
    progress[LOSS] += rules.share * (sums[0] * factor + 0.5 * rules.decay * squared);
    // own: as above
    progress[STEP_RATE] = progress[RATE] * root / (1 - pow(rules.beta_1, t));
    progress[ROOT] = root;      // own: as above
    progress[FACTOR] = factor;  // own: as above
    progress[BATCH] += 1;       // own: as above
}

#define MINI_BATCH(T, t)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) gather_##t(                                                   \
        const double* progress, const Index* order, const T* X, Index x_line, Index x_step, const T* Y, Index y_line,   \
        Index y_step, const T* weights, Index weight_step, T* x, T* y, T* w, Index n_in, Index n_out, Index size,       \
        Index batch_size) {                                                                                             \
        gather<T>(progress, order, X, x_line, x_step, Y, y_line, y_step, weights, weight_step, x, y, w, n_in, n_out,    \
                  size, batch_size);                                                                                    \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
        squares_##t(const T* theta, const Index* ranges, int layers, double* out) {                                     \
        squares<T>(theta, ranges, layers, out);                                                                         \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) finish_##t(                                                   \
        double* progress, const T* logits, const T* Y, Index y_line, Index y_step, const T* weights, Index weight_step, \
        Index size, int n_out, int loss, T most, const double* sums, const double* squares, int blocks, double decay,   \
        double share, double beta_1, double beta_2, double divisor, int divided) {                                      \
        double own[2];                                                                                                  \
        if (logits) sum_losses(logits, Y, y_line, y_step, weights, weight_step, size, n_out, loss, most, own);          \
        const double squared = sum_of_block(int(threadIdx.x) < blocks ? squares[threadIdx.x] : 0);                      \
        if (threadIdx.x != 0) return;                                                                                   \
        if (!logits) own[0] = sums[0], own[1] = sums[1];                                                                \
        finish(progress, own, squared, {decay, share, beta_1, beta_2, divisor, divided});                               \
    }
MINI_BATCH(float, float32)
MINI_BATCH(double, float64)
