// Enough of CUDA C++ for g++ to run our kernels on the CPU: one call per CUDA thread, in an order of the caller's choice.
//
// What a kernel uses beyond this does not compile, on purpose: barriers, shuffles and atomics need a fiber per thread, and
// to leave __syncthreads() empty would hide the very mistakes it is there for.
#include <math.h>
#include <setjmp.h>
#include <stddef.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Dim3 {
    unsigned x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;  // one kernel at a time: the Python side holds the GIL

// What the undefined-behaviour sanitizer calls, before the deed; its library is not needed. Accesses of 16 bytes at other
// addresses fault on a GPU; overflows and bad indices are as wrong there as here. The first complaint ends the launch.
static const char* complaint;
static jmp_buf escape;
#define COMPLAIN(name)                                                    \
    extern "C" void __ubsan_handle_##name(void*, uintptr_t, uintptr_t) { \
        complaint = #name;                                                \
        longjmp(escape, 1);                                               \
    }
COMPLAIN(type_mismatch_v1)
COMPLAIN(out_of_bounds)
COMPLAIN(add_overflow)
COMPLAIN(sub_overflow)
COMPLAIN(mul_overflow)
COMPLAIN(negate_overflow)
COMPLAIN(shift_out_of_bounds)

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

template <typename... P, size_t... I>
static void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
}

// Runs the kernel; what the sanitizer complains of comes back, or a null pointer.
template <typename... P>
static const char* run(void (*kernel)(P...), const unsigned* grid, const unsigned* block, int order, void** arguments) {
    complaint = nullptr;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const auto blocks = in_order(uint64_t(grid[0]) * grid[1] * grid[2], order, 1);
    const auto threads = in_order(uint64_t(block[0]) * block[1] * block[2], order, 2);
    if (setjmp(escape)) return complaint;
    for (uint64_t b : blocks) {
        blockIdx = place(b, gridDim);
        for (uint64_t t : threads) {
            threadIdx = place(t, blockDim);
            call(kernel, arguments, std::index_sequence_for<P...>());
        }
    }
    return nullptr;
}

// One letter and a size per parameter: "p8" a pointer, "i4" and "i8" whole numbers, "f4" and "f8" floating-point ones.
template <typename... P>
static void describe(void (*)(P...), char* text) {
    ((*text++ = std::is_pointer_v<P> ? 'p' : std::is_floating_point_v<P> ? 'f' : 'i', *text++ = '0' + sizeof(P)), ...);
    *text = 0;
}

#define ENTRY(kernel)                                                                                            \
    extern "C" const char* run_##kernel(const unsigned* grid, const unsigned* block, int order, void** arguments) { \
        return run(&kernel, grid, block, order, arguments);                                                      \
    }                                                                                                            \
    extern "C" void describe_##kernel(char* text) { describe(&kernel, text); }
