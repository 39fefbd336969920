// One optimizer step on the flat parameter vector θ, in one launch, with the gradient's factor and the L2 term in it.
//
//   g = factor · gradient + decay · W            (of the weights W; biases have no decay)
//   sgd        θ ← θ - rate g
//   momentum   v ← β₁ v - rate g;  θ ← θ + v
//   nesterov   v ← β₁ v - rate g;  θ ← θ + β₁ v - rate g
//   adam       m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  θ ← θ - rate m / (√v + ε)
//
//   theta, gradient, first, second   (n,) contiguous; `first` is v of momentum and Nesterov or m of Adam, `second` is
//                                    Adam's v; what a kind has no use for is a null pointer
//   weights   2 numbers per layer: where its W starts in θ, and where it ends; read only where decay is not 0
//
// `rate` holds Adam's corrections of the start, √(1 - β₂ᵗ) / (1 - β₁ᵗ). The gradient is left as it is. With `progress`,
// rate and factor come from there (progress.cuh): a step that was captured once is then any step. Adam's root is CUDA's
// accurate one; its division is `divide` (common.cuh), in float32 2 units in the last place of the step at most.
//
// Bytes moved, in elements: sgd 3 n (θ twice, gradient), momentum and nesterov 5 n, adam 7 n. Flops: 4 n, 6 n, 8 n, 14 n.
// The bytes bound it; a network of 100,000 parameters fits the second-level cache, where one launch is what costs.

#include "common.cuh"
#include "progress.cuh"

enum Kind { SGD, MOMENTUM, NESTEROV, ADAM };

// The numbers of a step, in the order in which the host hands them over.
template <typename T>
struct Step {
    T rate, factor, decay, beta_1, rest_1, beta_2, rest_2, epsilon;
};

__device__ __forceinline__ bool is_weight(Index i, const Index* weights, int layers) {
    for (int layer = 0; layer < layers; ++layer)
        if (i >= weights[2 * layer] && i < weights[2 * layer + 1]) return true;
    return false;
}

template <int K, typename T>
__device__ __forceinline__ void take_step(T& theta, T g, T& first, T& second, const Step<T>& s) {
    if (K == SGD) {
        theta -= s.rate * g;
    } else if (K == ADAM) {
        first = s.beta_1 * first + s.rest_1 * g;
        second = s.beta_2 * second + s.rest_2 * (g * g);
        theta -= divide(s.rate * first, sqrt(second) + s.epsilon);
    } else {
        first = s.beta_1 * first - s.rate * g;
        theta += K == MOMENTUM ? first : s.beta_1 * first - s.rate * g;
    }
}

template <int K, typename T, int V>
__device__ __forceinline__ void step(T* theta, const T* gradient, T* first, T* second, Index n, const Step<T>& s,
                                     const Index* weights, int layers) {
#pragma unroll 1
    for (Index i = first_element<V>(); i < n; i += next_elements<V>()) {
        const int count = count_at<V>(i, n);
        Pack<T, V> x = load<T, V>(theta + i, count), g = load<T, V>(gradient + i, count), m = {}, v = {};
        if (K != SGD) m = load<T, V>(first + i, count);
        if (K == ADAM) v = load<T, V>(second + i, count);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            T slope = s.factor * g.x[j];
            if (s.decay != T(0) && is_weight(i + j, weights, layers)) slope += s.decay * x.x[j];
            take_step<K>(x.x[j], slope, m.x[j], v.x[j], s);
        }
        store<T, V>(theta + i, x, count);                  // own: every i is one thread's
        if (K != SGD) store<T, V>(first + i, m, count);    // own: as above
        if (K == ADAM) store<T, V>(second + i, v, count);  // own: as above
    }
}

#define STEP(K, k, T, t, V, layout)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        k##_##t##_##layout(T* theta, const T* gradient, T* first, T* second, Index n, T rate, T factor, T decay,     \
                           T beta_1, T rest_1, T beta_2, T rest_2, T epsilon, const Index* weights, int layers,      \
                           const double* progress) {                                                                 \
        if (progress) rate = progress[STEP_RATE], factor = progress[FACTOR];                                         \
        const Step<T> numbers = {rate, factor, decay, beta_1, rest_1, beta_2, rest_2, epsilon};                      \
        step<K, T, V>(theta, gradient, first, second, n, numbers, weights, layers);                                  \
    }

FOR_EACH_DTYPE(STEP, SGD, sgd)
FOR_EACH_DTYPE(STEP, MOMENTUM, momentum)
FOR_EACH_DTYPE(STEP, NESTEROV, nesterov)
FOR_EACH_DTYPE(STEP, ADAM, adam)
