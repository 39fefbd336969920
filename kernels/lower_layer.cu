// The backward pass through a hidden layer below the last one, in one pass: dZ = dA ⊙ f'(A) over A, and Σ dZ = db.
//
//   A     (m, n)       a row per sample; dZ overwrites it
//   dA    (m, n)       the product W dZ_{l+1} of the layer above, a row per sample, from cuBLAS: lower_layer_0
//   W     (n, n_up)    in its place, for a layer above of up to 1, 4 or 16 units: lower_layer_1, _4, _16 compute
//   above (m, n_up)    the product themselves; `above` is dZ_{l+1}, a row per sample
//   partial (gridDim.y, n)  Σ dZ of each block's samples, or a null pointer; sum_rows.cu adds the rows, in their order
//
// Rows of A, dA and above may have gaps. "packed": those of A and dA start on multiples of 16 bytes. There are no
// atomics: the same bits every time. (identity: f' = 1, the product alone, which cuBLAS computes.)
//
// A thread keeps V units side by side, blockDim.x threads a row and blockDim.y rows a block, and goes through the
// samples, S at a time: the sums of its units, and its rows of W, stay in registers from the block's first sample to its
// last. The threads of a block read consecutive rows, so that almost all of them work whatever n is.
//
// Bytes moved, in elements: 3 n m with the product given (A and dA read, dZ written), else 2 n m + n_up m (A and above read,
// dZ written); gridDim.y n of partial. Flops: (2 n_up + 4) n m. The bytes bound it.

#include "common.cuh"

template <typename T, int V, int N>
struct Share {
    static constexpr int S = N > 4 ? 1 : 4;  // samples of a thread at a time
};

template <typename T>
struct Problem {
    T* A;
    Index a_line;
    const T* dA;
    Index da_line;
    const T *W, *above;
    Index above_line;
    int n_up;
    T* partial;
    Index m;
    int n;
};

// The sums of the threads that share units, by the first of them, into the block's row of `partial`.
template <typename T, int V>
__device__ __forceinline__ void write_sums(const Problem<T>& p, const Pack<T, V>& sums, int first, int exist) {
    Pack<T, V>* shared = reinterpret_cast<Pack<T, V>*>(shared_memory);
    shared[threadIdx.y * blockDim.x + threadIdx.x] = sums;
    __syncthreads();
    if (threadIdx.y != 0) return;
    Pack<T, V> total = sums;
#pragma unroll 1
    for (int other = 1; other < int(blockDim.y); ++other) {
        const Pack<T, V> more = shared[other * blockDim.x + threadIdx.x];
#pragma unroll
        for (int j = 0; j < V; ++j) total.x[j] += more.x[j];
    }
#pragma unroll
    for (int j = 0; j < V; ++j)
        if (j < exist) p.partial[Index(blockIdx.y) * p.n + first + j] = total.x[j];
}

// dA of one sample: what is given, or the thread's rows of W times dZ of the layer above.
template <typename T, int V, int N>
__device__ __forceinline__ Pack<T, V> error(const Problem<T>& p, const T (&w)[N ? N : 1][V], Index sample, int first,
                                            int exist) {
    if (N == 0) return load<T, V>(p.dA + sample * p.da_line + first, exist);
    const T* above = p.above + sample * p.above_line;
    Pack<T, V> d = {};
#pragma unroll
    for (int o = 0; o < N; ++o) {
        // Where w is 0 it reads the last unit again: loads without conditions wait for each other no longer than one takes.
        const T dz = above[o < p.n_up ? o : p.n_up - 1];
#pragma unroll
        for (int j = 0; j < V; ++j) d.x[j] += w[o][j] * dz;
    }
    return d;
}

template <typename T, int F, int V, int N>
__device__ __forceinline__ void lower_layer(const Problem<T>& p) {
    constexpr int S = Share<T, V, N>::S;
    const int over = blockDim.y, first = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    const int exist = first < p.n ? count_at<V>(first, p.n) : 0;
    T w[N ? N : 1][V];
#pragma unroll
    for (int o = 0; o < N; ++o)
#pragma unroll
        for (int j = 0; j < V; ++j) w[o][j] = o < p.n_up && j < exist ? p.W[Index(first + j) * p.n_up + o] : T(0);
    Pack<T, V> sums = {};
    if (exist)
#pragma unroll 1
        for (Index round = Index(blockIdx.y) * over * S + threadIdx.y; round < p.m; round += Index(gridDim.y) * over * S) {
            Pack<T, V> a[S], d[S];
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const Index sample = round + s * over;
                if (sample >= p.m) break;
                a[s] = load<T, V>(p.A + sample * p.a_line + first, exist);
                d[s] = error<T, V, N>(p, w, sample, first, exist);
            }
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const Index sample = round + s * over;
                if (sample >= p.m) break;
#pragma unroll
                for (int j = 0; j < V; ++j) {
                    d[s].x[j] *= derivative<F>(a[s].x[j]);
                    sums.x[j] += d[s].x[j];
                }
                // own: a sample's units are one thread's each
                store<T, V>(p.A + sample * p.a_line + first, d[s], exist);
            }
        }
    if (p.partial) write_sums<T, V>(p, sums, first, exist);
}

#define LOWER_LAYER_N(N, F, f, T, t, V, layout)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) lower_layer_##N##_##f##_##t##_##layout(                 \
        T* A, Index a_line, const T* dA, Index da_line, const T* W, const T* above, Index above_line, int n_up,      \
        T* partial, Index m, int n) {                                                                                \
        lower_layer<T, F, V, N>({A, a_line, dA, da_line, W, above, above_line, n_up, partial, m, n});                \
    }
#define LOWER_LAYER(F, f, T, t, V, layout)   \
    LOWER_LAYER_N(0, F, f, T, t, V, layout)  \
    LOWER_LAYER_N(1, F, f, T, t, V, layout)  \
    LOWER_LAYER_N(4, F, f, T, t, V, layout)  \
    LOWER_LAYER_N(16, F, f, T, t, V, layout)

#ifdef ONE  // -DONE=0,TANH,tanh,float,float32,4,packed: a network uses a few of these kernels
#define JUST(...) LOWER_LAYER_N(__VA_ARGS__)
JUST(ONE)
#else
FOR_EACH_DTYPE(LOWER_LAYER, SIGMOID, sigmoid)
FOR_EACH_DTYPE(LOWER_LAYER, TANH, tanh)
FOR_EACH_DTYPE(LOWER_LAYER, RELU, relu)
#endif
