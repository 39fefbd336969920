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
// A team of threads (a power of two from 8 to 256) works on a sample, each thread on K units. A thread keeps W2, b and the
// sums of dW2 and db of its units in registers from the block's first sample to its last. z is summed by shuffles. The sums
// of a team's warps go through shared memory to one thread per sample, which computes the output layer.
//
// A block goes through its samples in rounds, `samples` of each team. Z, Y and weights of the next round are copied to
// shared memory while this one is worked on (async_copies.cuh): a ring of two stages, or of one before sm_80. A thread copies
// what it works on itself, so that the ring needs no barrier, and puts A where Z was.
//
// A block has up to 256 K units: 1024, or 512 in float64, and half of that with more than 4 outputs. If the layer has more
// units, blockIdx.y is the tile of units. A first launch without targets writes the tiles' parts of the logits,
// (tiles, m, n_out), which sum_rows.cu adds; a second launch reads the logits (`given`). Z is then read twice.
//
// Bytes moved, in elements: 2 n m (Z read, dZ written), n_out m of Y and n_out m of logits; forward alone (n + n_out) m.
// Flops: (6 n_out + 10) n m about. Up to 4 outputs the bytes bound it, with more of them the instructions.
//
// Bandwidth times latency is what has to be under way: on an H200 4.1 TB/s and 0.8 µs, 25 KB of each multiprocessor. What
// the variants have, one stage of each block, where registers leave room for so many blocks (sm_90):
//
//   outputs  dtype    access   registers  blocks  samples  KiB a stage  KiB under way
//   1        float32  packed   64         4       4        16           64
//   1        float32  strided  88         2       4        16           32
//   1        float64  both     76         3       4        16           48
//   4        float32  packed   80         3       4        16           48
//   4        float32  strided  96         2       4        16           32
//   4        float64  both     96         2       4        16           32
//   16       both     strided  128        2       4 to 16  8 to 32      16 to 64
//
// At 80 % of that bandwidth a multiprocessor has 290 issue slots for what a warp does at a time: 16 bytes of Z read and of
// dZ written by each lane, 8 with 16 outputs. In float32 with the sigmoid these take some 180 instructions with one output
// and 250 with four; with 16 outputs some 350, of 145 slots.

#include "common.cuh"
#include "async_copies.cuh"
#include "losses.cuh"

template <typename T, int V, int N>
struct Share {
    static constexpr int K = (sizeof(T) == 8 ? 2 : 4) / (N > 4 ? 2 : 1);  // units of a thread
    static constexpr int P = K / V;                                       // packs of them
    static constexpr int G = N > 4 ? 1 : N > 1 ? 2 : 4;                   // samples whose sums are shuffled together
    // Blocks of a multiprocessor: as many as the registers of W2 and the sums leave room for, 64 each, 80 or 128.
    static constexpr int BLOCKS = sizeof(T) == 4 ? (N > 4 || V == 1 ? 2 : N == 1 ? 4 : 3) : N == 1 ? 3 : 2;
    static constexpr int STAGES = HAS_ASYNC_COPIES ? 2 : 1;
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
    int n, n_out, loss, team_bits, samples, given;
    T most;

    // Threads of a team, and which team of the block, and which thread of it this one is.
    __device__ __forceinline__ int team() const { return 1 << team_bits; }
    __device__ __forceinline__ int own_team() const { return int(threadIdx.x) >> team_bits; }
    __device__ __forceinline__ int lane() const { return int(threadIdx.x) & (team() - 1); }
};

// The shared memory of a block. A slot is a sample of a team.
template <typename T, int V, int N>
struct Room {
    static constexpr int STEP = Share<T, V, N>::P * THREADS * V;  // from a thread's share of a sample to that of the next
    static constexpr int LINE = N > 4 ? N + 4 : N;                // of dz: fewer lines begin in the same bank
    int slots, parts;  // parts: warps of a team, at least 1
    int z_line, known_line, stage_length;
    T* ring;   // (stages, samples, packs of a thread, threads, V): Z, then A
    T* dz;     // (slots, LINE)
    T* z;      // (parts, N, z_line) the warps' parts of the logits; odd lines, for the same reason
    T* known;  // (stages, slots, known_line): targets (N), weight, and logits (N) if they are given

