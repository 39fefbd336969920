// Runs the threads of a kernel (cuda_on_cpu.h): a fiber each.
//
// Blocks run one after the other, those of a cluster in turns. Shared memory is NaN when a block begins.
#include "cuda_on_cpu.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <vector>

#include "fibers.h"
#include "warps.h"
#include "tensor_cores.h"

Dim3 threadIdx, blockIdx, blockDim, gridDim;  // one kernel at a time: the Python side holds the GIL

__attribute__((aligned(1024))) unsigned char shared_memory[STATIC_BEGIN + MOST_STATIC];
static size_t static_bytes;  // of all kernels of the source that have run

size_t take_static(size_t bytes) {
    const size_t place = STATIC_BEGIN + static_bytes;
    static_bytes += (bytes + 15) / 16 * 16;
    if (static_bytes > MOST_STATIC) complain("more static shared memory than the emulator has");
    memset(shared_memory + place, 0xFF, bytes);
    return place;
}

long long time_in_nanoseconds() {
    return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
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
float __fdividef(float x, float y) {
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

static void (*body)(void** arguments);
static void** body_arguments;

static void live() {
    body(body_arguments);
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

const char* run_kernel(void (*kernel)(void** arguments), const unsigned* grid, const unsigned* block, unsigned blocks_of_cluster,
                       int order, size_t shared_bytes, void** arguments) {
    body = kernel;
    body_arguments = arguments;
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
