// Products on the chip: a warp's tile of C += A B, its operands in shared memory, C in the registers of its lanes.
//
// Lane 4 g + q has ROWS rows, and COLUMNS adjacent columns from q COLUMNS on: c[i][j]. This is the distribution of C on
// tensor cores; the assignment to rows and columns of the tile is free. `by_rows` reads A along its depth (a row's numbers lie
// side by side), from rows g + 8 i; `by_columns` across it (those of a step of the depth do), from rows row(g, i).
// `by_transpose` is `by_rows` with B along its depth as well, of the columns transposed_column(q, j). Depths are multiples
// of 8.
//
// TF32 products round their operands with ROUNDS; else the caller has done so (`round_to_tf32`). TF32X3 products split
// theirs where they load them: x = high + low to within 2^-22 |x|, and A B = low high + high low + high high, the small
// terms first. Tensor cores cut off what a sum has no room for. A sum of many products would lose a little at every step,
// always toward zero. Therefore the sum over 8 steps of the depth begins at 0 and is added to C by float32 additions,
// which round to nearest. An infinite operand makes NaN. Of operands below 1e-34 the low part may be lost.
//
// The pitches, in elements, and the rows are such that the lanes of an access meet in no bank of shared memory, or, with 4
// columns or 2 rows, in pairs.

#include "arithmetics.cuh"

template <typename T, Arithmetic KIND>
struct Pitch {
    static constexpr bool TENSOR_CORES = KIND != STRICT;
    static constexpr int PAD = 16 / sizeof(T);
    static constexpr int of_A(int columns) { return columns + PAD; }
    static constexpr int of_left_B(int columns) { return columns + (TENSOR_CORES ? 2 : 0); }     // beside A in rows
    static constexpr int of_right_B(int columns) { return columns + (TENSOR_CORES ? 2 : PAD); }  // beside A in columns
};

// The i-th row of lane 4 g + q, of ROWS, in `by_columns`: row(g, 0) + row(0, i).
template <int ROWS>
__device__ __forceinline__ int row(int g, int i) {
    return ROWS < 4 ? g + 8 * i : g % 4 + g / 4 * 16 + i % 4 * 4 + i / 4 * 32;
}

__device__ __forceinline__ float round_to_tf32(float x) {
#ifndef __CUDA_ARCH__
    return tensor_core_round(x);
#elif __CUDA_ARCH__ >= 800
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#endif
}

constexpr unsigned BELOW_TF32 = 0x1fff, HALF_OF_TF32 = 0x1000;  // the bits of a float32 that TF32 has not; half of its last
__device__ __forceinline__ float cut_to_tf32(unsigned bits) { return __uint_as_float(bits & ~BELOW_TF32); }

