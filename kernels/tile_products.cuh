// Products on the chip: a warp's tile of C += A B, its operands in shared memory, C in the registers of its lanes.
//
// Lane 4 g + q has ROWS rows, and COLUMNS adjacent columns from q COLUMNS on: c[i][j]. This is the distribution of C on
// tensor cores; the assignment to rows and columns of the tile is free. `by_rows` reads A along its depth (a row's numbers lie
// side by side), from rows g + 8 i; `by_columns` across it (those of a step of the depth do), from rows row(g, i).
// `by_transpose` is `by_rows` with B along its depth as well, of the columns transposed_column(q, j). Depths are multiples
// of 8.
//
// Strict products have the dtype's own arithmetic. TF32 ones take operands of 10 bits behind the point and add in float32;
// they need sm_80. They round the operands with ROUNDS; else the caller has done so (`round_to_tf32`). The pitches, in elements, and the rows are such that the
// lanes of an access meet in no bank of shared memory, or, with 4 columns or 2 rows, in pairs.

template <typename T, bool TF32>
struct Pitch {
    static constexpr int PAD = 16 / sizeof(T);
    static constexpr int of_A(int columns) { return columns + PAD; }
    static constexpr int of_left_B(int columns) { return columns + (TF32 ? 2 : 0); }     // beside A in rows
    static constexpr int of_right_B(int columns) { return columns + (TF32 ? 2 : PAD); }  // beside A in columns
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

template <typename T, int ROWS, int COLUMNS, bool TF32>
struct Product;

template <typename T, int ROWS, int COLUMNS>
struct Product<T, ROWS, COLUMNS, false> {
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

template <int ROWS, int COLUMNS>
struct Product<float, ROWS, COLUMNS, true> {
    template <bool ROUNDS>
    static __device__ __forceinline__ float operand(float x) {
        return ROUNDS ? round_to_tf32(x) : x;
    }

    // 8 steps of the depth: the lane's rows of B are q and q + 4.
    template <bool ROUNDS>
    static __device__ __forceinline__ void add_steps(float (&c)[ROWS][COLUMNS], const float (&a)[ROWS / 2][4], const float* b0,
                                                     const float* b1) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 2) {
            const float b[2] = {operand<ROUNDS>(b0[j]), operand<ROUNDS>(b1[j])};
#pragma unroll
            for (int i = 0; i < ROWS; i += 2)
                multiply_tf32(c[i][j], c[i][j + 1], c[i + 1][j], c[i + 1][j + 1], a[i / 2], b);
        }
    }

    template <bool ROUNDS>
    static __device__ __forceinline__ void read_rows(float (&a)[ROWS / 2][4], const float* own_a, int a_pitch) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            a[i / 2][i % 2] = operand<ROUNDS>(own_a[8 * i * a_pitch]);
            a[i / 2][i % 2 + 2] = operand<ROUNDS>(own_a[8 * i * a_pitch + 4]);
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
            float a[ROWS / 2][4];
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
            float a[ROWS / 2][4];
            read_rows<ROUNDS>(a, own_a, a_pitch);
#pragma unroll
            for (int j = 0; j < COLUMNS; j += 2) {
                const float* column = own_b + 4 * j * b_pitch;
                const float b[2] = {operand<ROUNDS>(column[0]), operand<ROUNDS>(column[4])};
#pragma unroll
                for (int i = 0; i < ROWS; i += 2)
                    multiply_tf32(c[i][j], c[i][j + 1], c[i + 1][j], c[i + 1][j + 1], a[i / 2], b);
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
            float a[ROWS / 2][4];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                a[i / 2][i % 2] = operand<ROUNDS>(own_a[row<ROWS>(0, i)]);
                a[i / 2][i % 2 + 2] = operand<ROUNDS>(own_a[4 * a_pitch + row<ROWS>(0, i)]);
            }
            add_steps<ROUNDS>(c, a, b, b + 4 * b_pitch);
        }
    }
};
