// Which bytes of memory a launch reads and writes: the thread sanitizer has g++ call a function before every access, and
// here these functions note it in a map of the arrays, a byte for a byte. Its library is not needed. They are no part of
// what it instruments, and call nothing that is.
#include <string.h>

struct Watched {
    uintptr_t begin, end;
    unsigned char *loaded, *stored;
};
constexpr int MOST_WATCHED = 64;
static Watched watched[MOST_WATCHED];
static int n_watched;

#define UNOBSERVED __attribute__((no_sanitize("thread")))

UNOBSERVED static void note(void* p, size_t bytes, unsigned char* Watched::*map) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    // Most accesses are to shared memory and to the thread's stack.
    if (at - reinterpret_cast<uintptr_t>(shared_memory) < MOST_SHARED) return;
    if (current && at - reinterpret_cast<uintptr_t>(current->stack) < STACK_BYTES) return;
    for (int i = 0; i < n_watched; ++i)
        if (at >= watched[i].begin && at + bytes <= watched[i].end) memset(watched[i].*map + (at - watched[i].begin), 1, bytes);
}

// Arrays to watch from now on; 0 of them to stop. Whether there is room for so many.
extern "C" UNOBSERVED int watch(const Watched* arrays, int count) {
    if (count > MOST_WATCHED) return 0;
    for (int i = 0; i < count; ++i) watched[i] = arrays[i];
    n_watched = count;
    return 1;
}

#define NOTE(bytes)                                                                                         \
    extern "C" UNOBSERVED void __tsan_read##bytes(void* p) { note(p, bytes, &Watched::loaded); }            \
    extern "C" UNOBSERVED void __tsan_write##bytes(void* p) { note(p, bytes, &Watched::stored); }           \
    extern "C" UNOBSERVED void __tsan_unaligned_read##bytes(void* p) { note(p, bytes, &Watched::loaded); }  \
    extern "C" UNOBSERVED void __tsan_unaligned_write##bytes(void* p) { note(p, bytes, &Watched::stored); }
NOTE(1)
NOTE(2)
NOTE(4)
NOTE(8)
NOTE(16)
extern "C" UNOBSERVED void __tsan_read_range(void* p, size_t bytes) { note(p, bytes, &Watched::loaded); }
extern "C" UNOBSERVED void __tsan_write_range(void* p, size_t bytes) { note(p, bytes, &Watched::stored); }
extern "C" UNOBSERVED void __tsan_vptr_read(void*) {}
extern "C" UNOBSERVED void __tsan_vptr_update(void*, void*) {}
extern "C" UNOBSERVED void __tsan_init() {}
