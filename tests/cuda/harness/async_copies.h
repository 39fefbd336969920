// Asynchronous copies to shared memory, for kernels/async_copies.cuh. They arrive as late as a GPU may let them: when the
// thread waits for their group. From the start of a copy its place reads as NaN, so that whoever starts it too early, or
// reads the place before the wait, has wrong results.

// `size` bytes, of which `given` are read and the others are 0.
void start_async_copy(void* to, const void* from, int size, int given) {
    if ((size != 4 && size != 8 && size != 16) || given < 0 || given > size) complain("an asynchronous copy of a size that there is not");
    if (reinterpret_cast<uintptr_t>(to) % size || (given && reinterpret_cast<uintptr_t>(from) % size)) complain("a misaligned access");
    if (place_of(to) + size > MOST_SHARED) complain("a place that is not in shared memory");
    AsyncCopy copy = {to, {}, size};
    if (given) memcpy(copy.bytes, from, given);
    if (given) access(const_cast<void*>(from), given, false);
    access(to, size, true);  // from here on until it has arrived: another thread's use is a race
    memset(to, 0xFF, size);
    current->copies.open.push_back(copy);
}

void commit_async_copies() {
    AsyncCopies& own = current->copies;
    own.groups.push_back(std::move(own.open));
    own.open.clear();
}

// Until all groups but the last `later` have arrived.
void wait_for_async_copies(size_t later) {
    AsyncCopies& own = current->copies;
    for (; own.groups.size() > later; own.groups.erase(own.groups.begin()))
        for (const AsyncCopy& copy : own.groups.front()) {
            access(copy.to, copy.size, true);
            memcpy(copy.to, copy.bytes, copy.size);
        }
}

// Whether a thread has waited for all that it has copied.
static inline bool all_copies_arrived() {
    const AsyncCopies& own = current->copies;
    return own.open.empty() && std::all_of(own.groups.begin(), own.groups.end(), [](auto& group) { return group.empty(); });
}
