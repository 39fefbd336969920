// Which bytes of memory a launch reads and writes: the thread sanitizer has g++ call a function before every access, and
// here these functions note it in a map of the arrays, a byte for a byte. Its library is not needed. They are no part of
// what it instruments, and call nothing that is.
#include <string.h>

struct Watched {
    uintptr_t begin, end;
    unsigned char *loaded, *stored;
    unsigned* writer;  // of every byte: the number of the block that wrote it, from 1; 0 if none did
};
constexpr int MOST_WATCHED = 64;
static Watched watched[MOST_WATCHED];
static int n_watched;

#define UNOBSERVED __attribute__((no_sanitize("thread")))

// Blocks run in any order: a number that one writes and another reads or writes comes out in other bits every time.
UNOBSERVED static void note_writer(unsigned* writer, size_t bytes, bool stores) {
    const unsigned block = 1 + blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    for (size_t i = 0; i < bytes; ++i) {
        if (writer[i] && writer[i] != block) complain("a block uses what another one has written");
        if (stores) writer[i] = block;
    }
}

UNOBSERVED static void note(void* p, size_t bytes, unsigned char* Watched::*map) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    // Most accesses are to shared memory and to the thread's stack.
    if (at - reinterpret_cast<uintptr_t>(shared_memory) < MOST_SHARED) return;
    if (current && at - reinterpret_cast<uintptr_t>(current->stack) < STACK_BYTES) return;
    for (int i = 0; i < n_watched; ++i)
        if (at >= watched[i].begin && at + bytes <= watched[i].end) {
            memset(watched[i].*map + (at - watched[i].begin), 1, bytes);
            note_writer(watched[i].writer + (at - watched[i].begin), bytes, map == &Watched::stored);
        }
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
