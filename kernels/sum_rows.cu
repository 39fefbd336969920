// Sums over rows: out[i] = Σ over rows of x[row, i].
//
//   x (rows, n) contiguous, out (n,)
//
// The blocks blockIdx.y sum a range of `range` rows each and write a row of `out` each: (gridDim.y, n). Many rows are summed
// in two launches. 8 threads share an element. All sums have a fixed order: the same bits every time.
//
// Bytes moved, in elements: rows n (x read), n (out written). Flops: rows n.

#include "common.cuh"

constexpr int ALONG = 32, OVER = 8;  // threads of a block along a row and over the rows, as sums.py starts it

template <typename T>
__device__ __forceinline__ void sum_rows(const T* x, Index rows, Index range, Index count, T* out) {
    T* shared = reinterpret_cast<T*>(shared_memory);
    const Index i = blockIdx.x * Index(ALONG) + threadIdx.x;
    const Index first = blockIdx.y * range, end = first + range < rows ? first + range : rows;
    T sum = 0;
    if (i < count)
#pragma unroll 4
        for (Index row = first + threadIdx.y; row < end; row += OVER) sum += x[row * count + i];
    shared[threadIdx.y * ALONG + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || i >= count) return;
    for (int y = 1; y < OVER; ++y) sum += shared[y * ALONG + threadIdx.x];
    out[blockIdx.y * count + i] = sum;
}

#define SUM_ROWS(T, t)                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                      \
        sum_rows_##t(const T* x, Index rows, Index range, Index count, T* out) {                                            \
        sum_rows<T>(x, rows, range, count, out);                                                                      \
    }
SUM_ROWS(float, float32)
SUM_ROWS(double, float64)
