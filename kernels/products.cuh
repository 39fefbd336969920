// Products on the chip: a warp's tile of C += A B, its operands in shared memory, C in the registers of its lanes.
//
// Lane 4 g + q has the rows g + 8 i (i < ROWS) and COLUMNS columns side by side from q COLUMNS on: c[i][j]. This is how
// the tensor cores hand out C, but for the order of the columns, which is free. A is read along its depth ("rows": a
// row's numbers lie side by side) or across it ("columns": those of a step of the depth do). Depths are multiples of 8.
//
// Strict products have the dtype's own arithmetic. TF32 ones take operands of 10 bits behind the point, which the caller
// rounds (`round_to_tf32`), and add in float32; they need sm_80. Pitches, in elements, such that the lanes of an access
// meet in no bank of shared memory:

template <typename T, bool TF32>
struct Pitch {
    static constexpr int PAD = 16 / sizeof(T);
    static constexpr int of_A(int columns) { return columns + (TF32 ? 8 : PAD); }
    static constexpr int of_left_B(int columns) { return columns + (TF32 ? 1 : 0); }   // beside A in rows
    static constexpr int of_right_B(int columns) { return columns + (TF32 ? 2 : PAD); }  // beside A in columns
};

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
    static __device__ __forceinline__ void by_rows(T (&c)[ROWS][COLUMNS], const T* A, int a_pitch, const T* B, int b_pitch,
                                                   int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll 1
        for (int k = 0; k < depth; k += V) {
            Pack<T, V> packs[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) packs[i] = load<T, V>(A + (g + 8 * i) * a_pitch + k, V);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                T a[ROWS];
#pragma unroll
                for (int i = 0; i < ROWS; ++i) a[i] = packs[i].x[v];
                add_step(c, a, B + (k + v) * b_pitch + q * COLUMNS);
            }
        }
    }

    // A (row, k) at A[k a_pitch + row].
    static __device__ __forceinline__ void by_columns(T (&c)[ROWS][COLUMNS], const T* A, int a_pitch, const T* B,
                                                      int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll 2
        for (int k = 0; k < depth; ++k) {
            T a[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) a[i] = A[k * a_pitch + g + 8 * i];
            add_step(c, a, B + k * b_pitch + q * COLUMNS);
        }
    }
};

template <int ROWS, int COLUMNS>
struct Product<float, ROWS, COLUMNS, true> {
    // 8 steps of the depth: row k of B is first + k for k = q and k = q + 4, or 2 q and 2 q + 1, as A has them.
    static __device__ __forceinline__ void add_steps(float (&c)[ROWS][COLUMNS], const float (&a)[ROWS / 2][4], const float* b0,
                                                     const float* b1) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 2) {
            const float b[2] = {b0[j], b1[j]};
#pragma unroll
            for (int i = 0; i < ROWS; i += 2)
                multiply_tf32(c[i][j], c[i][j + 1], c[i + 1][j], c[i + 1][j + 1], a[i / 2], b);
        }
    }

    // The column of B that lane 4 g + q feeds to the tensor cores, of the first pair of columns.
    static __device__ __forceinline__ int column(int g) { return g / 2 * COLUMNS + g % 2; }

    static __device__ __forceinline__ void by_rows(float (&c)[ROWS][COLUMNS], const float* A, int a_pitch, const float* B,
                                                   int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll 1
        for (int k = 0; k < depth; k += 8) {
            float a[ROWS / 2][4];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const Pack<float, 2> pack = load<float, 2>(A + (g + 8 * i) * a_pitch + k + 2 * q, 2);
                a[i / 2][i % 2] = pack.x[0];
                a[i / 2][i % 2 + 2] = pack.x[1];
            }
            const float* b = B + (k + 2 * q) * b_pitch + column(g);
            add_steps(c, a, b, b + b_pitch);
        }
    }

    static __device__ __forceinline__ void by_columns(float (&c)[ROWS][COLUMNS], const float* A, int a_pitch, const float* B,
                                                      int b_pitch, int depth) {
        const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll 1
        for (int k = 0; k < depth; k += 8) {
            float a[ROWS / 2][4];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                a[i / 2][i % 2] = A[(k + q) * a_pitch + g + 8 * i];
                a[i / 2][i % 2 + 2] = A[(k + q + 4) * a_pitch + g + 8 * i];
            }
            const float* b = B + (k + q) * b_pitch + column(g);
            add_steps(c, a, b, b + 4 * b_pitch);
        }
    }
};
