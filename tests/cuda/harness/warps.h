// What the threads of a block say to each other: barriers, and the functions of a warp.
//
// A thread that waits hands over to the scheduler (emulator.cpp), which goes on when no thread can run any further:
// then warps whose lanes have all arrived get their answers, or, if every thread waits at the same barrier, all go on.
// Anything else is a mistake of the kernel: on a GPU it hangs, or reads what nobody wrote.
constexpr unsigned WARP = 32;
enum Wait { RUNNING, AT_BARRIER, IN_WARP, ARRIVED, AT_CLUSTER, ENDED };  // ARRIVED and AT_CLUSTER: clusters.h
enum Question { SHUFFLE, MEET };

struct AsyncCopy {
    void* to;
    unsigned char bytes[16];
    int size;
};
struct AsyncCopies {  // of a thread: async_copies.h
    std::vector<AsyncCopy> open;                 // in no group yet
    std::vector<std::vector<AsyncCopy>> groups;  // that it has not waited for, the oldest first
};

struct MbarrierState;
struct Fiber {
    unsigned number;  // in the block, x fastest
    Wait wait;
    int site;  // the line that it waits in: the same call for all who wait together
    Question question;
    unsigned mask;
    uint64_t value;  // shuffled
    int source;      // the lane whose value it asks for
    uint64_t answer;
    unsigned arrivals, waits;   // at the barrier of its cluster
    const MbarrierState* awaited;  // an mbarrier that it waits at, and for the end of which phase
    int parity;
    AsyncCopies copies;
    uint32_t lanes[WARP];  // what it knows of its warp and of all threads (races.h)
    const uint32_t* known;
    void* context;
    unsigned char* stack;
};

static std::vector<Fiber> fibers;
static Fiber* current;
static void* scheduler;
static const char* complaint;

static inline void hand_over() { switch_context(&current->context, scheduler); }

// Ends the launch: the scheduler does not come back to a block with a complaint.
void complain(const char* text) {
    complaint = text;
    hand_over();
}

EXPORTED int skipped_site;  // the line of a barrier that is left out, as a planted mistake; 0 for none
int skipped_site;

void block_barrier(int site) {
    if (site == skipped_site) return;
    current->wait = AT_BARRIER;
    current->site = site;
    hand_over();
}

static inline uint64_t ask(int site, Question question, unsigned mask, uint64_t value, int source) {
    const unsigned lane = current->number % WARP;
    if (!(mask >> lane & 1)) complain("a lane calls a function of its warp with a mask that it is not in");
    current->wait = IN_WARP;
    current->site = site;
    current->question = question;
    current->mask = mask;
    current->value = value;
    current->source = source;
    hand_over();
    return current->answer;
}

uint64_t shuffle_bits(int site, unsigned mask, uint64_t bits, unsigned flipped) {
    return ask(site, SHUFFLE, mask, bits, int(current->number % WARP) ^ int(flipped));
}

void meet(int site, unsigned mask) {
    if (site != skipped_site) ask(site, MEET, mask, 0, 0);
}

#include "races.h"

// For the scheduler ----------------------------------------------------------------------------------------------------

// The lanes of a warp that have not ended.
static inline unsigned lanes_alive(size_t first) {
    unsigned alive = 0;
    for (size_t t = first; t < fibers.size() && t < first + WARP; ++t)
        if (fibers[t].wait != ENDED) alive |= 1u << (t - first);
    return alive;
}

static inline bool wait_together(const Fiber& a, const Fiber& b) {
    return b.wait == IN_WARP && a.site == b.site && a.question == b.question && a.mask == b.mask;
}

// What a lane gets: a value that nobody gave reads as NaN.
static inline uint64_t answer_to(const Fiber& asker, size_t first, unsigned present) {
    const bool given = asker.source >= 0 && asker.source < int(WARP) && (present >> asker.source & 1);
    return given ? fibers[first + asker.source].value : ~uint64_t(0);
}

// Answers the lanes of a warp that wait together and are complete; whether there were any.
static inline bool answer_warp(size_t first) {
    const unsigned alive = lanes_alive(first);
    unsigned answered = 0;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(alive >> lane & 1) || (answered >> lane & 1) || fibers[first + lane].wait != IN_WARP) continue;
        const Fiber& asker = fibers[first + lane];
        const unsigned present = asker.mask & alive;
        bool complete = true;
        for (unsigned other = 0; other < WARP; ++other)
            if ((present >> other & 1) && !wait_together(asker, fibers[first + other])) complete = false;
        if (!complete) continue;
        for (unsigned other = 0; other < WARP; ++other)
            if (present >> other & 1) fibers[first + other].answer = answer_to(fibers[first + other], first, present);
        answered |= present;
        if (asker.question == MEET) lanes_have_met(first, present);
    }
    for (unsigned lane = 0; lane < WARP; ++lane)
        if (answered >> lane & 1) fibers[first + lane].wait = RUNNING;
    return answered != 0;
}

// Whether a thread waits for other blocks, whose turn it is then.
static inline bool waits_for_others(const Fiber& fiber) { return fiber.wait == ARRIVED || fiber.wait == AT_CLUSTER; }

static inline bool answer_warps() {
    bool any = false;
    for (size_t first = 0; first < fibers.size(); first += WARP) any = answer_warp(first) || any;
    return any;
}

// Lets go on who can; if nobody can, says why.
static inline bool release() {
    if (answer_warps()) return true;
    if (std::any_of(fibers.begin(), fibers.end(), waits_for_others)) return false;
    for (const Fiber& fiber : fibers) {
        if (fiber.wait == AT_BARRIER && fiber.site == fibers[0].site && fibers[0].wait == AT_BARRIER) continue;
        complaint = fiber.wait == IN_WARP || fibers[0].wait == IN_WARP
                        ? "a function of a warp that not all lanes of its mask reach"
                        : "a barrier that not all threads of the block reach";
        return false;
    }
    block_has_met();
    for (Fiber& fiber : fibers) fiber.wait = RUNNING;
    return true;
}