    __device__ __forceinline__ explicit Room(const Problem<T>& p) {
        slots = (THREADS >> p.team_bits) * p.samples;
        parts = p.team_bits > 5 ? p.team() / 32 : 1;
        z_line = slots | 1;
        known_line = N + 1 + (p.given ? N : 0);
        stage_length = p.samples * STEP;
        ring = reinterpret_cast<T*>(shared_memory);
        dz = ring + Share<T, V, N>::STAGES * stage_length;
        z = dz + slots * LINE;
        known = z + parts * N * z_line;
        for (int i = threadIdx.x; i < slots * LINE; i += THREADS) dz[i] = 0;  // outputs that do not exist stay 0
    }

    // A thread's first pack in a stage.
    __device__ __forceinline__ T* share(int stage) const { return ring + stage * stage_length + int(threadIdx.x) * V; }

    __device__ __forceinline__ T* known_of(int stage, int slot) const { return known + (stage * slots + slot) * known_line; }
};

// Sums over `lanes` neighbouring lanes, a power of two, of HELD values each. Every step halves the values that a lane
// holds: it sends one half to the lane that keeps that half. The additions are those of a butterfly for each value. `first`
// becomes the index of the first value that the lane holds in the end, `held` their number.
template <int HELD, typename T, int R>
__device__ __forceinline__ void sum_over_lanes(T (&x)[R], int lanes, int& first, int& held) {
    held = HELD;
    if constexpr (HELD == 1) {
        for (int other = lanes / 2; other > 0; other /= 2) x[0] += __shfl_xor_sync(0xffffffff, x[0], other);
    } else {
        if (lanes == 1) return;
        const bool upper = threadIdx.x & (lanes / 2);
#pragma unroll
        for (int i = 0; i < HELD / 2; ++i) {
            const T low = x[i], high = x[i + HELD / 2];
            x[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffff, upper ? low : high, lanes / 2);
        }
        if (upper) first += HELD / 2;
        sum_over_lanes<HELD / 2>(x, lanes / 2, first, held);
    }
}

// A thread's units, and what stays in its registers.
template <typename T, int F, int V, int N>
struct Thread {
    static constexpr int K = Share<T, V, N>::K, P = Share<T, V, N>::P, G = Share<T, V, N>::G;
    static constexpr int PACK = Room<T, V, N>::STEP / P, HALVES = N > 8 ? 2 : 1;
    T b[K], w[K][N], dW2[K][N], db[K], db2[HALVES];

    __device__ __forceinline__ static int unit(const Problem<T>& p, int k) {
        return int(blockIdx.y) * p.team() * K + (k / V * p.team() + p.lane()) * V + k % V;
    }

    // How many units of its i-th pack exist.
    __device__ __forceinline__ static int count(const Problem<T>& p, int i) {
        const int first = unit(p, i * V);
        return first < p.n ? count_at<V>(first, p.n) : 0;
    }

