// Copies from global to shared memory that run while the thread goes on, from sm_80 on; before, plain copies.
//
// A thread starts copies, ends the group of them by commit_copies, and later waits until all but its last groups have
// arrived. It then sees what it has copied itself; other threads see it after a barrier. From the start of a copy to its
// arrival its place has no defined contents.

#include "common.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool HAS_ASYNC_COPIES = true;
#else
constexpr bool HAS_ASYNC_COPIES = false;
#endif

// V elements of 4, 8 or 16 bytes together, of which only the first `count` are read; the others arrive as 0. Copies of 16
// bytes do not go through the L1 cache.
template <int V = 1, typename T>
__device__ __forceinline__ void start_copy(T* to, const T* from, int count = V) {
    if (!HAS_ASYNC_COPIES) {
        *reinterpret_cast<Pack<T, V>*>(to) = count ? load<T, V>(from, count) : Pack<T, V>{};
        return;
    }
    constexpr int BYTES = V * sizeof(T);
    const int read = count * int(sizeof(T));
#ifndef __CUDA_ARCH__
    start_async_copy(to, from, BYTES, read);
#elif __CUDA_ARCH__ >= 800
    const unsigned at = unsigned(__cvta_generic_to_shared(to));
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(read) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(BYTES), "r"(read) : "memory");
#endif
}

// Ends a group: the copies since the last one's end, or none.
__device__ __forceinline__ void commit_copies() {
    if (!HAS_ASYNC_COPIES) return;
#ifndef __CUDA_ARCH__
    commit_async_copies();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups but the last LATER have arrived; with 0 of them also for copies that are in no group yet.
template <int LATER = 0>
__device__ __forceinline__ void wait_for_copies() {
    if (!HAS_ASYNC_COPIES) return;
    if (LATER == 0) commit_copies();
#ifndef __CUDA_ARCH__
    wait_for_async_copies(LATER);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#endif
}
