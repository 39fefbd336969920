// Copies from global to shared memory that run beside the thread's other work (cp.async, sm_80).
//
// A thread starts copies, and waits for its own: all that it has started have arrived then. A barrier shows them to the
// other threads. Older GPUs copy at once.

// 4 or 8 bytes.
template <typename T>
__device__ __forceinline__ void start_copy(T* to, const T* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "the sizes that cp.async takes");
    const unsigned at = unsigned(__cvta_generic_to_shared(to));
    if constexpr (sizeof(T) == 4)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(at), "l"(from) : "memory");
#else
    *to = *from;
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
