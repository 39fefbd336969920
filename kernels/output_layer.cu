// The output layer from its logits alone: J in double, and A_{L-1}.
//
//   losses_T    sums[block] = (Σ w j, Σ w) over the samples of a block; sum_rows.cu adds them up
//   outputs_T   A_{L-1}, by the output activation of the loss (losses.cuh)
//
//   logits (m, n_out), a row per sample; Y, out (n_out, m) and weights (m,) with any strides; sums (blocks, 2)
//
// Bytes moved, in elements: losses 2 n_out m (logits and Y read), outputs 3 n_out m (logits read, A_{L-1} written in their
// place and to out). Flops: about 40 n_out m, those of J in double. This is little work beside the hidden layer's pass.

#include "common.cuh"
#include "losses.cuh"

template <typename T>
__device__ __forceinline__ void losses(const T* logits, const T* Y, Index y_line, Index y_step, const T* weights,
                                       Index weight_step, double* sums, Index m, int n_out, int loss, T most) {
    double total = 0, total_weight = 0;
#pragma unroll 1
    for (Index i = first_element<1>(); i < m; i += next_elements<1>()) {
        const double weight = weights ? weights[i * weight_step] : T(1);
        total += weight * loss_of_sample(loss, logits + i * n_out, Y + i * y_step, y_line, n_out, most);
        total_weight += weight;
    }
    total = sum_of_block(total);
    total_weight = sum_of_block(total_weight);
    if (threadIdx.x != 0) return;
    sums[2 * Index(blockIdx.x)] = total;
    sums[2 * Index(blockIdx.x) + 1] = total_weight;
}

template <typename T>
__device__ __forceinline__ void outputs(T* logits, T* out, Index out_line, Index out_step, Index m, int n_out, int loss,
                                        T most) {
#pragma unroll 1
    for (Index i = first_element<1>(); i < m; i += next_elements<1>()) {
        T* z = logits + i * n_out;
        output(loss, z, n_out, most);
        for (int o = 0; o < n_out; ++o) out[o * out_line + i * out_step] = z[o];
    }
}

#define OUTPUT_LAYER(T, t)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        losses_##t(const T* logits, const T* Y, Index y_line, Index y_step, const T* weights, Index weight_step,      \
                   double* sums, Index m, int n_out, int loss, T most) {                                              \
        losses<T>(logits, Y, y_line, y_step, weights, weight_step, sums, m, n_out, loss, most);                       \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                             \
        outputs_##t(T* logits, T* out, Index out_line, Index out_step, Index m, int n_out, int loss, T most) {        \
        outputs<T>(logits, out, out_line, out_step, m, n_out, loss, most);                                            \
    }
OUTPUT_LAYER(float, float32)
OUTPUT_LAYER(double, float64)
