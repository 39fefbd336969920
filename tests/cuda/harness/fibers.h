// Fibers: a stack for every CUDA thread of a block, and a switch from one to another of a dozen instructions.
//
// Threads of the system would take microseconds for a barrier; these take tens of nanoseconds, and run in the order that
// the test asks for.
#include <stdint.h>
#include <stdlib.h>

#include <vector>

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr uint64_t STACK_END = 0x5ca1ab1e0ddba115;  // at the far end of a stack, as long as nothing has run over it

#if defined(__x86_64__)

// Saves what a function has to preserve on the stack, and the stack pointer in *from; takes all of that from `to`.
extern "C" __attribute__((visibility("hidden"))) void switch_context(void** from, void* to);
asm(R"(
    .text
    .hidden switch_context
    .globl switch_context
    .type switch_context, @function
switch_context:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size switch_context, .-switch_context
)");

// A context that begins with entry() on a stack.
static inline void* new_context(unsigned char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
    *--top = nullptr;  // where entry() would return to, and what aligns the stack as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    return top;
}

#else
#include <ucontext.h>

// The same by the system's own contexts, for other machines; a context is a ucontext_t, made once and kept.
static inline void switch_context(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}

static inline void* new_context(unsigned char* stack, void (*entry)()) {
    ucontext_t* context = reinterpret_cast<ucontext_t*>(stack + 64);
    getcontext(context);
    const size_t used = 64 + (sizeof(ucontext_t) + 63) / 64 * 64;
    context->uc_stack.ss_sp = stack + used;
    context->uc_stack.ss_size = STACK_BYTES - used;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

// Stacks that are free; the last one that was given back is the next one to be used.
static std::vector<unsigned char*> free_stacks;

static inline unsigned char* take_stack() {
    if (free_stacks.empty()) {
        unsigned char* stack = static_cast<unsigned char*>(aligned_alloc(64, STACK_BYTES));
        *reinterpret_cast<uint64_t*>(stack) = STACK_END;
        return stack;
    }
    unsigned char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
}

// Whether nothing has run over its end.
static inline bool give_back(unsigned char* stack) {
    const bool whole = *reinterpret_cast<uint64_t*>(stack) == STACK_END;
    *reinterpret_cast<uint64_t*>(stack) = STACK_END;
    free_stacks.push_back(stack);
    return whole;
}
