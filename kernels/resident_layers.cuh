// The layers of a network on a tile of samples, parameters and activations in shared memory: the passes of resident.cu.
//
// A matrix has a row per sample, or, for W and its gradient, a row per input. Columns are filled up with zeros to a multiple
// of 16, inputs to one of 8: the products of the warps need no bounds then. What is filled up of W and b stays 0: its
// gradient is never written. A network whose last layer has at most 4 outputs has that layer's W and dz without filling (`narrow`).

#include "losses.cuh"
#include "tile_activations.cuh"
#include "tile_products.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int SIDE = 4, ROWS = 8 * SIDE, COLUMNS = 4 * SIDE;  // a warp's tile of a product; SIDE x SIDE numbers of a thread
constexpr int NARROW = 4;                                     // outputs of a narrow layer, at most

template <typename T, Arithmetic KIND>
struct Layers {
    using Tile = Product<T, SIDE, SIDE, KIND>;
    const Plan& plan;
    const Layer* const layers;
    T* const numbers;  // shared memory: the plan's offsets count from here
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;

    __device__ __forceinline__ T* at(int offset) const { return numbers + offset; }

    // f(A W + b), or A W + b in the last layer, into the layer's Z.
    __device__ __forceinline__ void forward(const Layer& l, const T* A, int activation, bool last) const {
        if (l.narrow) return forward_narrow(l, A);
        const int across = l.columns / COLUMNS, tiles = plan.samples / ROWS * across;
#pragma unroll 1
        for (int tile = warp; tile < tiles; tile += WARPS) {
            const int first = tile / across * ROWS, unit = tile % across * COLUMNS + SIDE * q;
            T c[SIDE][SIDE] = {};
            Tile::template by_rows<true>(c, A + first * l.a_pitch, l.a_pitch, at(l.W) + unit - SIDE * q, l.pitch, l.rows);
#pragma unroll
            for (int j = 0; j < SIDE; ++j) {
                const T b = l.b < 0 ? T(0) : at(l.b)[unit + j];
#pragma unroll
                for (int i = 0; i < SIDE; ++i) c[i][j] += b;
            }
            if (!last) activate<KIND>(c, activation);
#pragma unroll
            for (int i = 0; i < SIDE; ++i)
#pragma unroll
                for (int j = 0; j < SIDE; ++j) at(l.Z)[(first + g + 8 * i) * l.z_pitch + unit + j] = c[i][j];
        }
    }

    // A sample is that of 8 lanes, which have every eighth input each.
    __device__ __forceinline__ void forward_narrow(const Layer& l, const T* A) const {
        const int part = lane % 8;
#pragma unroll 1
        for (int s = warp * 4 + lane / 8; s < plan.samples; s += WARPS * 4) {
            T z[NARROW] = {};
#pragma unroll 1
            for (int k = part; k < l.rows; k += 8) {
                const T a = A[s * l.a_pitch + k];
#pragma unroll
                for (int o = 0; o < NARROW; ++o)
                    if (o < l.n_out) z[o] += a * at(l.W)[k * l.pitch + o];
            }
#pragma unroll
            for (int o = 0; o < NARROW; ++o) {
                for (int lanes = 1; lanes < 8; lanes *= 2) z[o] += __shfl_xor_sync(0xffffffff, z[o], lanes);
                if (part == o && o < l.n_out) at(l.Z)[s * l.z_pitch + o] = z[o] + (l.b < 0 ? T(0) : at(l.b)[o]);
            }
        }
    }

    // dW = Aᵀ dZ and db, on top of what the tiles before it in the batch have added.
    __device__ __forceinline__ void add_gradients(const Layer& l, const T* A, const T* dZ, bool begins) const {
        if (l.narrow) return add_narrow(l, A, dZ, begins);
        const int across = l.columns / COLUMNS, tiles = (l.rows + ROWS - 1) / ROWS * across;
#pragma unroll 1
        for (int tile = warp; tile < tiles; tile += WARPS) {
            const int first = tile / across * ROWS, unit = tile % across * COLUMNS;
            T c[SIDE][SIDE] = {};
            Tile::template by_columns<true>(c, A + first, l.a_pitch, dZ + unit, l.z_pitch, plan.samples);
#pragma unroll
            for (int i = 0; i < SIDE; ++i) {
                const int k = first + row<SIDE>(g, i);
                if (k >= l.n_in) continue;  // A's columns from there on are f(0), or no numbers of A
                T* dW = at(plan.gradient + l.W + k * l.pitch + unit + SIDE * q);
#pragma unroll
                for (int j = 0; j < SIDE; ++j) dW[j] = begins ? c[i][j] : dW[j] + c[i][j];
            }
        }
        if (l.b < 0) return;
        // By the warps that have the fewest tiles.
#pragma unroll 1
        for (int unit = THREADS - 1 - int(threadIdx.x); unit < l.columns; unit += THREADS) {
            T db = begins ? T(0) : at(plan.gradient + l.b)[unit];
#pragma unroll 8
            for (int s = 0; s < plan.samples; ++s) db += dZ[s * l.z_pitch + unit];
            at(plan.gradient + l.b)[unit] = db;
        }
    }

