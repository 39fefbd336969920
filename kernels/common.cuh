// Shared by the kernels: how they walk a matrix, accesses of 16 bytes, and the activations.
//
// A matrix is handed over as (pointer, line stride, step): element k of line l is p[l * line stride + k * step].
// The host chooses lines and steps so that the steps of a line lie side by side where they can: lines are the rows of a
// C-ordered matrix and the columns of a Fortran-ordered one (then every matrix is handed over transposed). Blocks are
// two-dimensional: x runs along a line, V elements a thread, y over the lines; both stride by the whole grid, so that
// any grid covers any matrix. Indices are 64 bits wide.
//
// V is 16 bytes' worth of elements ("packed": every line starts on a multiple of 16 bytes and the step is 1), or 1
// ("strided": anything else; unaligned lines of step 1 still coalesce). NVRTC compiles this text without any header.

#include "tables.cuh"

constexpr int THREADS = 256;  // of a block, as launch.py starts it

// Of a block, as large as its launch says. Static shared variables are not used: the tests poison and guard this one.
extern __shared__ __align__(16) unsigned char shared_memory[];

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T x[V];
};

// V elements at p, of which only the first `count` exist; the others read as 0.
template <typename T, int V>
__device__ __forceinline__ Pack<T, V> load(const T* p, int count) {
    Pack<T, V> pack;
    if (V == 1 || count == V) return *reinterpret_cast<const Pack<T, V>*>(p);
#pragma unroll
    for (int j = 0; j < V; ++j) pack.x[j] = j < count ? p[j] : T(0);
    return pack;
}

template <typename T, int V>
__device__ __forceinline__ void store(T* p, const Pack<T, V>& pack, int count) {
    if (V == 1 || count == V) {
        *reinterpret_cast<Pack<T, V>*>(p) = pack;
        return;
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
        if (j < count) p[j] = pack.x[j];
}

// Where a thread starts, and how far it moves: along the lines (x, in packs of V) and over them (y).
template <int V>
__device__ __forceinline__ Index first_element() {
    return V * (blockIdx.x * Index(blockDim.x) + threadIdx.x);
}
template <int V>
__device__ __forceinline__ Index next_elements() {
    return V * (gridDim.x * Index(blockDim.x));
}
__device__ __forceinline__ Index first_line() { return blockIdx.y * Index(blockDim.y) + threadIdx.y; }
__device__ __forceinline__ Index next_lines() { return gridDim.y * Index(blockDim.y); }

// How many of the V elements from k on exist in a line of `length`.
template <int V>
__device__ __forceinline__ int count_at(Index k, Index length) {
    return length - k < V ? int(length - k) : V;
}

// x / y, in float32 for 2^-126 <= y: x times the hardware's reciprocal, at most 2 units in the last place off. That is two
// instructions; the accurate division is a dozen and a call. NaN in, NaN out; x / infinity is 0, and beyond y = 2^126 so
// is any finite x / y: of x = 1 it is the right result of -ftz=true.
__device__ __forceinline__ float divide(float x, float y) { return __fdividef(x, y); }
__device__ __forceinline__ double divide(double x, double y) { return x / y; }

// The activations: A = f(Z), and f'(Z) in terms of A, so that the backward pass needs no Z. NaN in, NaN out.
//
//   sigmoid   1 / (1 + exp(-z))   a (1 - a)     exp(-z) may overflow to infinity: 1 / infinity is the right 0
//   tanh      tanh(z)             1 - a²
//   relu      max(z, 0)           1 where a > 0, else 0
//   identity  z                   1
//
// exp and tanh are the accurate ones of CUDA (1 or 2 units in the last place), and so is the division in float64; in
// float32 it is `divide` above. CuPy compiles with -ftz=true: float32 results below 1.2e-38, the smallest normal number,
// come out as 0.
template <int F, typename T>
__device__ __forceinline__ T activation(T z) {
    if (F == SIGMOID) return divide(T(1), T(1) + exp(-z));
    if (F == TANH) return tanh(z);
    if (F == RELU) return z < T(0) ? T(0) : z;  // this way round, NaN stays NaN
    return z;
}

// The same by the hardware's power of two, for kernels whose products are less exact than that: its argument is rounded
// once, which makes an error of |z| 2^-24 in exp, and tanh is off by up to 2^-21 of 1, not of itself. Five instructions in
// place of eleven and fifteen.
template <int F>
__device__ __forceinline__ float quick_activation(float z) {
    constexpr float LOG2_E = 1.44269504f;
    if (F == SIGMOID) return divide(1.0f, 1.0f + exp2f(-LOG2_E * z));
    if (F == TANH) return 1.0f - divide(2.0f, 1.0f + exp2f(2 * LOG2_E * z));
    return activation<F>(z);
}

template <int F, typename T>
__device__ __forceinline__ T derivative(T a) {
    if (F == SIGMOID) return fma(-a, a, a);  // a (1 - a), rounded once
    if (F == TANH) return T(1) - a * a;
    if (F == RELU) return a > T(0) ? T(1) : (a <= T(0) ? T(0) : a);
    return T(1);
}

// Σ x over the threads of a block, in a tree, in thread 0; the others get 0. It takes 8 THREADS bytes of shared memory.
__device__ __forceinline__ double sum_of_block(double x) {
    double* sums = reinterpret_cast<double*>(shared_memory);
    __syncthreads();  // an earlier sum has been read
    sums[threadIdx.x] = x;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return threadIdx.x == 0 ? sums[0] : 0;
}

// NAME(activation, its name, dtype, its name, V, layout) for every dtype and layout: the instances of a kernel.
#define FOR_EACH_LAYOUT(NAME, F, f, T, t) NAME(F, f, T, t, 16 / sizeof(T), packed) NAME(F, f, T, t, 1, strided)
#define FOR_EACH_DTYPE(NAME, F, f)               \
    FOR_EACH_LAYOUT(NAME, F, f, float, float32) \
    FOR_EACH_LAYOUT(NAME, F, f, double, float64)
