// Every access of a kernel to memory: the thread sanitizer has g++ call a function before each, and here are these functions.
// Its library is not needed. They are no part of what it instruments, and call nothing that is but to complain.
#define INLINED __attribute__((always_inline)) static inline  // for a size that is known where it is called

struct Watched {
    uintptr_t begin, end;
    unsigned char* written;            // of every byte, whether anything wrote it since it was allocated
    unsigned char *loaded, *stored;    // whether this launch did; or null pointers
    unsigned* writer;                  // the number of the block that wrote it, from 1; 0 if none did
};
constexpr int MOST_WATCHED = 64;
static Watched watched[MOST_WATCHED];
static int n_watched, last_watched;
EXPORTED uintptr_t unwritten;  // the address of a number that was read and that nobody had written
uintptr_t unwritten;

// Blocks run in any order: a number that one writes and another reads or writes comes out in other bits every time.
static void note_writer(unsigned* writer, size_t bytes, bool writes) {
    const unsigned block = 1 + blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    for (size_t i = 0; i < bytes; ++i) {
        if (writer[i] && writer[i] != block) complain("a block uses what another one has written");
        if (writes) writer[i] = block;
    }
}

INLINED bool all_written(const unsigned char* written, size_t bytes) {
    bool all = true;
    for (size_t i = 0; i < bytes; ++i) all &= written[i] != 0;
    return all;
}

INLINED void access_array(const Watched& array, size_t at, size_t bytes, bool writes) {
    if (array.loaded) {
        memset((writes ? array.stored : array.loaded) + at, 1, bytes);
        note_writer(array.writer + at, bytes, writes);
    }
    if (writes) {
        memset(array.written + at, 1, bytes);
    } else if (!all_written(array.written + at, bytes)) {
        unwritten = array.begin + at;
        complain("a read of memory that nobody has written");
    }
}

INLINED void access_memory(uintptr_t at, size_t bytes, bool writes) {
    const Watched* array = watched + last_watched;
    if (at < array->begin || at + bytes > array->end) {
        for (array = watched; array < watched + n_watched; ++array)
            if (at >= array->begin && at + bytes <= array->end) break;
        if (array == watched + n_watched) return;
        last_watched = int(array - watched);
    }
    access_array(*array, at - array->begin, bytes, writes);
}

// The variables of this library, the emulator's: the linker says where they are.
extern "C" __attribute__((visibility("hidden"))) char __bss_start, _end;

INLINED void access(void* p, size_t bytes, bool writes) {
    if (!current) return;  // the work of the emulator
    const uintptr_t at = reinterpret_cast<uintptr_t>(p), own = reinterpret_cast<uintptr_t>(&__bss_start);
    if (at - reinterpret_cast<uintptr_t>(current->stack) < STACK_BYTES) return;
    const uintptr_t place = at - reinterpret_cast<uintptr_t>(shared_memory);
    if (place < sizeof shared_memory) access_shared(place, bytes, writes);
    else if (at - own >= size_t(&_end - &__bss_start)) access_memory(at, bytes, writes);
}

// Arrays to watch from now on; 0 of them to stop. Whether there is room for so many.
EXPORTED int watch(const Watched* arrays, int count) {
    if (count > MOST_WATCHED) return 0;
    watched[0] = {};
    for (int i = 0; i < count; ++i) watched[i] = arrays[i];
    n_watched = count;
    last_watched = 0;
    return 1;
}

#define ACCESS(bytes)                                                                 \
    extern "C" void __tsan_read##bytes(void* p) { access(p, bytes, false); }           \
    extern "C" void __tsan_write##bytes(void* p) { access(p, bytes, true); }           \
    extern "C" void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, false); } \
    extern "C" void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) { access(p, bytes, false); }
extern "C" void __tsan_write_range(void* p, size_t bytes) { access(p, bytes, true); }
extern "C" void __tsan_vptr_read(void*) {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_init() {}
