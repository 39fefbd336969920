// Enough of CUDA C++ for g++ to run our kernels on the CPU: a fiber per CUDA thread, in an order of the caller's choice.
//
// Blocks run one after the other, those of a cluster in turns. Shared memory is NaN when a block begins: the dynamic kind,
// `shared_memory`, and behind it static variables (emulator.py makes a call of static_shared() of their declarations).
// What a kernel uses beyond this does not compile.
#pragma GCC push_options
#pragma GCC optimize("O2")  // what runs the threads, unlike the kernels, of which there are many to compile
#include <math.h>
#include <stddef.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "fibers.h"
#include "warps.h"
#include "tensor_cores.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

struct Dim3 {
    unsigned x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;  // one kernel at a time: the Python side holds the GIL

constexpr size_t MOST_SHARED = 227 * 1024, CANARY = 4096, STATIC_BEGIN = MOST_SHARED + CANARY, MOST_STATIC = 256 * 1024;
__attribute__((visibility("hidden"), aligned(1024))) unsigned char shared_memory[STATIC_BEGIN + MOST_STATIC];
static size_t static_bytes;  // of all kernels of the source that have run

UNOBSERVED static inline size_t take_static(size_t bytes) {
    const size_t place = STATIC_BEGIN + static_bytes;
    static_bytes += (bytes + 15) / 16 * 16;
    if (static_bytes > MOST_STATIC) complain("more static shared memory than the emulator has");
    memset(shared_memory + place, 0xFF, bytes);
    return place;
}

// A static variable in shared memory, the same for all threads of a block; each `Site` has its own.
template <typename T, typename Site>
static T& static_shared(Site) {
    static const size_t place = take_static(sizeof(T));
    return *reinterpret_cast<T*>(shared_memory + place);
}
#include "clusters.h"
#include "accesses.h"
#include "async_copies.h"

// What the undefined-behaviour sanitizer calls, before the deed; its library is not needed. Accesses of 16 bytes at other
// addresses fault on a GPU; overflows and bad indices are as wrong there as here. The first complaint ends the launch.
#define COMPLAIN(name, text) \
    extern "C" void __ubsan_handle_##name(void*, uintptr_t, uintptr_t) { complain(text); }
COMPLAIN(type_mismatch_v1, "a misaligned access")
COMPLAIN(out_of_bounds, "an index out of bounds")
COMPLAIN(add_overflow, "an addition that overflows")
COMPLAIN(sub_overflow, "a subtraction that overflows")
COMPLAIN(mul_overflow, "a multiplication that overflows")
COMPLAIN(negate_overflow, "a negation that overflows")
COMPLAIN(divrem_overflow, "a division that overflows")
COMPLAIN(shift_out_of_bounds, "a shift out of bounds")

// The hardware's division, x times an approximate reciprocal: like that, wrong in the last place, by 0.5 to 1.5 units;
// the quotient by a power of two is right. Results below the smallest normal number are 0, and all beyond y = 2^126.
static inline float __fdividef(float x, float y) {
    int exponent;
    const float mantissa = frexpf(y, &exponent), magnitude = fabsf(y);
    if (magnitude > 0x1p126f && magnitude <= 3.402823466e38f) return x * 0;
    const float quotient = x / y;
    if (fabsf(quotient) < 0x1p-126f) return quotient * 0;
    if (!isfinite(quotient) || fabsf(mantissa) == 0.5f) return quotient;
    uint32_t bits;
    memcpy(&bits, &y, sizeof bits);
    return nextafterf(quotient, bits * 2654435761u >> 31 ? INFINITY : -INFINITY);
}

template <typename T, typename U>
static inline std::common_type_t<T, U> min(T a, U b) {
    return b < a ? b : a;
}

// Running a kernel -----------------------------------------------------------------------------------------------------

enum Order { FORWARD, REVERSE, SHUFFLED };

static std::vector<uint64_t> in_order(uint64_t count, int order, unsigned seed) {
    std::vector<uint64_t> numbers(count);
    for (uint64_t i = 0; i < count; ++i) numbers[i] = order == REVERSE ? count - 1 - i : i;
    if (order == SHUFFLED) std::shuffle(numbers.begin(), numbers.end(), std::mt19937(seed));
    return numbers;
}

static Dim3 place(uint64_t number, Dim3 size) {
    return {unsigned(number % size.x), unsigned(number / size.x % size.y), unsigned(number / size.x / size.y)};
}

static std::function<void()> body;  // the kernel with its arguments

static void live() {
    body();
    if (current->arrivals != current->waits) complain("a thread that ends between arriving at the cluster's barrier and waiting");
    if (!all_copies_arrived()) complain("a thread that ends before what it copies has arrived");
    current->wait = ENDED;
    hand_over();
}

// Runs a thread until it waits or ends.
static void resume(Fiber& fiber) {
    if (!fiber.stack) {
        fiber.stack = take_stack();
        fiber.context = new_context(fiber.stack, live);
    }
    current = &fiber;
    switch_context(&scheduler, fiber.context);
    current = nullptr;
    if (fiber.wait == ENDED && !give_back(std::exchange(fiber.stack, nullptr)) && !complaint)
        complaint = "a stack that is too small for the kernel";
}

static std::mt19937 dice;

// Runs the threads of a block until all have ended or wait for other blocks; whether any could run. In random order a
// quarter of the warps sleep at any time, so that some are far ahead of others, and what is sent to the block comes at any time.
static bool take_turn(const std::vector<uint64_t>& threads, const std::vector<Dim3>& places, bool random) {
    bool any = release_from_cluster(true);
    while (true) {
        const uint32_t awake = random ? dice() | dice() : ~0u;
        bool asleep = false;
        for (uint64_t t : threads) {
            if (fibers[t].wait != RUNNING) continue;
            if (!(awake >> t / WARP & 1)) {
                asleep = true;
                continue;
            }
            threadIdx = places[t];
            resume(fibers[t]);
            any = true;
            if (complaint) return any;
        }
        if (all_ended()) return any;
        if (random && release_from_cluster(false)) continue;
        if (asleep) answer_warps();
        else if (!release()) return any;
    }
}

static void look_at_canary(size_t shared_bytes) {
    const unsigned char* end = shared_memory + shared_bytes;
    if (!complaint && std::any_of(end, end + CANARY, [](unsigned char byte) { return byte != 0xFF; }))
        complaint = "a write to shared memory beyond what the launch asked for";
}

// Runs the blocks of a cluster in turns.
static void run_cluster(const std::vector<uint64_t>& blocks, const std::vector<uint64_t>& threads,
                        const std::vector<Dim3>& places, size_t shared_bytes, bool random) {
    for (bool any = true; !complaint && !all_blocks_ended();) {
        if (!any) complaint = "a barrier of a cluster that not all its threads reach, or an mbarrier that waits in vain";
        any = false;
        for (uint64_t b : blocks) {
            if (complaint || cluster[b].ended) continue;
            enter_block(b, threads.size(), shared_bytes);
            any = take_turn(threads, places, random) || any;
            cluster[b].ended = all_ended();
            if (!complaint && cluster[b].ended && !cluster[b].inbox.empty()) complaint = "a block that ends before all has come";
            look_at_canary(shared_bytes);
            leave_block(b, shared_bytes);
        }
    }
    for (RunningBlock& block : cluster)  // what a complaint has left behind
        for (Fiber& fiber : block.fibers)
            if (fiber.stack) give_back(std::exchange(fiber.stack, nullptr));
}

template <typename... P, size_t... I>
static void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
}

