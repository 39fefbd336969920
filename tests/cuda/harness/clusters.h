// Clusters of blocks, for kernels/clusters.cuh: their barrier, and what they send to each other's shared memory.
//
// The blocks of a cluster take turns: one runs until each of its threads has ended, waits, or has just arrived at the
// cluster's barrier. What was sent to it comes when its turn begins, in random order also later, so that whoever does not
// wait for it reads NaN, or what was there before. A block that has not begun, or has ended, is no place to send to.

struct MbarrierState {  // in the 8 bytes of an mbarrier
    int32_t bytes;      // announced, less those that have come
    int16_t expected, phase;  // announcements that the phase still takes; begun with 0
};

struct Sent {
    size_t place, barrier;  // in shared memory
    unsigned char bytes[8];
    int size;
    Snapshot sender;
};

struct Announced {  // an mbarrier in use: what the senders and the announcer of a phase knew, of this one and the last
    size_t rank, place;
    Gathered phase;
    Knowledge last;
};
static std::vector<Announced> mbarriers;  // of the cluster

struct Arrived {  // what the threads knew when they arrived at the cluster's barrier
    unsigned number;  // of the arrival, from 1
    Gathered all;
};
static Arrived arrived[2];

struct RunningBlock {
    Dim3 place;
    bool begun, ended;
    std::vector<Fiber> fibers;
    std::vector<unsigned char> shared, fixed;  // its shared memory, dynamic and static, while it is another's turn
    std::vector<Sent> inbox;
};
static std::vector<RunningBlock> cluster;
static uint64_t arrivals;  // of all threads

static inline void begin_cluster(size_t blocks) {
    cluster.resize(blocks);
    for (RunningBlock& block : cluster) {
        block.begun = block.ended = false;
        block.inbox.clear();
    }
    arrivals = 0;
    mbarriers.clear();
    arrived[0] = arrived[1] = {};
}

static inline bool all_ended() {
    return std::all_of(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return fiber.wait == ENDED; });
}
static inline bool all_blocks_ended() {
    return std::all_of(cluster.begin(), cluster.end(), [](const RunningBlock& block) { return block.ended; });
}

// Mbarriers ------------------------------------------------------------------------------------------------------------

// Where p lies in shared memory.
static inline size_t place_of(const void* p) {
    const unsigned char* here = static_cast<const unsigned char*>(p);
    if (here < shared_memory || here >= shared_memory + MOST_SHARED) complain("a place that is not in shared memory");
    return here - shared_memory;
}
static inline MbarrierState* state_at(size_t place) { return reinterpret_cast<MbarrierState*>(shared_memory + place); }

// The number of an mbarrier of the block whose turn it is; it begins with its first use.
static size_t number_of(size_t place) {
    for (size_t i = 0; i < mbarriers.size(); ++i)
        if (mbarriers[i].rank == own_rank && mbarriers[i].place == place) return i;
    if (mbarriers.size() == MOST_MBARRIERS) complain("more mbarriers than races.h has numbers for");
    mbarriers.push_back({own_rank, place, {}, {}});
    return mbarriers.size() - 1;
}

static inline void end_phase(size_t place) {
    MbarrierState* state = state_at(place);
    if (state->expected || state->bytes) return;
    state->phase ^= 1;
    state->expected = 1;
    Announced& barrier = mbarriers[number_of(place)];
    barrier.phase.times[threads_of_cluster + number_of(place)] = now++;
    barrier.last = barrier.phase.all();
    barrier.phase = {};
}
void begin_mbarrier(void* barrier) { *state_at(place_of(barrier)) = {0, 1, 0}; }

void expect_at_mbarrier(void* barrier, unsigned bytes) {
    const size_t place = place_of(barrier);
    MbarrierState* state = state_at(place);
    if (state->expected != 1 || (state->phase & ~1)) complain("an announcement at an mbarrier that takes none");
    state->expected = 0;
    state->bytes += bytes;
    mbarriers[number_of(place)].phase.add(Snapshot(*current));
    ++now;
    end_phase(place);
}