    // A lane has every fourth sample of an input.
    __device__ __forceinline__ void add_narrow(const Layer& l, const T* A, const T* dZ, bool begins) const {
        const int part = lane / 8;
#pragma unroll 1
        for (int first = warp * 8; first < l.rows; first += WARPS * 8) {
            const int k = first + lane % 8;
            T dw[NARROW] = {};
#pragma unroll 1
            for (int s = part; s < plan.samples; s += 4) {
                const T a = A[s * l.a_pitch + k];
#pragma unroll
                for (int o = 0; o < NARROW; ++o)
                    if (o < l.n_out) dw[o] += a * dZ[s * l.z_pitch + o];
            }
#pragma unroll
            for (int o = 0; o < NARROW; ++o) {
                dw[o] += __shfl_xor_sync(0xffffffff, dw[o], 8);
                dw[o] += __shfl_xor_sync(0xffffffff, dw[o], 16);
                if (part != o || o >= l.n_out || k >= l.n_in) continue;
                T* dW = at(plan.gradient + l.W + k * l.pitch + o);
                *dW = begins ? dw[o] : *dW + dw[o];
            }
        }
        if (l.b < 0 || warp != WARPS - 1) return;
        for (int o = 0; o < l.n_out; ++o) {
            T db = 0;
            for (int s = lane; s < plan.samples; s += 32) db += dZ[s * l.z_pitch + o];
            for (int lanes = 16; lanes; lanes /= 2) db += __shfl_xor_sync(0xffffffff, db, lanes);
            T* sum = at(plan.gradient + l.b) + o;
            if (lane == 0) *sum = begins ? db : *sum + db;
        }
    }

    // (dZ Wᵀ) ⊙ f'(A) over A, the activations of the layer below.
    __device__ __forceinline__ void backward(const Layer& l, T* A, const T* dZ, int activation) const {
        if (l.narrow) return backward_narrow(l, A, dZ, activation);
        const int across = l.rows / COLUMNS, tiles = plan.samples / ROWS * across;
#pragma unroll 1
        for (int tile = warp; tile < tiles; tile += WARPS) {
            const int first = tile / across * ROWS, unit = tile % across * COLUMNS;
            T c[SIDE][SIDE] = {}, a[SIDE][SIDE];
            Tile::template by_transpose<true>(c, dZ + first * l.z_pitch, l.z_pitch, at(l.W) + unit * l.pitch, l.pitch,
                                              l.columns);
            T* own = A + (first + g) * l.a_pitch + unit;
#pragma unroll
            for (int i = 0; i < SIDE; ++i)
#pragma unroll
                for (int j = 0; j < SIDE; ++j) a[i][j] = own[8 * i * l.a_pitch + Tile::transposed_column(q, j)];
            derive(a, activation);
#pragma unroll
            for (int i = 0; i < SIDE; ++i)
#pragma unroll
                for (int j = 0; j < SIDE; ++j) own[8 * i * l.a_pitch + Tile::transposed_column(q, j)] = c[i][j] * a[i][j];
        }
    }

    __device__ __forceinline__ void backward_narrow(const Layer& l, T* A, const T* dZ, int activation) const {
#pragma unroll 1
        for (int s = warp; s < plan.samples; s += WARPS)
#pragma unroll 1
            for (int k = lane; k < l.rows; k += 32) {
                T d = 0, a[1][1] = {{A[s * l.a_pitch + k]}};
                for (int o = 0; o < l.n_out; ++o) d += dZ[s * l.z_pitch + o] * at(l.W)[k * l.pitch + o];
                derive(a, activation);
                A[s * l.a_pitch + k] = d * a[0][0];
            }
    }
};
