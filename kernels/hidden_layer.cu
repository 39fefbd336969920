// The fused middle of a training step: everything between the first product and the last, in one pass over Z.
//
// Z (m, n) holds the products of the last hidden layer, a row per sample, from cuBLAS: Z_l = Xᵀ W_l, without the bias.
//   A = f(Z + b);  z = W2ᵀ A + b2;  A_{L-1} and dz from z by the loss (losses.cuh);
//   dZ = (W2 dz) ⊙ f'(A) overwrites Z, and is what the next product, X dZ, takes;
//   Σ dz Aᵀ = dW2, Σ dz = db2, Σ dZ = db: each block sums over its samples and writes a row of `partial`; sum_rows.cu
//   adds the rows, in their order. There are no atomics: the same bits every time.
// The logits z are written too: output_layer.cu computes J and A_{L-1} from them, in double, which would take half of the
// registers here. Without targets (Y null) nothing else is written, and Z is not changed.
//
//   b (n,), W2 (n, n_out) row by row, b2 (n_out,): as they lie in the flat vector; b and b2 may be null pointers
//   Y (n_out, m) and weights (m,) with any strides; weights may be a null pointer; logits (m, n_out)
//   partial (blocks, n + n n_out + n_out): db, dW2, db2, the order of the flat vector; without biases dW2 alone
//
// A team of threads (a power of two from 8 to 256) works on S samples at a time, each thread on K units. A thread keeps the
// sums of db and dW2 of its units in registers from the block's first sample to its last; with few outputs, W2 too. z is
// summed by shuffles. The sums of a team's warps go through shared memory to one thread per sample, which computes the
// output layer.
//
// A block has up to 256 K units: 1024, or 512 in float64, and half of that with more than 4 outputs. If the layer has more
// units, blockIdx.y is the tile of units. A first launch without targets writes the tiles' parts of the logits,
// (tiles, m, n_out), which sum_rows.cu adds; a second launch reads the logits (`given`). Z is then read twice.
//
// Bytes moved, in elements: 2 n m (Z read, dZ written), n_out m of Y and n_out m of logits; forward alone (n + n_out) m.
// Flops: (6 n_out + 10) n m about. Up to 4 outputs the bytes bound it.

#include "common.cuh"
#include "losses.cuh"

template <typename T, int V, int N>
struct Share {
    static constexpr int K = (sizeof(T) == 8 ? 2 : 4) / (N > 4 ? 2 : 1);  // units of a thread
    static constexpr int P = K / V;                                // packs of them
    static constexpr int S = N > 4 ? 1 : N > 1 || V == 1 ? 2 : 4;  // samples of a team at a time
    static constexpr bool KEEPS_W2 = N <= 4;
    // Blocks of a multiprocessor: three hide more of the waiting for Z, where 80 registers suffice.
    static constexpr int BLOCKS = sizeof(T) == 4 && V == 4 && N == 1 ? 3 : 2;
};

template <typename T>
struct Problem {
    T* Z;
    Index z_line;
    const T *b, *W2, *b2, *Y;
    Index y_line, y_step;
    const T* weights;
    Index weight_step;
    T *logits, *partial;
    Index m;
    int n, n_out, loss, team, given;
    T most;
};

// Numbers that the threads of a block exchange in a round of samples, in shared memory; a slot is a sample of a team.
template <typename T, int N, int S>
struct TeamSums {
    T* z;       // (slots, N, warps of a team) sums of the warps
    T* dz;      // (slots, N)
    int parts;  // warps of a team, at least 1

    __device__ __forceinline__ explicit TeamSums(int team) : parts(team > 32 ? team / 32 : 1) {
        z = reinterpret_cast<T*>(shared_memory);
        dz = z + THREADS / team * S * N * parts;
    }
};

// A thread's units, and what stays in its registers.
template <typename T, int F, int V, int N>
struct Thread {
    static constexpr int K = Share<T, V, N>::K, P = Share<T, V, N>::P, S = Share<T, V, N>::S;
    static constexpr bool KEEPS_W2 = Share<T, V, N>::KEEPS_W2;
    int lane, team;
    T b[K], w[KEEPS_W2 ? K : 1][KEEPS_W2 ? N : 1], dW2[K][N], db[K], db2[2];

    __device__ __forceinline__ int unit(int k) const {
        return int(blockIdx.y) * team * K + (k / V * team + lane) * V + k % V;
    }

    // How many units of its i-th pack exist.
    __device__ __forceinline__ int count(const Problem<T>& p, int i) const {
        const int first = unit(i * V);
        return first < p.n ? count_at<V>(first, p.n) : 0;
    }

    __device__ __forceinline__ T read_weight(const Problem<T>& p, int k, int o) const {
        return unit(k) < p.n && o < p.n_out ? p.W2[unit(k) * p.n_out + o] : T(0);
    }

    __device__ __forceinline__ T weight(const Problem<T>& p, int k, int o) const {
        return KEEPS_W2 ? w[KEEPS_W2 ? k : 0][KEEPS_W2 ? o : 0] : read_weight(p, k, o);
    }