void wait_at_mbarrier(const void* barrier, int parity) {
    const size_t place = place_of(barrier);
    const MbarrierState* state = state_at(place);
    if (state->phase & ~1) complain("a wait at an mbarrier that has not begun");
    if (state->phase == parity) {
        current->awaited = state;
        current->parity = parity;
        current->wait = AT_CLUSTER;
        hand_over();
        current->awaited = nullptr;
    }
    learn(*current, mbarriers[number_of(place)].last);
}

void send_bytes(const void* place, const void* bytes, int size, const void* barrier, int rank) {
    if (rank < 0 || size_t(rank) >= cluster.size()) complain("a block that the cluster does not have");
    RunningBlock& block = cluster[rank];
    if (!block.begun || block.ended) complain("shared memory of a block that does not run");
    Sent sent = {place_of(place), place_of(barrier), {}, size, Snapshot(*current)};
    memcpy(sent.bytes, bytes, size);
    block.inbox.push_back(sent);
    ++now;
}

// What was sent to the block whose turn it is; whether there was anything.
static inline bool deliver() {
    RunningBlock& block = cluster[own_rank];
    for (const Sent& sent : block.inbox) {
        memcpy(shared_memory + sent.place, sent.bytes, sent.size);
        const size_t number = number_of(sent.barrier);
        message_arrives(own_rank, sent.place, sent.size, sent.sender, number);
        mbarriers[number].phase.add(sent.sender);
        state_at(sent.barrier)->bytes -= sent.size;
        end_phase(sent.barrier);
    }
    const bool any = !block.inbox.empty();
    block.inbox.clear();
    return any;
}

// The barrier of the cluster -------------------------------------------------------------------------------------------

void arrive_at_cluster() {
    if (current->arrivals != current->waits) complain("an arrival at the barrier of a cluster before the last was waited for");
    ++current->arrivals;
    ++arrivals;
    Arrived& at = arrived[current->arrivals % 2];
    if (at.number != current->arrivals) at = {current->arrivals, {}};
    at.all.add(Snapshot(*current));
    ++now;
    current->wait = ARRIVED;
    hand_over();
}

static inline bool all_arrived(const Fiber& fiber) { return arrivals >= fiber.waits * cluster.size() * fibers.size(); }

void wait_for_cluster() {
    ++current->waits;
    if (current->arrivals != current->waits) complain("a wait at the barrier of a cluster without an arrival");
    if (!all_arrived(*current)) {
        current->wait = AT_CLUSTER;
        hand_over();
    }
    learn(*current, arrived[current->waits % 2].all.all());
}

// Turns ----------------------------------------------------------------------------------------------------------------

static inline void enter_block(size_t b, size_t threads, size_t shared_bytes) {
    RunningBlock& block = cluster[b];
    own_rank = b;
    blockIdx = block.place;
    std::swap(fibers, block.fibers);
    if (block.begun) {
        if (cluster.size() == 1) return;
        std::copy(block.shared.begin(), block.shared.end(), shared_memory);
        std::copy(block.fixed.begin(), block.fixed.end(), shared_memory + STATIC_BEGIN);
        return;
    }
    block.begun = true;
    fibers.resize(threads);
    for (size_t t = 0; t < threads; ++t) {
        fibers[t] = Fiber{};
        fibers[t].number = t;
    }
    if (shared_bytes) std::fill_n(shared_memory, shared_bytes + CANARY, 0xFF);
    std::fill_n(shared_memory + STATIC_BEGIN, static_bytes, 0xFF);
}

static inline void leave_block(size_t b, size_t shared_bytes) {
    if (cluster.size() > 1) {
        const unsigned char* fixed = shared_memory + STATIC_BEGIN;
        cluster[b].shared.assign(shared_memory, shared_memory + shared_bytes + CANARY);
        cluster[b].fixed.assign(fixed, fixed + static_bytes);
    }
    std::swap(fibers, cluster[b].fibers);
}

// Threads that need wait no longer go on, in a new turn those that have just arrived as well; whether something happened.
static inline bool release_from_cluster(bool new_turn) {
    bool any = deliver();
    for (Fiber& fiber : fibers) {
        const bool over = fiber.awaited ? fiber.awaited->phase != fiber.parity : all_arrived(fiber);
        if (!(fiber.wait == AT_CLUSTER && over) && !(fiber.wait == ARRIVED && new_turn)) continue;
        fiber.wait = RUNNING;
        any = true;
    }
    return any;
}
