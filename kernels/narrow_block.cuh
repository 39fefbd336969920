// The work of a block of the kernels for narrow networks on a tile of 32 samples (narrow_step.cu has the formulas).
//
// A block has U = 32 C units, each of its 8 warps U / 8 of them. A warp keeps Z of its units and all 32 samples in
// registers and writes dZ from there to shared memory. It keeps dW1 of its units, (n_in, U / 8), in registers from the
// first sample to the last. W1 of the block's units stays in shared memory.
//
// R, C: n_in <= 8 R, and C units of a thread. N: outputs, at most.

#include "losses.cuh"
#include "tile_activations.cuh"
#include "tile_products.cuh"

constexpr int SAMPLES = 32;  // of a tile: a lane of a warp each in the output layer
constexpr int WARPS = THREADS / 32;
constexpr int M = SAMPLES / 8;  // samples of a thread

template <typename T>
struct Problem {
    const T* X;
    Index x_line, x_step;
    const T *W1, *b1, *W2, *b2;
    const T* Y;
    Index y_line, y_step;
    const T* weights;
    Index weight_step;
    T *logits, *partial;
    Index m;
    int n_in, n, n_out, activation, loss;
    T most;
};

// The arrays in shared memory. `Variant.shared_bytes` in narrow_step.py computes their size.
template <typename T, int R, int C, int N, Arithmetic KIND>
struct SharedArrays {
    static constexpr int U = 32 * C, INPUTS = 8 * R;
    static constexpr int X_PITCH = Pitch<T, KIND>::of_A(INPUTS), W_PITCH = Pitch<T, KIND>::of_left_B(U),
                         D_PITCH = Pitch<T, KIND>::of_right_B(U);
    T *X, *W1, *dZ, *b1, *W2, *z, *dz;

    __device__ __forceinline__ SharedArrays() {
        X = reinterpret_cast<T*>(shared_memory);  // (SAMPLES, X_PITCH)
        dZ = X + SAMPLES * X_PITCH;               // (SAMPLES, D_PITCH)
        b1 = dZ + SAMPLES * D_PITCH;              // (U,)
        W2 = b1 + U;                              // (N, U)
        z = W2 + N * U;                           // (WARPS, SAMPLES, N): the warps' sums
        dz = z + WARPS * SAMPLES * N;             // (WARPS, SAMPLES, N): each warp its own copy
        W1 = dz + WARPS * SAMPLES * N;            // (INPUTS, W_PITCH)
    }
};

template <Arithmetic KIND, typename T>
__device__ __forceinline__ T rounded(T x) {
    if constexpr (KIND == TF32) return round_to_tf32(x);
    return x;
}

template <typename T, int R, int C, int N, Arithmetic KIND>
struct Block {
    using Shared = SharedArrays<T, R, C, N, KIND>;
    static constexpr int U = Shared::U, INPUTS = Shared::INPUTS;
    const Problem<T>& p;
    const Shared shared;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int tile = blockIdx.x, first_unit = tile * U, own = warp * 4 * C;  // own: the warp's units, from first_unit on
    T next[R];                                                              // of the next tile's X

    __device__ __forceinline__ explicit Block(const Problem<T>& problem) : p(problem) {}

    // Reads W1, b1 and W2 of the block's units; 0 for inputs, units and outputs that do not exist.
    __device__ __forceinline__ void read_weights() const {
        for (int i = threadIdx.x; i < INPUTS * U; i += THREADS) {
            const int k = i / U, unit = first_unit + i % U;
            const bool exists = k < p.n_in && unit < p.n;
            // own: shared memory
            shared.W1[k * Shared::W_PITCH + i % U] = exists ? rounded<KIND>(p.W1[Index(k) * p.n + unit]) : T(0);
        }
        for (int u = threadIdx.x; u < U; u += THREADS) {
            const int unit = first_unit + u;
            shared.b1[u] = p.b1 && unit < p.n ? p.b1[unit] : T(0);
            for (int o = 0; o < N; ++o)
                shared.W2[o * U + u] = unit < p.n && o < p.n_out ? p.W2[Index(unit) * p.n_out + o] : T(0);
        }
    }

    // The thread's i-th number of a tile of X is input + i input_step of sample + i sample_step: neighbours in memory to
    // neighbouring threads.
    __device__ __forceinline__ bool inputs_lie_close() const { return p.x_step <= p.x_line; }
    __device__ __forceinline__ int input() const {
        return inputs_lie_close() ? int(threadIdx.x) % INPUTS : int(threadIdx.x) / SAMPLES;
    }
    __device__ __forceinline__ int sample() const {
        return inputs_lie_close() ? int(threadIdx.x) / INPUTS : int(threadIdx.x) % SAMPLES;
    }
    __device__ __forceinline__ int input_step() const { return inputs_lie_close() ? 0 : THREADS / SAMPLES; }
    __device__ __forceinline__ int sample_step() const { return inputs_lie_close() ? THREADS / INPUTS : 0; }