    __device__ __forceinline__ void begin(const Problem<T>& p) {
        team = p.team;
        lane = threadIdx.x % team;
        db2[0] = db2[1] = 0;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            b[k] = p.b && unit(k) < p.n ? p.b[unit(k)] : T(0);
            db[k] = 0;
#pragma unroll
            for (int o = 0; o < N; ++o) {
                if (KEEPS_W2) w[KEEPS_W2 ? k : 0][KEEPS_W2 ? o : 0] = read_weight(p, k, o);
                dW2[k][o] = 0;
            }
        }
    }

    // A of the thread's units; 0 for those that do not exist.
    __device__ __forceinline__ void activations(const Problem<T>& p, Index sample, T (&a)[K]) const {
#pragma unroll
        for (int i = 0; i < P; ++i) {
            const int exist = sample < p.m ? count(p, i) : 0;
            Pack<T, V> z = {};
            if (exist) z = load<T, V>(p.Z + sample * p.z_line + unit(i * V), exist);
#pragma unroll
            for (int j = 0; j < V; ++j) a[i * V + j] = j < exist ? activation<F>(z.x[j] + b[i * V + j]) : T(0);
        }
    }

    // W2ᵀ A over the units of a warp's lanes that are in the team, into the slot's place in shared memory.
    __device__ __forceinline__ void forward(const Problem<T>& p, const T (&a)[K], const TeamSums<T, N, S>& shared, int slot) const {
        T z[N];
#pragma unroll
        for (int o = 0; o < N; ++o) {
            z[o] = 0;
#pragma unroll
            for (int k = 0; k < K; ++k) z[o] += weight(p, k, o) * a[k];
        }
#pragma unroll 1
        for (int lanes = (team < 32 ? team : 32) / 2; lanes > 0; lanes /= 2)
#pragma unroll
            for (int o = 0; o < N; ++o) z[o] += __shfl_xor_sync(0xffffffff, z[o], lanes);
        if (lane % 32 != 0) return;
#pragma unroll
        for (int o = 0; o < N; ++o) shared.z[(slot * N + o) * shared.parts + lane / 32] = z[o];
    }

    // Adds a sample to the sums, and writes its dZ.
    __device__ __forceinline__ void backward(const Problem<T>& p, Index sample, const T (&a)[K], const T* slot_dz) {
        T dz[N];
#pragma unroll
        for (int o = 0; o < N; ++o) dz[o] = o < p.n_out ? slot_dz[o] : T(0);
#pragma unroll
        for (int i = 0; i < P; ++i) {
            Pack<T, V> d = {};
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const int k = i * V + j;
#pragma unroll
                for (int o = 0; o < N; ++o) {
                    d.x[j] += weight(p, k, o) * dz[o];
                    dW2[k][o] += a[k] * dz[o];
                }
                d.x[j] *= derivative<F>(a[k]);
                db[k] += d.x[j];
            }
            const int exist = count(p, i);
            // own: a sample is one team's, and its units one thread's each
            if (exist) store<T, V>(p.Z + sample * p.z_line + unit(i * V), d, exist);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half)
            if (lane + half * team < p.n_out) db2[half] += slot_dz[lane + half * team];
    }
};

// The output layer of one sample, by one thread: its logits from the sums of the warps, and dz beside them.
template <typename T, int N, int S>
__device__ __forceinline__ void output_layer(const Problem<T>& p, const TeamSums<T, N, S>& shared, int slot, Index sample) {
    T* z = shared.dz + slot * N;  // logits first, then A_{L-1}, then dz
    T* logits = p.logits + (p.Y ? sample : sample + blockIdx.y * p.m) * p.n_out;
#pragma unroll 1
    for (int o = 0; o < p.n_out; ++o) {
        T logit = p.given ? logits[o] : p.b2 && blockIdx.y == 0 ? p.b2[o] : T(0);
        if (!p.given)
            for (int part = 0; part < shared.parts; ++part) logit += shared.z[(slot * N + o) * shared.parts + part];
        z[o] = logit;
        // own: where they are written, a sample of a tile is one block's
        if (!p.given) logits[o] = logit;
    }
    if (!p.Y) return;
    output(p.loss, z, p.n_out, p.most);
    const T weight = p.weights ? p.weights[sample * p.weight_step] : T(1);
#pragma unroll 1
    for (int o = 0; o < p.n_out; ++o) {
        const T y = p.Y[o * p.y_line + sample * p.y_step];
        z[o] = weight * output_error(p.loss, z[o], y);
    }
}

// The numbers of a row of `partial`.
template <typename T>
__device__ __forceinline__ int row_length(const Problem<T>& p) {
    return p.n * p.n_out + (p.b ? p.n : 0) + (p.b2 ? p.n_out : 0);
}