// Runs `body` in every thread; what it is guilty of comes back, or a null pointer.
static const char* run_body(const unsigned* grid, const unsigned* block, unsigned blocks_of_cluster, int order,
                            size_t shared_bytes) {
    complaint = nullptr;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const auto clusters = in_order(uint64_t(grid[0]) * grid[1] * grid[2] / blocks_of_cluster, order, 1);
    const auto blocks = in_order(blocks_of_cluster, order, 3);
    const auto threads = in_order(uint64_t(block[0]) * block[1] * block[2], order, 2);
    std::vector<Dim3> places(threads.size());
    for (size_t t = 0; t < places.size(); ++t) places[t] = place(t, blockDim);
    std::fill_n(shared_memory, STATIC_BEGIN + static_bytes, 0xFF);
    dice.seed(4);
    for (uint64_t c : clusters) {
        begin_cluster(blocks_of_cluster);
        begin_shadows(blocks_of_cluster, threads.size(), shared_bytes, STATIC_BEGIN, MOST_STATIC);
        for (uint64_t b : blocks) cluster[b].place = place(c * blocks_of_cluster + b, gridDim);
        run_cluster(blocks, threads, places, shared_bytes, order == SHUFFLED);
        if (complaint) break;
    }
    return complaint;
}

template <typename... P>
static const char* run(void (*kernel)(P...), const unsigned* grid, const unsigned* block, unsigned blocks_of_cluster,
                       int order, size_t shared_bytes, void** arguments) {
    body = [=] { call(kernel, arguments, std::index_sequence_for<P...>()); };
    return run_body(grid, block, blocks_of_cluster, order, shared_bytes);
}

// One letter and a size per parameter: "p8" a pointer, "i4" and "i8" whole numbers, "f4" and "f8" floating-point ones.
template <typename... P>
static void describe(void (*)(P...), char* text) {
    ((*text++ = std::is_pointer_v<P> ? 'p' : std::is_floating_point_v<P> ? 'f' : 'i', *text++ = '0' + sizeof(P)), ...);
    *text = 0;
}

#define ENTRY(kernel)                                                                                            \
    extern "C" const char* run_##kernel(const unsigned* grid, const unsigned* block, unsigned cluster, int order, \
                                        size_t shared, void** arguments) {                                       \
        return run(&kernel, grid, block, cluster, order, shared, arguments);                                     \
    }                                                                                                            \
    extern "C" void describe_##kernel(char* text) { describe(&kernel, text); }
#pragma GCC pop_options
