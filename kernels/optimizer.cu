// One optimizer step on the flat parameter vector θ, in one launch, with the gradient's factor and the L2 term in it.
//
//   g = clip (factor · gradient + decay · W)     (weights W only; biases have no decay)
//   sgd        θ ← θ - rate g
//   momentum   v ← β₁ v - rate g;  θ ← θ + v
//   nesterov   v ← β₁ v - rate g;  θ ← θ + β₁ v - rate g
//   adam       m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  θ ← θ - rate m / (√v + ε)
//   adamw      W ← (1 - decoupled) W, then as adam
//
// Clipping by the norm takes two launches before it:
//
//   gradient_squares   squares[block] = Σ g² of the block's share of the gradient, in double
//   clip_factor        clip = min(1, clip_norm / (√Σ squares + ε)): one block, in a fixed order
//
//   theta, gradient, first, second   (n,) contiguous; `first` is v of momentum and Nesterov or m of Adam, `second` is
//                                    Adam's v; a rule is given a null pointer for a moment that it does not have
//   weights   2 numbers per layer: where its W starts in θ, and where it ends; null where nothing decays
//   clip      (1,) in double, or a null pointer for 1
//
// `rate` contains Adam's bias corrections, √(1 - β₂ᵗ) / (1 - β₁ᵗ), and adamw's ε is multiplied by √(1 - β₂ᵗ). With
// `progress` (cuda_tables.py), rate, factor and that root are read from device memory, `decoupled` is multiplied by the
// epoch's rate there, and `rate` is not used: a step that was captured once then serves as any step. Adam's root is
// CUDA's accurate one; its division is `divide` (common.cuh), in float32 at most 2 units in the last place off.
//
// Bytes moved, in elements: sgd 3 n (θ twice, gradient), momentum and nesterov 5 n, adam and adamw 7 n; gradient_squares n,
// or 2 n with an L2 term. Flops: 4 n, 6 n, 8 n, 14 n, 16 n; 3 n. The bytes bound it; a network of 100,000 parameters
// fits the second-level cache, where the launch itself is the cost.

#include "common.cuh"
#include "optimizer_rules.cuh"

__device__ __forceinline__ bool is_weight(Index i, const Index* weights, int layers) {
    bool found = false;  // without a return from the loop: threads stay together
#pragma unroll 1
    for (int layer = 0; layer < layers; ++layer) found |= i >= weights[2 * layer] && i < weights[2 * layer + 1];
    return found;
}

template <int R, typename T, int V>
__device__ __forceinline__ void step(T* theta, const T* gradient, T* first, T* second, Index n, const StepNumbers<T>& s,
                                     const Index* weights, int layers) {
    constexpr bool has_second = R == ADAM || R == ADAMW;
#pragma unroll 1
    for (Index i = first_element<V>(); i < n; i += next_elements<V>()) {
        const int count = count_at<V>(i, n);
        Pack<T, V> x = load<T, V>(theta + i, count), g = load<T, V>(gradient + i, count), m = {}, v = {};
        if (R != SGD) m = load<T, V>(first + i, count);
        if (has_second) v = load<T, V>(second + i, count);
#pragma unroll
        for (int j = 0; j < V; ++j) {
            T slope = s.factor * g.x[j];
            if ((R == ADAMW ? weights != nullptr : s.decay != T(0)) && is_weight(i + j, weights, layers)) {
                slope += s.decay * x.x[j];
                if (R == ADAMW) x.x[j] *= s.kept;
            }
            take_step<R>(x.x[j], slope, m.x[j], v.x[j], s);
        }
        store<T, V>(theta + i, x, count);                 // own: every i is one thread's
        if (R != SGD) store<T, V>(first + i, m, count);   // own: as above
        if (has_second) store<T, V>(second + i, v, count);  // own: as above
    }
}

template <typename T>
__device__ __forceinline__ void gradient_squares(const T* theta, const T* gradient, Index n, T factor, T decay,
                                                 const Index* weights, int layers, double* out) {
    double sum = 0;
#pragma unroll 1
    for (Index i = first_element<1>(); i < n; i += next_elements<1>()) {
        T g = factor * gradient[i];
        if (weights && is_weight(i, weights, layers)) g += decay * theta[i];
        sum += double(g) * g;
    }
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

#define STEP(R, r, T, t, V, layout)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        r##_##t##_##layout(T* theta, const T* gradient, T* first, T* second, Index n, T rate, T factor, T decay,     \
                           T beta_1, T rest_1, T beta_2, T rest_2, T epsilon, T decoupled, const Index* weights,     \
                           int layers, const double* clip, const double* progress) {                                 \
        if (progress) {                                                                                              \
            rate = progress[STEP_RATE], factor = progress[FACTOR];                                                   \
            if (R == ADAMW) epsilon *= T(progress[ROOT]), decoupled *= T(progress[RATE]);                            \
        }                                                                                                            \
        if (clip) factor *= T(*clip), decay *= T(*clip);                                                             \
        const StepNumbers<T> numbers = {rate, factor, decay, beta_1, rest_1, beta_2, rest_2, epsilon, T(1) - decoupled};    \
        step<R, T, V>(theta, gradient, first, second, n, numbers, weights, layers);                                   \
    }

FOR_EACH_DTYPE(STEP, SGD, sgd)
FOR_EACH_DTYPE(STEP, MOMENTUM, momentum)
FOR_EACH_DTYPE(STEP, NESTEROV, nesterov)
FOR_EACH_DTYPE(STEP, ADAM, adam)
FOR_EACH_DTYPE(STEP, ADAMW, adamw)

#define GRADIENT_SQUARES(T, t)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        gradient_squares_##t(const T* theta, const T* gradient, Index n, T factor, T decay, const Index* weights,    \
                             int layers, double* out, const double* progress) {                                      \
        if (progress) factor = progress[FACTOR];                                                                     \
        gradient_squares<T>(theta, gradient, n, factor, decay, weights, layers, out);                                \
    }
GRADIENT_SQUARES(float, float32)
GRADIENT_SQUARES(double, float64)

extern "C" __global__ void __launch_bounds__(THREADS)
    clip_factor(const double* squares, int blocks, double clip_norm, double epsilon, double* clip) {
    const double sum = sum_of_block(int(threadIdx.x) < blocks ? squares[threadIdx.x] : 0);
    if (threadIdx.x != 0) return;
    const double factor = clip_norm / (sqrt(sum) + epsilon);
    *clip = factor < 1 ? factor : 1;
}
