// out = W dZ ⊙ f'(A): the error one layer down, dZ_l = W_{l+1} dZ_{l+1} ⊙ f'(A_l).
//
//   W     (n_in, n_out)    A, out   (n_in, m)      sigmoid f' = A (1 - A);  tanh 1 - A²;  relu 1 where A > 0, else 0
//   dZ    (n_out, m)       all with any strides; out overlaps no input
//
// (identity: f' = 1, the product alone, which cuBLAS computes.)
//
// Walked along columns (Fortran order), the same kernels compute the transposed problem outᵀ = dZᵀ Wᵀ ⊙ f'(Aᵀ): the
// host hands over dZᵀ as W, Wᵀ as dZ, and so on. Below, names and shapes are those of the walk along rows.
//
// fused_backward_1, _4, _16: n_out up to 1, 4, 16, all in one pass. A thread keeps its V columns of dZ in registers
// (n_out V numbers) and walks down the rows: per V results it reads V elements of A and n_out weights, which its whole
// warp shares, and writes V results. n_out = 1 is the rank-1 update W dZ of a network with one output.
//   Bytes moved: 2 n_in m elements (A read, out written), n_out m of dZ once per block row, W from cache.
//   Flops: 2 n_out n_in m, and about 3 n_in m for f'. Up to 16 outputs the bytes bound it: on an H100 a float32 element
//   has 2.7 ps, in which the GPU does about 70 multiply-adds.
//
// times_derivative: out *= f'(A) in place, behind a cuBLAS product W dZ in `out`. It is the way for n_out > 16, where
// the registers run out and the product starts to be bound by arithmetic, which cuBLAS does best.
//   Bytes moved: 3 n_in m elements (A and out read, out written); flops: about 3 n_in m.

#include "common.cuh"

template <typename T, int F, int V, int N>
__device__ __forceinline__ void fused_backward(const T* __restrict__ W, Index w_line, Index w_step,
                                               const T* __restrict__ dZ, Index dz_line, Index dz_step, int n_out,
                                               const T* __restrict__ A, Index a_line, Index a_step,
                                               T* __restrict__ out, Index out_line, Index out_step, Index lines,
                                               Index length) {
#pragma unroll 1
    for (Index k = first_element<V>(); k < length; k += next_elements<V>()) {
        const int count = count_at<V>(k, length);
        const T* row = dZ + k * dz_step;
        T dz[N][V];
#pragma unroll
        for (int o = 0; o < N; ++o) {
            if (o >= n_out) break;
#pragma unroll
            for (int j = 0; j < V; ++j) dz[o][j] = j < count ? row[j * dz_step] : T(0);
            row += dz_line;
        }
#pragma unroll(N > 4 && V > 1 ? 2 : 1)
        for (Index line = first_line(); line < lines; line += next_lines()) {
            const Pack<T, V> a = load<T, V>(A + line * a_line + k * a_step, count);
            const T* weight = W + line * w_line;
            Pack<T, V> result = {};
#pragma unroll
            for (int o = 0; o < N; ++o) {
                if (o >= n_out) break;
#pragma unroll
                for (int j = 0; j < V; ++j) result.x[j] += *weight * dz[o][j];
                weight += w_step;
            }
#pragma unroll
            for (int j = 0; j < V; ++j) result.x[j] *= derivative<F>(a.x[j]);
            store<T, V>(out + line * out_line + k * out_step, result, count);
        }
    }
}

template <typename T, int F, int V>
__device__ __forceinline__ void times_derivative(const T* __restrict__ A, Index a_line, Index a_step,
                                                 T* __restrict__ out, Index out_line, Index out_step, Index lines,
                                                 Index length) {
#pragma unroll 1
    for (Index k = first_element<V>(); k < length; k += next_elements<V>()) {
        const int count = count_at<V>(k, length);
#pragma unroll 1
        for (Index line = first_line(); line < lines; line += next_lines()) {
            const Pack<T, V> a = load<T, V>(A + line * a_line + k * a_step, count);
            Pack<T, V> result = load<T, V>(out + line * out_line + k * out_step, count);
#pragma unroll
            for (int j = 0; j < V; ++j) result.x[j] *= derivative<F>(a.x[j]);
            // own: every (line, k) is one thread's
            store<T, V>(out + line * out_line + k * out_step, result, count);
        }
    }
}

#define FUSED_BACKWARD_N(N, F, f, T, t, V, layout)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) fused_backward_##N##_##f##_##t##_##layout(                   \
        const T* W, Index w_line, Index w_step, const T* dZ, Index dz_line, Index dz_step, int n_out, const T* A,      \
        Index a_line, Index a_step, T* out, Index out_line, Index out_step, Index lines, Index length) {               \
        fused_backward<T, F, V, N>(W, w_line, w_step, dZ, dz_line, dz_step, n_out, A, a_line, a_step, out, out_line,   \
                                   out_step, lines, length);                                                           \
    }
#define FUSED_BACKWARD(F, f, T, t, V, layout)       \
    FUSED_BACKWARD_N(1, F, f, T, t, V, layout)      \
    FUSED_BACKWARD_N(4, F, f, T, t, V, layout)      \
    FUSED_BACKWARD_N(16, F, f, T, t, V, layout)

#define TIMES_DERIVATIVE(F, f, T, t, V, layout)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        times_derivative_##f##_##t##_##layout(const T* A, Index a_line, Index a_step, T* out, Index out_line,         \
                                              Index out_step, Index lines, Index length) {                            \
        times_derivative<T, F, V>(A, a_line, a_step, out, out_line, out_step, lines, length);                         \
    }

FOR_EACH_DTYPE(FUSED_BACKWARD, SIGMOID, sigmoid)
FOR_EACH_DTYPE(FUSED_BACKWARD, TANH, tanh)
FOR_EACH_DTYPE(FUSED_BACKWARD, RELU, relu)

FOR_EACH_DTYPE(TIMES_DERIVATIVE, SIGMOID, sigmoid)
FOR_EACH_DTYPE(TIMES_DERIVATIVE, TANH, tanh)
FOR_EACH_DTYPE(TIMES_DERIVATIVE, RELU, relu)