// d += a b for a (16, 8), b (8, 8), in fragments: a = (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4); b = (q, g), (q + 4, g);
// d = (g, 2 q), (g, 2 q + 1), (g + 8, 2 q), (g + 8, 2 q + 1).
__device__ __forceinline__ void multiply_tf32(float& d0, float& d1, float& d2, float& d3, const float (&a)[4],
                                              const float (&b)[2]) {
#ifndef __CUDA_ARCH__
    tensor_core_multiply(d0, d1, d2, d3, a, b);
#elif __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

// N operands of a lane, as the tensor cores take them.
template <Arithmetic KIND, int N>
struct Operands {
    float high[N], low[N];  // TF32 has no low part

    template <bool ROUNDS>
    __device__ __forceinline__ void put(int i, float x) {
        if constexpr (KIND == TF32X3) {
            // By integers: cvt takes three to four instructions, because of infinity and NaN. An infinite x, or one whose
            // high part is, has a low part of infinity or NaN, and a NaN has one of NaN.
            high[i] = cut_to_tf32(__float_as_uint(x) + HALF_OF_TF32);
            low[i] = cut_to_tf32(__float_as_uint(x - high[i]));
        } else {
            high[i] = ROUNDS ? round_to_tf32(x) : x;
        }
    }
};

// d += a b, as `multiply_tf32`.
template <Arithmetic KIND>
__device__ __forceinline__ void add_product(float& d0, float& d1, float& d2, float& d3, const Operands<KIND, 4>& a,
                                            const Operands<KIND, 2>& b) {
    if constexpr (KIND == TF32) {
        multiply_tf32(d0, d1, d2, d3, a.high, b.high);
    } else {
        float e0 = 0, e1 = 0, e2 = 0, e3 = 0;
        multiply_tf32(e0, e1, e2, e3, a.low, b.high);
        multiply_tf32(e0, e1, e2, e3, a.high, b.low);
        multiply_tf32(e0, e1, e2, e3, a.high, b.high);
        d0 += e0, d1 += e1, d2 += e2, d3 += e3;
    }
}

template <typename T, int ROWS, int COLUMNS, Arithmetic KIND>
struct Product;

template <typename T, int ROWS, int COLUMNS>
struct Product<T, ROWS, COLUMNS, STRICT> {
    static constexpr int V = 16 / sizeof(T);

    static __device__ __forceinline__ void add_step(T (&c)[ROWS][COLUMNS], const T (&a)[ROWS], const T* b) {
        T row[COLUMNS];
#pragma unroll
        for (int j = 0; j < COLUMNS; j += V) {
            const Pack<T, V> pack = load<T, V>(b + j, V);
#pragma unroll
            for (int v = 0; v < V; ++v) row[j + v] = pack.x[v];
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) c[i][j] += a[i] * row[j];
    }

    // A (row, k) at A[row a_pitch + k]; B (k, column) at B[k b_pitch + column].
    template <bool ROUNDS = false>
    static __device__ __forceinline__ void by_rows(T (&c)[ROWS][COLUMNS], const T* A, int a_pitch, const T* B, int b_pitch,
                                                   int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const T *own_a = A + g * a_pitch, *own_b = B + q * COLUMNS;
#pragma unroll 1
        for (int k = 0; k < depth; k += V, own_a += V, own_b += V * b_pitch) {
            Pack<T, V> packs[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) packs[i] = load<T, V>(own_a + 8 * i * a_pitch, V);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                T a[ROWS];
#pragma unroll
                for (int i = 0; i < ROWS; ++i) a[i] = packs[i].x[v];
                add_step(c, a, own_b + v * b_pitch);
            }
        }
    }

    static __device__ __forceinline__ int transposed_column(int q, int j) { return q + 4 * j; }

    // A as in `by_rows`; B (k, column) at B[column b_pitch + k].
    template <bool ROUNDS = false>
    static __device__ __forceinline__ void by_transpose(T (&c)[ROWS][COLUMNS], const T* A, int a_pitch, const T* B,
                                                        int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const T *own_a = A + g * a_pitch, *own_b = B + q * b_pitch;
#pragma unroll 1
        for (int k = 0; k < depth; k += V, own_a += V, own_b += V) {
            Pack<T, V> rows[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) rows[i] = load<T, V>(own_a + 8 * i * a_pitch, V);
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                const Pack<T, V> column = load<T, V>(own_b + 4 * j * b_pitch, V);
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
#pragma unroll
                    for (int v = 0; v < V; ++v) c[i][j] += rows[i].x[v] * column.x[v];
            }
        }
    }

    // A (row, k) at A[k a_pitch + row].
    template <bool ROUNDS = false>
    static __device__ __forceinline__ void by_columns(T (&c)[ROWS][COLUMNS], const T* A, int a_pitch, const T* B,
                                                      int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const T *own_a = A + row<ROWS>(g, 0), *own_b = B + q * COLUMNS;
#pragma unroll 1
        for (int k = 0; k < depth; k += 4, own_a += 4 * a_pitch, own_b += 4 * b_pitch)
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                T a[ROWS];
#pragma unroll
                for (int i = 0; i < ROWS; ++i) a[i] = own_a[step * a_pitch + row<ROWS>(0, i)];
                add_step(c, a, own_b + step * b_pitch);
            }
    }
};

