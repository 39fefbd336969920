// Enough of CUDA C++ for g++ to run our kernels on the CPU: a fiber per CUDA thread, in an order of the caller's choice.
//
// This is what a kernel sees. emulator.cpp, which runs it, is compiled once and without the sanitizers that every file of
// kernels is compiled with. What a kernel uses beyond this does not compile.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define EXPORTED extern "C" __attribute__((visibility("default")))

struct Dim3 {
    unsigned x, y, z;
};
extern Dim3 threadIdx, blockIdx, blockDim, gridDim;

void complain(const char* text);  // ends the launch

// Memory ---------------------------------------------------------------------------------------------------------------

// Shared memory: the dynamic kind, and behind it static variables.
constexpr size_t MOST_SHARED = 227 * 1024, CANARY = 4096, STATIC_BEGIN = MOST_SHARED + CANARY, MOST_STATIC = 256 * 1024;
extern unsigned char shared_memory[STATIC_BEGIN + MOST_STATIC];
size_t take_static(size_t bytes);  // its place

// A static variable in shared memory, the same for all threads of a block; each `Site` has its own. emulator.py makes a call
// of this of a declaration.
template <typename T, typename Site>
static T& static_shared(Site) {
    static const size_t place = take_static(sizeof(T));
    return *reinterpret_cast<T*>(shared_memory + place);
}

void start_async_copy(void* to, const void* from, int size, int given);
void commit_async_copies();
void wait_for_async_copies(size_t later);

// Threads among each other -----------------------------------------------------------------------------------------------

void block_barrier(int site);
void meet(int site, unsigned mask);
uint64_t shuffle_bits(int site, unsigned mask, uint64_t bits, unsigned flipped);

template <typename T>
static inline T shuffle_across(int site, unsigned mask, T value, unsigned flipped) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "a number of at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = shuffle_bits(site, mask, bits, flipped);
    memcpy(&value, &bits, sizeof value);
    return value;
}

struct Meeting {
    int site;
    void operator()(unsigned mask = ~0u) const { meet(site, mask); }
};

#define __syncthreads() block_barrier(__LINE__)
#define __syncwarp Meeting{__LINE__}
#define __shfl_xor_sync(...) shuffle_across(__LINE__, __VA_ARGS__)

void arrive_at_cluster();
void wait_for_cluster();
void begin_mbarrier(void* barrier);
void expect_at_mbarrier(void* barrier, unsigned bytes);
void wait_at_mbarrier(const void* barrier, int parity);
void send_bytes(const void* place, const void* bytes, int size, const void* barrier, int rank);

template <typename T>
static inline void send_to_block(const T* place, T x, const void* barrier, int rank) {
    send_bytes(place, &x, sizeof x, barrier, rank);
}

long long time_in_nanoseconds();

// Arithmetic -----------------------------------------------------------------------------------------------------------

float tensor_core_round(float x);
void tensor_core_multiply(float& d0, float& d1, float& d2, float& d3, const float (&a)[4], const float (&b)[2]);
float __fdividef(float x, float y);

static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof x);
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

template <typename T, typename U>
static inline std::common_type_t<T, U> min(T a, U b) {
    return b < a ? b : a;
}

// Entries --------------------------------------------------------------------------------------------------------------

// Runs `kernel` in every thread; what it is guilty of comes back, or a null pointer.
const char* run_kernel(void (*kernel)(void** arguments), const unsigned* grid, const unsigned* block, unsigned blocks_of_cluster,
                       int order, size_t shared_bytes, void** arguments);

template <typename... P, size_t... I>
static void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
}
template <typename... P>
static void call(void (*kernel)(P...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<P...>());
}

// One letter and a size per parameter: "p8" a pointer, "i4" and "i8" whole numbers, "f4" and "f8" floating-point ones.
template <typename... P>
static void describe(void (*)(P...), char* text) {
    ((*text++ = std::is_pointer_v<P> ? 'p' : std::is_floating_point_v<P> ? 'f' : 'i', *text++ = '0' + sizeof(P)), ...);
    *text = 0;
}

#define ENTRY(kernel)                                                                                              \
    static void call_##kernel(void** arguments) { call(&kernel, arguments); }                                     \
    EXPORTED const char* run_##kernel(const unsigned* grid, const unsigned* block, unsigned cluster, int order,    \
                                      size_t shared, void** arguments) {                                           \
        return run_kernel(call_##kernel, grid, block, cluster, order, shared, arguments);                         \
    }                                                                                                              \
    EXPORTED void describe_##kernel(char* text) { describe(&kernel, text); }
