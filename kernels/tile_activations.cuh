// Activations of a thread's tile in registers, in place: z becomes a = f(z), and a becomes f'(a).
// Beside TF32 products, whose error is larger, f is the quick one.

#include "arithmetics.cuh"
#include "common.cuh"

template <int F, Arithmetic KIND, typename T, int R, int C>
__device__ __forceinline__ void activate_all(T (&a)[R][C]) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
        for (int j = 0; j < C; ++j) {
            if constexpr (KIND == TF32) a[i][j] = quick_activation<F>(a[i][j]);
            else a[i][j] = activation<F>(a[i][j]);
        }
}
template <Arithmetic KIND, typename T, int R, int C>
__device__ __forceinline__ void activate(T (&a)[R][C], int activation) {
    if (activation == SIGMOID) activate_all<SIGMOID, KIND>(a);
    if (activation == TANH) activate_all<TANH, KIND>(a);
    if (activation == RELU) activate_all<RELU, KIND>(a);
}

template <int F, typename T, int R, int C>
__device__ __forceinline__ void derive_all(T (&a)[R][C]) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
        for (int j = 0; j < C; ++j) a[i][j] = derivative<F>(a[i][j]);
}
template <typename T, int R, int C>
__device__ __forceinline__ void derive(T (&a)[R][C], int activation) {
    if (activation == SIGMOID) derive_all<SIGMOID>(a);
    if (activation == TANH) derive_all<TANH>(a);
    if (activation == RELU) derive_all<RELU>(a);
    if (activation == IDENTITY) derive_all<IDENTITY>(a);
}