// A thread's sums into a row, or on top of what the teams before it have put there.
template <typename T, int F, int V, int N>
__device__ __forceinline__ void add_to_row(const Problem<T>& p, const Thread<T, F, V, N>& own, T* row, bool first) {
    T* dW2 = row + (p.b ? p.n : 0);
    T* db2 = dW2 + p.n * p.n_out;
#pragma unroll
    for (int k = 0; k < Share<T, V, N>::K; ++k) {
        const int u = own.unit(k);
        if (u >= p.n) continue;
        // own: the row is the block's, as all below; a unit is one thread's of a team, and the teams take turns
        if (p.b) row[u] = (first ? T(0) : row[u]) + own.db[k];
#pragma unroll
        for (int o = 0; o < N; ++o)
            // own: as above
            if (o < p.n_out) dW2[u * p.n_out + o] = (first ? T(0) : dW2[u * p.n_out + o]) + own.dW2[k][o];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int o = own.lane + half * own.team;
        // own: as above
        if (p.b2 && blockIdx.y == 0 && o < p.n_out) db2[o] = (first ? T(0) : db2[o]) + own.db2[half];
    }
}

// The block's sums into its row of `partial`: several teams add theirs in shared memory, one after the other.
template <typename T, int F, int V, int N>
__device__ __forceinline__ void write_sums(const Problem<T>& p, const Thread<T, F, V, N>& own) {
    const int length = row_length(p), teams = THREADS / p.team;
    T* row = p.partial + Index(blockIdx.x) * length;
    T* shared = reinterpret_cast<T*>(shared_memory);
    if (teams == 1) {
        add_to_row(p, own, row, true);
        return;
    }
    for (int team = 0; team < teams; ++team) {
        __syncthreads();
        if (team == int(threadIdx.x) / p.team) add_to_row(p, own, shared, team == 0);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < length; i += THREADS) row[i] = shared[i];
}

template <typename T, int F, int V, int N>
__device__ __forceinline__ void hidden_layer(const Problem<T>& p) {
    constexpr int K = Share<T, V, N>::K, S = Share<T, V, N>::S;
    const TeamSums<T, N, S> shared(p.team);
    Thread<T, F, V, N> own;
    own.begin(p);
    const int team = threadIdx.x / p.team, slots = THREADS / p.team * S;
    // Every thread of the block goes through the same rounds: barriers and shuffles need them all.
#pragma unroll 1
    for (Index round = Index(blockIdx.x) * slots; round < p.m; round += Index(gridDim.x) * slots) {
        const Index first = round + team * S;
        T a[S][K];
#pragma unroll
        for (int s = 0; s < S; ++s) {
            own.activations(p, first + s, a[s]);
            if (!p.given) own.forward(p, a[s], shared, team * S + s);
        }
        __syncthreads();
        const Index mine = round + threadIdx.x;
        if (int(threadIdx.x) < slots && mine < p.m) output_layer(p, shared, int(threadIdx.x), mine);
        __syncthreads();
        if (!p.Y) continue;
#pragma unroll
        for (int s = 0; s < S; ++s)
            if (first + s < p.m) own.backward(p, first + s, a[s], shared.dz + (team * S + s) * N);
    }
    if (p.Y) write_sums(p, own);
}

#define HIDDEN_LAYER_N(N, F, f, T, t, V, layout)                                                                    \
    extern "C" __global__ void                                                                                      \
    __launch_bounds__(THREADS, Share<T, V, N>::BLOCKS) hidden_layer_##N##_##f##_##t##_##layout(                     \
        T* Z, Index z_line, const T* b, const T* W2, const T* b2, const T* Y, Index y_line, Index y_step,           \
        const T* weights, Index weight_step, T* logits, T* partial, Index m, int n, int n_out, int loss, int team,  \
        int given, T most) {                                                                                        \
        hidden_layer<T, F, V, N>({Z, z_line, b, W2, b2, Y, y_line, y_step, weights, weight_step, logits, partial,   \
                                  m, n, n_out, loss, team, given, most});                                           \
    }
#define HIDDEN_LAYER(F, f, T, t, V, layout)  \
    HIDDEN_LAYER_N(1, F, f, T, t, V, layout) \
    HIDDEN_LAYER_N(4, F, f, T, t, V, layout)
#define HIDDEN_LAYER_16(F, f)                               \
    HIDDEN_LAYER_N(16, F, f, float, float32, 1, strided)    \
    HIDDEN_LAYER_N(16, F, f, double, float64, 1, strided)
#define HIDDEN_LAYER_F(F, f)              \
    FOR_EACH_DTYPE(HIDDEN_LAYER, F, f)    \
    HIDDEN_LAYER_16(F, f)

#ifdef ONE  // -DONE=4,SIGMOID,sigmoid,float,float32,4,packed: a network uses one of these kernels, and all take long
#define JUST(...) HIDDEN_LAYER_N(__VA_ARGS__)
JUST(ONE)
#else
HIDDEN_LAYER_F(SIGMOID, sigmoid)
HIDDEN_LAYER_F(TANH, tanh)
HIDDEN_LAYER_F(RELU, relu)
HIDDEN_LAYER_F(IDENTITY, identity)
#endif