    __device__ __forceinline__ void fetch_X(Index first) {
        const Index at = first + sample();
        const int inputs = p.n_in - input(), samples = int(min(p.m - at, Index(SAMPLES)));  // that there are from here on
        const T* x = p.X + at * p.x_line + input() * p.x_step;
        const Index step = sample_step() * p.x_line + input_step() * p.x_step;
#pragma unroll
        for (int i = 0; i < R; ++i)
            next[i] = i * input_step() < inputs && i * sample_step() < samples ? x[i * step] : T(0);
    }
    __device__ __forceinline__ void put_X(T* X) const {
        T* x = X + sample() * Shared::X_PITCH + input();
        const int step = sample_step() * Shared::X_PITCH + input_step();
#pragma unroll
        for (int i = 0; i < R; ++i) x[i * step] = rounded<KIND>(next[i]);  // own: shared memory
    }

    // A of the tile's samples, for the thread's units.
    __device__ __forceinline__ void hidden(T (&a)[M][C], const T* X) const {
        // From 0, not from b: numbers that begin as one register are moved about in the loop of the product.
#pragma unroll
        for (int j = 0; j < C; ++j)
#pragma unroll
            for (int i = 0; i < M; ++i) a[i][j] = 0;
        const int depth = (p.n_in + 7) / 8 * 8;
        Product<T, M, C, KIND>::by_rows(a, X, Shared::X_PITCH, shared.W1 + own, Shared::W_PITCH, depth);
#pragma unroll
        for (int j = 0; j < C; ++j) {
            const T b = shared.b1[own + q * C + j];
#pragma unroll
            for (int i = 0; i < M; ++i) a[i][j] += b;
        }
        activate<KIND>(a, p.activation);
    }

    // W2ᵀ A over the warp's units, into shared memory.
    __device__ __forceinline__ void sum_outputs(const T (&a)[M][C]) const {
#pragma unroll
        for (int o = 0; o < N; ++o) {
            T z[M] = {};
#pragma unroll
            for (int j = 0; j < C; ++j) {
                const T w = shared.W2[o * U + own + q * C + j];
#pragma unroll
                for (int i = 0; i < M; ++i) z[i] += w * a[i][j];
            }
#pragma unroll
            for (int i = 0; i < M; ++i) {
                z[i] += __shfl_xor_sync(0xffffffff, z[i], 1);
                z[i] += __shfl_xor_sync(0xffffffff, z[i], 2);
                if (q == 0) shared.z[(warp * SAMPLES + g + 8 * i) * N + o] = z[i];
            }
        }
    }

    // Output o of the lane's sample, from the sums of the warps.
    __device__ __forceinline__ T summed_output(int o) const {
        T z = p.b2 && tile == 0 ? p.b2[o] : T(0);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) z += shared.z[(w * SAMPLES + lane) * N + o];
        return z;
    }
};

// The sums of a thread over the samples.
template <typename T, int R, int C, int N>
struct Sums {
    T dW1[R][C], dW2[C][N], db1[C], db2[N];

    __device__ __forceinline__ Sums() : dW1(), dW2(), db1(), db2() {}
};

template <typename T, int R, int C, int N, Arithmetic KIND>
struct Step : Block<T, R, C, N, KIND> {
    using Base = Block<T, R, C, N, KIND>;
    using Shared = typename Base::Shared;
    using Base::p, Base::shared, Base::warp, Base::lane, Base::g, Base::q, Base::tile, Base::own, Base::first_unit, Base::U;
    Sums<T, R, C, N> sums;
    T y[N], weight;  // of the lane's sample

    __device__ __forceinline__ explicit Step(const Problem<T>& problem) : Base(problem) {}

    __device__ __forceinline__ void fetch_Y(Index sample) {
        const bool exists = sample < p.m;
        weight = !exists ? T(0) : p.weights ? p.weights[sample * p.weight_step] : T(1);
#pragma unroll
        for (int o = 0; o < N; ++o)
            y[o] = exists && o < p.n_out ? p.Y[o * p.y_line + sample * p.y_step] : T(0);
    }