    __device__ __forceinline__ void begin(const Problem<T>& p) {
#pragma unroll
        for (int half = 0; half < HALVES; ++half) db2[half] = 0;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            b[k] = p.b && unit(p, k) < p.n ? p.b[unit(p, k)] : T(0);
            db[k] = 0;
#pragma unroll
            for (int o = 0; o < N; ++o) {
                w[k][o] = unit(p, k) < p.n && o < p.n_out ? p.W2[unit(p, k) * p.n_out + o] : T(0);
                dW2[k][o] = 0;
            }
        }
    }

    // Starts the copies of a round: Z of the thread's units, and what is known of the samples whose outputs it computes.
    // Units that do not exist arrive as 0, and their A, whatever it is, meets weights of 0.
    __device__ __forceinline__ void fetch(const Problem<T>& p, const Room<T, V, N>& room, int stage, Index round) const {
        const Index first = round + p.own_team() * p.samples;
        const int here = p.m - first < p.samples ? int(p.m - first) : p.samples;
        T* share = room.share(stage);
        const T* from = p.Z + first * p.z_line;
#pragma unroll(N == 1 ? 4 / P : 1)
        for (int s = 0; s < here; ++s) {
#pragma unroll
            for (int i = 0; i < P; ++i) start_copy<V>(share + i * PACK, from + unit(p, i * V), count(p, i));
            share += Room<T, V, N>::STEP;
            from += p.z_line;
        }
        if (!p.Y) return;
#pragma unroll 1
        for (int slot = threadIdx.x; slot < room.slots && round + slot < p.m; slot += THREADS) {
            T* known = room.known_of(stage, slot);
            const Index sample = round + slot;
            if (p.weights) start_copy(known + N, p.weights + sample * p.weight_step);
#pragma unroll 1
            for (int o = 0; o < p.n_out; ++o) {
                start_copy(known + o, p.Y + o * p.y_line + sample * p.y_step);
                if (p.given) start_copy(known + N + 1 + o, p.logits + sample * p.n_out + o);
            }
        }
    }

    // A of G samples in place of Z, and W2ᵀ A over the units of a warp's lanes that are in the team.
    __device__ __forceinline__ void forward(const Problem<T>& p, const Room<T, V, N>& room, T* share, int slot) const {
        T z[G * N];
#pragma unroll
        for (int g = 0; g < G; ++g) {
#pragma unroll
            for (int o = 0; o < N; ++o) z[g * N + o] = 0;
#pragma unroll
            for (int i = 0; i < P; ++i) {
                T* place = share + g * Room<T, V, N>::STEP + i * PACK;
                Pack<T, V> a = load<T, V>(place, V);
#pragma unroll
                for (int j = 0; j < V; ++j) {
                    a.x[j] = activation<F>(a.x[j] + b[i * V + j]);
#pragma unroll
                    for (int o = 0; o < N; ++o) z[g * N + o] += w[i * V + j][o] * a.x[j];
                }
                if (p.Y) store<T, V>(place, a, V);
            }
        }
        if (p.given) return;
        const int lanes = p.team_bits < 5 ? p.team() : 32, lane = p.lane();
        int first = 0, held;
        sum_over_lanes<G * N>(z, lanes, first, held);
        if (lane & (lanes * held / (G * N) - 1) && lanes * held > G * N) return;  // another lane has the same sums
#pragma unroll
        for (int i = 0; i < (G * N > 8 ? G * N / 8 : 1); ++i)
            if (i < held)
                room.z[(lane / 32 * N + (first + i) % N) * room.z_line + slot + (first + i) / N] = z[i];
    }

    // Adds a sample to the sums, and writes its dZ.
    __device__ __forceinline__ void backward(const Problem<T>& p, const T* share, const T* slot_dz, T* row) {
        constexpr int W = N * sizeof(T) < 16 ? 1 : 16 / sizeof(T);
        T dz[N];
#pragma unroll
        for (int o = 0; o < N; o += W) {
            const Pack<T, W> some = load<T, W>(slot_dz + o, W);
#pragma unroll
            for (int j = 0; j < W; ++j) dz[o + j] = some.x[j];
        }
#pragma unroll
        for (int i = 0; i < P; ++i) {
            const Pack<T, V> a = load<T, V>(share + i * PACK, V);
            Pack<T, V> d = {};
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const int k = i * V + j;
#pragma unroll
                for (int o = 0; o < N; ++o) {
                    d.x[j] += w[k][o] * dz[o];
                    dW2[k][o] += a.x[j] * dz[o];
                }
                d.x[j] *= derivative<F>(a.x[j]);
                db[k] += d.x[j];
            }
            const int exist = count(p, i);
            // own: a sample is one team's, and its units one thread's each
            if (exist) store<T, V>(row + unit(p, i * V), d, exist);
        }
#pragma unroll
        for (int half = 0; half < HALVES; ++half)
            if (p.lane() + half * p.team() < N) db2[half] += slot_dz[p.lane() + half * p.team()];
    }
};

// The output layer of one sample, by one thread: its logits from the sums of the warps, and dz in their place.
template <typename T, int V, int N>
__device__ __forceinline__ void output_layer(const Problem<T>& p, const Room<T, V, N>& room, int stage, int slot, Index sample) {
    T* z = room.dz + slot * Room<T, V, N>::LINE;  // logits first, then A_{L-1}, then dz
    const T* known = room.known_of(stage, slot);
    T* logits = p.logits + (p.Y ? sample : sample + blockIdx.y * p.m) * p.n_out;
#pragma unroll 1
    for (int o = 0; o < p.n_out; ++o) {
        T logit = p.given ? known[N + 1 + o] : p.b2 && blockIdx.y == 0 ? p.b2[o] : T(0);
        if (!p.given)
#pragma unroll
            for (int part = 0; part < 8; ++part)
                if (part < room.parts) logit += room.z[(part * N + o) * room.z_line + slot];
        z[o] = logit;
        // own: where they are written, a sample of a tile is one block's
        if (!p.given) logits[o] = logit;
    }
    if (!p.Y) return;
    output(p.loss, z, p.n_out, p.most);
    const T weight = p.weights ? known[N] : T(1);
#pragma unroll 1
    for (int o = 0; o < p.n_out; ++o) z[o] = weight * output_error(p.loss, z[o], known[o]);
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
        const int u = own.unit(p, k);
        if (u >= p.n) continue;
        // own: the row is the block's, as all below; a unit is one thread's of a team, and the teams take turns
        if (p.b) row[u] = (first ? T(0) : row[u]) + own.db[k];
#pragma unroll
        for (int o = 0; o < N; ++o)
            // own: as above
            if (o < p.n_out) dW2[u * p.n_out + o] = (first ? T(0) : dW2[u * p.n_out + o]) + own.dW2[k][o];
    }
