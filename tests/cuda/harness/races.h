// Races in shared memory: two accesses of which at least one writes, by different threads, and nothing between that puts
// them in order. What the threads happen to read does not matter, nor the order in which they run.
//
// Time is a counter, `now`, that goes on at every barrier. For each thread there is a table of all others: the time up to
// which their accesses come before whatever it does next (vector clocks). __syncthreads() joins the tables of a block,
// __syncwarp() those of the lanes in its mask, the barrier of a cluster those of all its blocks. A wait at an mbarrier joins
// those that the senders and the announcer had. Shuffles and products on tensor cores order nothing, as on a GPU. For every
// word of shared memory there are its last writer and its readers since: the next access has to come after those.
//
// Words have 4 bytes; a smaller number counts as all of its word.
#include <stdio.h>

#include <deque>

using Times = std::vector<uint32_t>;  // by thread of the cluster; then by mbarrier, as the writer of the messages it counts
using Knowledge = const uint32_t*;    // Times, or null before the first barrier
constexpr size_t WORD = 4, MOST_MBARRIERS = 64;

static uint32_t now = 1;
static size_t threads_of_block, threads_of_cluster;  // whole warps
static std::deque<Times> kept_times;                   // what a Knowledge points to
static size_t shared_limit, shared_end;               // bytes of shared memory; where static variables begin

struct Word {
    uint32_t writer, written;  // the thread, the time
};
struct Readers {  // of a word, in a warp
    uint32_t lanes, time;
};
struct Shadow {  // of the shared memory of a block
    uint32_t begun;  // what is older was left by a block before
    size_t room;
    Word* words;
    Readers* readers;  // word by word, of every warp of the block
};
static Shadow shadows[8];  // of the blocks of a cluster
static size_t own_rank;    // in the cluster, of the block whose turn it is

// What a thread knows at a moment.
struct View {
    size_t thread, warp_begin;  // in the cluster
    const uint32_t* lanes;      // times, of its own warp
    Knowledge known;            // of all others

    bool covers(size_t other, uint32_t time) const {
        if (other == thread) return true;
        if (other - warp_begin < WARP) return lanes[other - warp_begin] >= time;
        return known && known[other] >= time;
    }
};

static inline View view_of(const Fiber& fiber) {
    const size_t first = own_rank * threads_of_block;
    return {first + fiber.number, first + fiber.number / WARP * WARP, fiber.lanes, fiber.known};
}

// A view that is kept while its thread goes on.
struct Snapshot {
    size_t thread, warp_begin;
    uint32_t lanes[WARP];
    Knowledge known;
    uint32_t time;

    explicit Snapshot(const Fiber& fiber) : known(fiber.known), time(now) {
        const View view = view_of(fiber);
        thread = view.thread, warp_begin = view.warp_begin;
        std::copy_n(fiber.lanes, WARP, lanes);
    }
    View view() const { return {thread, warp_begin, lanes, known}; }
};

// What several threads know together.
struct Gathered {
    Times times;
    Knowledge last = nullptr, result = nullptr;  // of the thread that was added last; of all

    void add(Knowledge known) {
        if (times.empty()) times.assign(threads_of_cluster + MOST_MBARRIERS, 0);
        if (known && known != last)
            for (size_t i = 0; i < times.size(); ++i) times[i] = std::max(times[i], known[i]);
        last = known;
        result = nullptr;
    }
    void add(const Snapshot& s) {
        add(s.known);
        for (size_t i = 0; i < WARP; ++i) times[s.warp_begin + i] = std::max(times[s.warp_begin + i], s.lanes[i]);
        times[s.thread] = std::max(times[s.thread], s.time);
    }
    Knowledge all() {
        if (!result) result = kept_times.emplace_back(times).data();
        return result;
    }
};

struct Join {
    Knowledge a, b, both;
};
static Join last_join;  // threads that meet mostly know the same

static inline Knowledge joined(Knowledge a, Knowledge b) {
    if (!a || a == b) return b;
    if (!b) return a;
    if (a != last_join.a || b != last_join.b) {
        Gathered both;
        both.add(a), both.add(b);
        last_join = {a, b, both.all()};
    }
    return last_join.both;
}

static inline void learn(Fiber& fiber, Knowledge known) {
    if (!known) return;
    fiber.known = joined(fiber.known, known);
    const size_t first = view_of(fiber).warp_begin;
    for (size_t lane = 0; lane < WARP; ++lane)
        fiber.lanes[lane] = std::max(fiber.lanes[lane], known[first + lane]);
}

// Who meets ------------------------------------------------------------------------------------------------------------

static inline void block_has_met() {
    Gathered all;
    for (const Fiber& fiber : fibers) all.add(Snapshot(fiber));
    ++now;
    for (Fiber& fiber : fibers) learn(fiber, all.all());
}

