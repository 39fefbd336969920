// The samples of a resident network, tile by tile: which ones come next, and their copies to shared memory.

#include "async_copies.cuh"

// Samples that a block works on at a time: `start` is the place in its batch, of `size` samples. In an epoch, the batches to
// train on come first, then those of the validation samples.
struct Samples {
    int epoch, batch, start, size;
};

template <typename T>
struct Tiles {
    const Job<T>& job;
    const Plan& plan;
    T* const numbers;  // shared memory: the plan's offsets count from here
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    __device__ __forceinline__ T* X(int buffer) const { return numbers + plan.X + buffer * plan.x_size; }
    __device__ __forceinline__ T* Y(int buffer) const { return numbers + plan.Y + buffer * plan.samples * plan.n_out; }
    __device__ __forceinline__ T* weights(int buffer) const { return numbers + plan.weights + buffer * plan.samples; }
    __device__ __forceinline__ Index* rows(int buffer) const {
        return reinterpret_cast<Index*>(numbers + plan.rows) + buffer * plan.samples;
    }

    // Batches of an epoch.
    __device__ __forceinline__ int batches() const { return int(job.train.batches + job.validation.batches); }
    __device__ __forceinline__ bool trains(int batch) const { return batch < job.train.batches; }
    __device__ __forceinline__ bool trains(const Samples& s) const { return trains(s.batch); }
    __device__ __forceinline__ const Source<T>& source(int batch) const {
        return trains(batch) ? job.train : job.validation;
    }
    // The place of the batch's first sample among the source's.
    __device__ __forceinline__ Index first_of(int batch) const {
        return (batch - (trains(batch) ? 0 : job.train.batches)) * source(batch).batch_size;
    }
    __device__ __forceinline__ int size_of(int batch) const {
        return int(min(source(batch).batch_size, source(batch).samples - first_of(batch)));
    }
    __device__ __forceinline__ Samples after(Samples s) const {
        s.start += plan.samples;
        if (s.start < s.size) return s;
        s.start = 0;
        s.batch += 1;
        if (s.batch >= batches()) s.batch = 0, s.epoch += 1;
        s.size = size_of(s.batch);
        return s;
    }
    __device__ __forceinline__ bool exists(const Samples& s) const {
        return s.epoch * batches() + s.batch < job.first_batch + job.batches;
    }
    __device__ __forceinline__ int count(const Samples& s) const { return min(plan.samples, s.size - s.start); }

    // Starts to copy the numbers of the samples.
    __device__ __forceinline__ void fetch_rows(const Samples& s, int buffer) const {
        if (!exists(s)) return;
        const Source<T>& from = source(s.batch);
        const Index first = first_of(s.batch) + s.start;
        for (int i = threadIdx.x; i < count(s); i += THREADS) {
            if (from.order) start_copy(rows(buffer) + i, from.order + s.epoch * from.order_step + first + i);
            else rows(buffer)[i] = first + i;
        }
    }

    // Starts to copy the samples, whose numbers have arrived. Those that a short tile lacks are 0.
    __device__ __forceinline__ void fetch(const Samples& s, int buffer) const {
        if (!exists(s)) return;
        const Source<T>& from = source(s.batch);
        const int samples = count(s);
#pragma unroll 1
        for (int i = warp; i < plan.samples; i += WARPS) {
            T* x = X(buffer) + i * plan.x_pitch;
            const Index row = i < samples ? rows(buffer)[i] : 0;
#pragma unroll 1
            for (int k = lane; k < plan.n_in; k += 32) {
                if (i < samples) start_copy(x + k, from.X + row * from.x_line + k * from.x_step);
                else x[k] = 0;
            }
            if (i >= samples) continue;
#pragma unroll 1
            for (int o = lane; o < plan.n_out; o += 32)
                start_copy(Y(buffer) + i * plan.n_out + o, from.Y + o * from.y_line + row * from.y_step);
            if (from.weights && lane == 0) start_copy(weights(buffer) + i, from.weights + row * from.weight_step);
        }
    }
};
