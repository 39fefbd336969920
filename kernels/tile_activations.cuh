// Activations of a thread's tile in registers, in place: z becomes a = f(z), and a becomes f'(a).

#include "common.cuh"

template <int F, bool TF32, typename T, int R, int C>
__device__ __forceinline__ void activate_all(T (&a)[R][C]) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
        for (int j = 0; j < C; ++j) {
            if constexpr (TF32) a[i][j] = quick_activation<F>(a[i][j]);
            else a[i][j] = activation<F>(a[i][j]);
        }
}
template <bool TF32, typename T, int R, int C>
__device__ __forceinline__ void activate(T (&a)[R][C], int activation) {
    if (activation == SIGMOID) activate_all<SIGMOID, TF32>(a);
    if (activation == TANH) activate_all<TANH, TF32>(a);
    if (activation == RELU) activate_all<RELU, TF32>(a);
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