static inline void lanes_have_met(size_t first, unsigned lanes) {
    uint32_t times[WARP] = {};
    Knowledge known = nullptr;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(lanes >> lane & 1)) continue;
        const Fiber& fiber = fibers[first + lane];
        known = joined(known, fiber.known);
        for (unsigned i = 0; i < WARP; ++i) times[i] = std::max(times[i], fiber.lanes[i]);
        times[lane] = now;
    }
    ++now;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(lanes >> lane & 1)) continue;
        fibers[first + lane].known = known;
        std::copy_n(times, WARP, fibers[first + lane].lanes);
    }
}

// Accesses -------------------------------------------------------------------------------------------------------------

static char race[240];

// The other access of a word by which this one is in a race; false if there is none.
static inline bool finds_race(const Shadow& shadow, size_t word, const View& view, bool writes, size_t owner) {
    const Word& last = shadow.words[word];
    size_t other = last.writer;
    bool wrote = last.written >= shadow.begun && !view.covers(other, last.written);
    bool found = wrote;
    const size_t warps = threads_of_block / WARP;
    for (size_t w = 0; w < warps && writes && !found; ++w) {
        const Readers& readers = shadow.readers[word * warps + w];
        if (readers.time < shadow.begun) continue;
        for (unsigned lane = 0; lane < WARP && !found; ++lane) {
            other = owner * threads_of_block + w * WARP + lane;
            found = (readers.lanes >> lane & 1) && !view.covers(other, readers.time);
        }
    }
    if (!found) return false;
    char by[40];
    if (other < threads_of_cluster)
        snprintf(by, sizeof by, "thread %zu", other % threads_of_block);
    else
        snprintf(by, sizeof by, "a message of a cluster");
    snprintf(race, sizeof race, "a race: thread %zu %s byte %zu of shared memory, which %s has %s, and nothing orders the two",
             view.thread % threads_of_block, writes ? "writes" : "reads", word * WORD, by, wrote ? "written" : "read");
    return true;
}

static inline void remember_read(Shadow& shadow, size_t word, const Fiber& fiber, const View& view) {
    const size_t warps = threads_of_block / WARP;
    Readers& readers = shadow.readers[word * warps + fiber.number / WARP];
    const uint32_t own = 1u << fiber.number % WARP;
    bool covered = true;  // a thread that knows of all the others stands for them
    if (readers.time >= shadow.begun)
        for (uint32_t rest = readers.lanes & ~own; rest && covered; rest &= rest - 1)
            covered = view.covers(view.warp_begin + __builtin_ctz(rest), readers.time);
    readers = {covered ? own : readers.lanes | own, now};
}

static inline void remember_write(Shadow& shadow, size_t word, size_t writer) {
    const size_t warps = threads_of_block / WARP;
    shadow.words[word] = {uint32_t(writer), now};
    for (size_t w = 0; w < warps; ++w) shadow.readers[word * warps + w].time = 0;
}

// An access by the thread that runs.
static inline void access_shared(size_t place, size_t bytes, bool writes) {
    if (place >= shared_end)  // a static variable
        place -= shared_end - (shared_limit + WORD - 1) / WORD * WORD;
    else if (place + bytes > shared_limit)
        complain(writes ? "a write to shared memory beyond what the launch asked for"
                        : "a read of shared memory beyond what the launch asked for");
    Shadow& shadow = shadows[own_rank];
    const View view = view_of(*current);
    for (size_t word = place / WORD; word <= (place + bytes - 1) / WORD; ++word) {
        if (finds_race(shadow, word, view, writes, own_rank)) complain(race);
        if (writes) remember_write(shadow, word, view.thread);
        else remember_read(shadow, word, *current, view);
    }
}

// What a thread of the cluster has sent to block `owner` arrives. Whoever waits for mbarrier number `mbarrier` knows of it.
static inline void message_arrives(size_t owner, size_t place, size_t bytes, const Snapshot& sender, size_t mbarrier) {
    Shadow& shadow = shadows[owner];
    for (size_t word = place / WORD; word <= (place + bytes - 1) / WORD; ++word) {
        if (!complaint && finds_race(shadow, word, sender.view(), true, owner)) complaint = race;
        remember_write(shadow, word, threads_of_cluster + mbarrier);
    }
}

// Blocks begin ---------------------------------------------------------------------------------------------------------

// `static_begin` and `most_static` bytes: where static variables lie.
static inline void begin_shadows(size_t blocks, size_t threads, size_t shared_bytes, size_t static_begin, size_t most_static) {
    const size_t warps = (threads + WARP - 1) / WARP, words = (shared_bytes + WORD - 1) / WORD + most_static / WORD;
    shared_end = static_begin;
    threads_of_block = warps * WARP;
    threads_of_cluster = blocks * threads_of_block;
    shared_limit = shared_bytes;
    kept_times.clear();
    last_join = {};
    for (size_t b = 0; b < blocks; ++b) {
        Shadow& shadow = shadows[b];
        if (shadow.room < words * warps) {
            free(shadow.words), free(shadow.readers);
            shadow.room = words * warps;
            shadow.words = static_cast<Word*>(calloc(shadow.room, sizeof(Word)));
            shadow.readers = static_cast<Readers*>(calloc(shadow.room, sizeof(Readers)));
        }
        shadow.begun = ++now;
    }
    ++now;
}
