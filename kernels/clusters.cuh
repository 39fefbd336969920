// Clusters of blocks, from sm_90 on: the blocks run at the same time and send numbers to each other's shared memory.
//
// Sending is asynchronous. The receiver announces the number of bytes at an mbarrier of its own and waits for the end of the
// mbarrier's phase: the phase ends when the announcement was made and all bytes have arrived.

// A barrier for all threads of the cluster. A block can receive once it runs and its mbarriers are initialised.
__device__ __forceinline__ void cluster_arrive() {
#ifndef __CUDA_ARCH__
    arrive_at_cluster();
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#ifndef __CUDA_ARCH__
    wait_for_cluster();
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

#ifdef __CUDA_ARCH__
__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }
#endif

struct alignas(8) Mbarrier {
    unsigned long long word;

    // By one thread, before the cluster's barrier. A phase takes one announcement.
    __device__ __forceinline__ void begin() {
#ifndef __CUDA_ARCH__
        begin_mbarrier(this);
#elif __CUDA_ARCH__ >= 900
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(this)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    }

    // The announcement, by one thread per phase: so many bytes will arrive or have arrived.
    __device__ __forceinline__ void expect(unsigned bytes) {
#ifndef __CUDA_ARCH__
        expect_at_mbarrier(this, bytes);
#elif __CUDA_ARCH__ >= 900
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)), "r"(bytes)
                     : "memory");
#endif
    }

    // Waits for the end of a phase; `parity` is 0 for the first, 1 for the second, 0 for the third. The scope is the
    // block's: an acquire at the cluster's scope would also discard cached global memory, and the data is in shared memory.
    __device__ __forceinline__ void wait(int parity) {
#ifndef __CUDA_ARCH__
        wait_at_mbarrier(this, parity);
#elif __CUDA_ARCH__ >= 900
        unsigned over = 0;
        while (!over)
            asm volatile(
                "{\n.reg .pred over;\n"
                "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                "selp.u32 %0, 1, 0, over;\n}"
                : "=r"(over)
                : "r"(shared_address(this)), "r"(parity)
                : "memory");
#endif
    }
};

// *p = x in the shared memory of the cluster's block `rank`, for the phase of its `barrier`: the places in the sender's own.
template <typename T>
__device__ __forceinline__ void send(T* p, T x, Mbarrier* barrier, int rank) {
#ifndef __CUDA_ARCH__
    send_to_block(p, x, barrier, rank);
#elif __CUDA_ARCH__ >= 900
    unsigned to, at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(p)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(barrier)), "r"(rank));
    if constexpr (sizeof(T) == 4)
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to), "f"(x), "r"(at)
                     : "memory");
    else
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f64 [%0], %1, [%2];" ::"r"(to), "d"(x), "r"(at)
                     : "memory");
#endif
}