// On tensor cores; T is float.
template <typename T, int ROWS, int COLUMNS, Arithmetic KIND>
struct Product {
    using Rows = Operands<KIND, 4>[ROWS / 2];  // of A, in pairs

    // 8 steps of the depth: the lane's rows of B are q and q + 4.
    template <bool ROUNDS>
    static __device__ __forceinline__ void add_steps(float (&c)[ROWS][COLUMNS], const Rows& a, const float* b0, const float* b1) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 2) {
            Operands<KIND, 2> b;
            b.template put<ROUNDS>(0, b0[j]);
            b.template put<ROUNDS>(1, b1[j]);
#pragma unroll
            for (int i = 0; i < ROWS; i += 2)
                add_product<KIND>(c[i][j], c[i][j + 1], c[i + 1][j], c[i + 1][j + 1], a[i / 2], b);
        }
    }

    template <bool ROUNDS>
    static __device__ __forceinline__ void read_rows(Rows& a, const float* own_a, int a_pitch) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            a[i / 2].template put<ROUNDS>(i % 2, own_a[8 * i * a_pitch]);
            a[i / 2].template put<ROUNDS>(i % 2 + 2, own_a[8 * i * a_pitch + 4]);
        }
    }

    // The column of B that lane 4 g + q feeds to the tensor cores, of the first pair of columns.
    static __device__ __forceinline__ int column(int g) { return g / 2 * COLUMNS + g % 2; }

    template <bool ROUNDS = false>
    static __device__ __forceinline__ void by_rows(float (&c)[ROWS][COLUMNS], const float* A, int a_pitch, const float* B,
                                                   int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const float *own_a = A + g * a_pitch + q, *b = B + q * b_pitch + column(g);
#pragma unroll 1
        for (int k = 0; k < depth; k += 8, own_a += 8, b += 8 * b_pitch) {
            Rows a;
            read_rows<ROUNDS>(a, own_a, a_pitch);
            add_steps<ROUNDS>(c, a, b, b + 4 * b_pitch);
        }
    }

    static __device__ __forceinline__ int transposed_column(int q, int j) { return 8 * (j / 2) + 2 * q + j % 2; }

    template <bool ROUNDS = false>
    static __device__ __forceinline__ void by_transpose(float (&c)[ROWS][COLUMNS], const float* A, int a_pitch,
                                                        const float* B, int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const float *own_a = A + g * a_pitch + q, *own_b = B + g * b_pitch + q;
#pragma unroll 1
        for (int k = 0; k < depth; k += 8, own_a += 8, own_b += 8) {
            Rows a;
            read_rows<ROUNDS>(a, own_a, a_pitch);
#pragma unroll
            for (int j = 0; j < COLUMNS; j += 2) {
                const float* column = own_b + 4 * j * b_pitch;
                Operands<KIND, 2> b;
                b.template put<ROUNDS>(0, column[0]);
                b.template put<ROUNDS>(1, column[4]);
#pragma unroll
                for (int i = 0; i < ROWS; i += 2)
                    add_product<KIND>(c[i][j], c[i][j + 1], c[i + 1][j], c[i + 1][j + 1], a[i / 2], b);
            }
        }
    }

    template <bool ROUNDS = false>
    static __device__ __forceinline__ void by_columns(float (&c)[ROWS][COLUMNS], const float* A, int a_pitch, const float* B,
                                                      int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        const float *own_a = A + q * a_pitch + row<ROWS>(g, 0), *b = B + q * b_pitch + column(g);
#pragma unroll 1
        for (int k = 0; k < depth; k += 8, own_a += 8 * a_pitch, b += 8 * b_pitch) {
            Rows a;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                a[i / 2].template put<ROUNDS>(i % 2, own_a[row<ROWS>(0, i)]);
                a[i / 2].template put<ROUNDS>(i % 2 + 2, own_a[4 * a_pitch + row<ROWS>(0, i)]);
            }
            add_steps<ROUNDS>(c, a, b, b + 4 * b_pitch);
        }
    }
};
