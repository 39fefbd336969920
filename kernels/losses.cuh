// The output layer of one sample: A_{L-1} from the logits z, the loss j, and dZ_{L-1}. The formulas are those of losses.py.
//
//   loss                        A_{L-1}        j                                              dZ_{L-1}
//   binary_cross_entropy        sigmoid(z)     Σ max(z, 0) - y z + log(1 + exp(-|z|))         A - y
//   categorical_cross_entropy   softmax(z)     log Σ exp(z - max) - Σ y (z - max)             A - y
//   squared_error               z              Σ (z - y)² / 2                                 A - y
//   poisson                     exp(z)         Σ y log y - y z - y + exp(z)                   A - y
//   sum_squared_error           sigmoid(z)     Σ (sigmoid(z) - y)² / 2                        (A - y) A (1 - A)
//
// j is finite for any finite logit, and computed in double whatever the type of the network. poisson's exp(z) holds z
// at `most`, the largest exponent whose power is finite. One thread does a sample, output by output: this is little
// beside the hidden units, and unrolled it would be most of the kernel's code.

#include "tables.cuh"

template <typename T>
__device__ __forceinline__ T largest(const T* z, int n_out) {
    T most = z[0];
#pragma unroll 1
    for (int o = 1; o < n_out; ++o)
        if (z[o] > most) most = z[o];
    return most;
}

// A_{L-1} in place of the logits.
template <typename T>
__device__ __forceinline__ void output(int loss, T* z, int n_out, T most) {
    if (loss == SQUARED_ERROR) return;
    const bool softmax = loss == CATEGORICAL_CROSS_ENTROPY, sigmoid = !softmax && loss != POISSON;
    const T shift = softmax ? largest(z, n_out) : T(0);
    T total = 0;
#pragma unroll 1
    for (int o = 0; o < n_out; ++o) {
        const T exponent = sigmoid ? -z[o] : softmax ? z[o] - shift : z[o] > most ? most : z[o];
        const T power = exp(exponent);
        // own: a sample is one thread's
        z[o] = sigmoid ? divide(T(1), T(1) + power) : power;
        total += power;
    }
    if (!softmax) return;
    const T factor = divide(T(1), total);
#pragma unroll 1
    for (int o = 0; o < n_out; ++o) z[o] *= factor;  // own: as above
}

// j of the logits z; element o of the targets is y[o * y_line].
template <typename T>
__device__ __forceinline__ double loss_of_sample(int loss, const T* z, const T* y, Index y_line, int n_out, T most) {
    const bool softmax = loss == CATEGORICAL_CROSS_ENTROPY;
    const double shift = softmax ? largest(z, n_out) : T(0);
    double j = 0, total = 0;
#pragma unroll 1
    for (int o = 0; o < n_out; ++o) {
        const double logit = z[o] - shift, target = y[o * y_line];
        const double bounded = loss == POISSON ? double(z[o] > most ? most : z[o]) : softmax ? logit : -fabs(logit);
        const double power = exp(bounded);
        total += power;
        if (loss == BINARY_CROSS_ENTROPY) j += (logit < 0 ? 0 : logit) - target * logit + log1p(power);
        if (softmax && target > 0) j -= target * logit;
        if (loss == POISSON) j += (target > 0 ? target * log(target) : 0) - target * logit - target + power;
        const double sigmoid = (logit < 0 ? power : 1) / (1 + power);
        const double residual = (loss == SUM_SQUARED_ERROR ? sigmoid : logit) - target;
        if (loss == SQUARED_ERROR || loss == SUM_SQUARED_ERROR) j += 0.5 * residual * residual;
    }
    return softmax ? j + log(total) : j;
}

// dZ_{L-1} of an output, without the sample's weight.
template <typename T>
__device__ __forceinline__ T output_error(int loss, T A, T y) {
    return loss == SUM_SQUARED_ERROR ? (A - y) * A * (T(1) - A) : A - y;
}
