// A = f(Z + b): the activation of a hidden layer with its bias, in one pass.
//
//   sigmoid A = 1 / (1 + exp(-(Z + b)));  tanh, relu and identity likewise (common.cuh)
//
//   Z, A   (n, m)   any strides; A may be Z itself
//   b      (n, 1)   one bias per row, or a null pointer for none
//
// Bytes moved: 2 n m elements (Z read, A written) and the n biases once per block that needs them, from cache.
// Flops: n m additions, and n m times f (sigmoid: one exp, one addition, one division). The bytes bound it: on an H100
// (3 TB/s) a float32 element has 2.7 ps, time for about 76 instructions; the sigmoid is a dozen of them.
//
// The kernel walks Z as `lines` of `length` elements (common.cuh). Walked along rows the bias belongs to the line
// (b_step = 0); walked along columns it belongs to the step (b_line = 0). Without a bias, matrices of one layout and no
// gaps are walked as a single line.

#include "common.cuh"

template <typename T, int F, int V>
__device__ __forceinline__ void activate(const T* b, Index b_line, Index b_step, const T* Z, Index z_line, Index z_step,
                                         T* A, Index a_line, Index a_step, Index lines, Index length) {
#pragma unroll 1
    for (Index k = first_element<V>(); k < length; k += next_elements<V>()) {
        const int count = count_at<V>(k, length);
#pragma unroll 1
        for (Index line = first_line(); line < lines; line += next_lines()) {
            Pack<T, V> z = load<T, V>(Z + line * z_line + k * z_step, count);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                if (b && j < count) z.x[j] += b[line * b_line + (k + j) * b_step];
                z.x[j] = activation<F>(z.x[j]);
            }
            store<T, V>(A + line * a_line + k * a_step, z, count);
        }
    }
}

#define ACTIVATE(F, f, T, t, V, layout)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                          \
        activate_##f##_##t##_##layout(const T* b, Index b_line, Index b_step, const T* Z, Index z_line, Index z_step, \
                                      T* A, Index a_line, Index a_step, Index lines, Index length) {               \
        activate<T, F, V>(b, b_line, b_step, Z, z_line, z_step, A, a_line, a_step, lines, length);                 \
    }

FOR_EACH_DTYPE(ACTIVATE, SIGMOID, sigmoid)
FOR_EACH_DTYPE(ACTIVATE, TANH, tanh)
FOR_EACH_DTYPE(ACTIVATE, RELU, relu)
FOR_EACH_DTYPE(ACTIVATE, IDENTITY, identity)