    // Writes dz of the lane's sample to the warp's own copy; `logit(o)` are its logits.
    template <typename Logit>
    __device__ __forceinline__ void output_layer(Index sample, Logit logit, bool writes_logits) {
        T* z = shared.dz + (warp * SAMPLES + lane) * N;  // logits first, then A_{L-1}, then dz
        const bool exists = sample < p.m;
#pragma unroll
        for (int o = 0; o < N; ++o) {
            if (o >= p.n_out) continue;
            z[o] = logit(o);
            // own: the caller says which block
            if (writes_logits && exists && warp == 0) p.logits[sample * p.n_out + o] = z[o];
        }
        output(p.loss, z, p.n_out, p.most);
#pragma unroll
        for (int o = 0; o < N; ++o) {
            const T dz = exists && o < p.n_out ? weight * output_error(p.loss, z[o], y[o]) : T(0);
            z[o] = dz;
            sums.db2[o] += dz;
        }
        __syncwarp();
    }

    // Adds the tile to dW2 and db1, and writes dZ for `add_dW1`, which the same warp reads. f'(A) overwrites A, to save
    // registers.
    __device__ __forceinline__ void backward(T (&a)[M][C]) {
        T dz[M][N];
#pragma unroll
        for (int i = 0; i < M; ++i)
#pragma unroll
            for (int o = 0; o < N; ++o) dz[i][o] = shared.dz[(warp * SAMPLES + g + 8 * i) * N + o];
#pragma unroll
        for (int j = 0; j < C; ++j)
#pragma unroll
            for (int i = 0; i < M; ++i)
#pragma unroll
                for (int o = 0; o < N; ++o) sums.dW2[j][o] += a[i][j] * dz[i][o];
        derive(a, p.activation);
        constexpr int V = KIND != STRICT ? 2 : 16 / sizeof(T);
#pragma unroll
        for (int j = 0; j < C; j += V)
#pragma unroll
            for (int i = 0; i < M; ++i) {
                Pack<T, V> pack;
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    T d = shared.W2[own + q * C + j + v] * dz[i][0];
#pragma unroll
                    for (int o = 1; o < N; ++o) d += shared.W2[o * U + own + q * C + j + v] * dz[i][o];
                    d *= a[i][j + v];
                    sums.db1[j + v] += d;
                    pack.x[v] = rounded<KIND>(d);
                }
                store<T, V>(shared.dZ + (g + 8 * i) * Shared::D_PITCH + own + q * C + j, pack, V);
            }
        __syncwarp();
    }

    __device__ __forceinline__ void add_dW1(const T* X) {
        Product<T, R, C, KIND>::by_columns(sums.dW1, X, Shared::X_PITCH, shared.dZ + own, Shared::D_PITCH, SAMPLES);
    }

    // Over the lanes that have the same units, and over all.
    static __device__ __forceinline__ T over_samples(T x, int least) {
        for (int lanes = 16; lanes >= least; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
        return x;
    }

    // The block's sums into its row of `partial`, in the order of the flat vector.
    __device__ __forceinline__ void write_sums(Index length) {
        T* dW1 = p.partial + Index(blockIdx.y) * length;
        T* db1 = dW1 + Index(p.n_in) * p.n;
        T* dW2 = db1 + (p.b1 ? p.n : 0);
        T* db2 = dW2 + Index(p.n) * p.n_out;
#pragma unroll
        for (int j = 0; j < C; ++j) {
            const int unit = first_unit + own + q * C + j;
#pragma unroll
            for (int i = 0; i < R; ++i)
                if (unit < p.n && row<R>(g, i) < p.n_in) dW1[Index(row<R>(g, i)) * p.n + unit] = sums.dW1[i][j];
            const T db = over_samples(sums.db1[j], 4);
            if (p.b1 && unit < p.n && g == 0) db1[unit] = db;
#pragma unroll
            for (int o = 0; o < N; ++o) {
                const T dw = over_samples(sums.dW2[j][o], 4);
                if (unit < p.n && g == 0 && o < p.n_out) dW2[Index(unit) * p.n_out + o] = dw;
            }
        }
#pragma unroll
        for (int o = 0; o < N; ++o) {
            const T db = over_samples(sums.db2[o], 1);
            if (p.b2 && tile == 0 && warp == 0 && lane == 0 && o < p.n_out) db2[o] = db;
        }
    }
};

// NAME(N, R, C, dtype, arithmetic, its name): the instances of a kernel in float64. The others do not fit the registers.
#define FOR_EACH_FLOAT64(NAME)            \
    NAME(1, 2, 4, double, STRICT, float64) \
    NAME(1, 4, 4, double, STRICT, float64) \
    NAME(1, 8, 4, double, STRICT, float64) \
    NAME(4, 2, 4, double, STRICT, float64) \
    NAME(4, 4, 4, double, STRICT, float64)