#pragma unroll
    for (int half = 0; half < Thread<T, F, V, N>::HALVES; ++half) {
        const int o = p.lane() + half * p.team();
        // own: as above
        if (p.b2 && blockIdx.y == 0 && o < p.n_out) db2[o] = (first ? T(0) : db2[o]) + own.db2[half];
    }
}

// The block's sums into its row of `partial`: several teams add theirs in shared memory, one after the other.
template <typename T, int F, int V, int N>
__device__ __forceinline__ void write_sums(const Problem<T>& p, const Thread<T, F, V, N>& own) {
    const int length = row_length(p), teams = THREADS >> p.team_bits;
    T* row = p.partial + Index(blockIdx.x) * length;
    T* shared = reinterpret_cast<T*>(shared_memory);
    if (teams == 1) {
        add_to_row(p, own, row, true);
        return;
    }
    for (int team = 0; team < teams; ++team) {
        __syncthreads();
        if (team == p.own_team()) add_to_row(p, own, shared, team == 0);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < length; i += THREADS) row[i] = shared[i];
}

template <typename T, int F, int V, int N>
__device__ __forceinline__ void hidden_layer(const Problem<T>& p) {
    constexpr int G = Share<T, V, N>::G, STAGES = Share<T, V, N>::STAGES, STEP = Room<T, V, N>::STEP;
    const Room<T, V, N> room(p);
    Thread<T, F, V, N> own;
    own.begin(p);
    const int team_slot = p.own_team() * p.samples;
    const Index rounds = Index(gridDim.x) * room.slots;
    int stage = 0;
    if (STAGES > 1) {
        own.fetch(p, room, 0, Index(blockIdx.x) * room.slots);
        commit_copies();
    }
    // Every thread of the block goes through the same rounds: barriers and shuffles need them all.
#pragma unroll 1
    for (Index round = Index(blockIdx.x) * room.slots; round < p.m; round += rounds) {
        // Into the stage that this thread has left a round ago.
        own.fetch(p, room, (stage + STAGES - 1) % STAGES, round + (STAGES - 1) * rounds);
        commit_copies();
        wait_for_copies<STAGES - 1>();
        T* share = room.share(stage);
#pragma unroll 1
        for (int s = 0; s < p.samples; s += G) own.forward(p, room, share + s * STEP, team_slot + s);
        __syncthreads();
        for (int slot = threadIdx.x; slot < room.slots && round + slot < p.m; slot += THREADS)
            output_layer(p, room, stage, slot, round + slot);
        __syncthreads();
        if (p.Y) {
            const Index first = round + team_slot;
            const int here = p.m - first < p.samples ? int(p.m - first) : p.samples;
#pragma unroll 1
            for (int s = 0; s < here; ++s)
                own.backward(p, share + s * STEP, room.dz + (team_slot + s) * room.LINE, p.Z + (first + s) * p.z_line);
        }
        stage = (stage + 1) % STAGES;
    }
    if (p.Y) write_sums(p, own);
}

#define HIDDEN_LAYER_N(N, F, f, T, t, V, layout)                                                                    \
    extern "C" __global__ void                                                                                      \
    __launch_bounds__(THREADS, Share<T, V, N>::BLOCKS) hidden_layer_##N##_##f##_##t##_##layout(                     \
        T* Z, Index z_line, const T* b, const T* W2, const T* b2, const T* Y, Index y_line, Index y_step,           \
        const T* weights, Index weight_step, T* logits, T* partial, Index m, int n, int n_out, int loss,            \
        int team_bits, int samples, int given, T most) {                                                            \
        hidden_layer<T, F, V, N>({Z, z_line, b, W2, b2, Y, y_line, y_step, weights, weight_step, logits, partial,   \
                                  m, n, n_out, loss, team_bits, samples, given, most});                             \
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
