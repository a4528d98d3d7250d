/* A team: the threads that share the loops of one call, item by item.
 *
 * The caller is a member and computes too; the pool's threads (pool.h) join it. Nobody waits for threads to
 * join: a thread that is late, as on a busy machine, finds no items left. It may join even after the call has
 * returned, so the last member to leave frees the memory that the team shares.
 *
 * Memory order: results pass from one loop to the next through plain memory. A member adds to `finished`
 * after it has written its items, and a member goes on to the next loop after it has read the complete count
 * from `finished`. All atomic operations here are sequentially consistent, so the read synchronises with
 * every addition, and all items' results are visible in the next loop and to the caller. A weaker
 * order would not be faster: there is one atomic operation per item, and on x86 it is the same instruction in
 * every order. */

#ifndef FAASMOE_TEAM_H
#define FAASMOE_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "pool.h"

#define CLAIMS 4 /* shares of a loop: a member claims 1 / CLAIMS of what would be its part of the rest */
#define WORTH_A_TEAM (2 << 20) /* bytes of weights times rows: below this, waking a thread takes longer */

struct loop {
    atomic_int_fast64_t begun;    /* items that a member has claimed; may exceed the number of items */
    atomic_int_fast64_t finished; /* items whose results are written */
};

struct team {
    struct offer offer;
    pthread_mutex_t mutex;
    pthread_cond_t loop_finished;
    atomic_int members; /* that have joined and not left, the caller among them */
};

/* The number of members for a call. `bytes` is the number of bytes of weights, each counted once per row. */
static int team_size(int64_t bytes, int threads) { return bytes < WORTH_A_TEAM ? 1 : threads; }

/* Lets up to `count` threads of the pool call work(member). Each gets one of `members`, which are `stride`
 * bytes apart. The number that joins does not change the result, since which member computes an item does not
 * matter. */
static void team_start(struct team *team, int count, void (*work)(void *member), void *members,
                       size_t stride) {
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->loop_finished, NULL);
    atomic_init(&team->members, 1);
    team->offer = (struct offer){
        .work = work, .members = members, .stride = stride, .places = count, .taken = &team->members};
    if (count > 0) pool_offer(&team->offer);
}

/* How many of the `left` items a member claims. Neighbours, since their weights follow each other in memory:
 * alone, every item would begin with a wait for it. Ever fewer, so that all members finish at the same time.
 */
static int64_t claim_of(int64_t left, int members) {
    const int64_t share = left / (CLAIMS * members);
    return share > 1 ? share : 1;
}

/* Every member calls this for the same loops in the same order. Each item is computed once, by the first
 * member that is free. Returns when all items are finished. */
static void team_for(struct team *team, struct loop *loop, int64_t items,
                     void (*body)(void *member, int64_t item), void *member) {
    const int members = team->offer.places + 1;
    int64_t mine = 0;
    for (int64_t begun; (begun = atomic_load(&loop->begun)) < items;) {
        const int64_t count = claim_of(items - begun, members);
        const int64_t first = atomic_fetch_add(&loop->begun, count);
        for (int64_t item = first; item < first + count && item < items; item++, mine++) body(member, item);
    }
    /* One addition per member, not per item, keeps the counter's cache line from moving between cores. */
    if (atomic_fetch_add(&loop->finished, mine) + mine == items) {
        /* Under the mutex, so that no member can miss the signal between its check and its wait. */
        pthread_mutex_lock(&team->mutex);
        pthread_cond_broadcast(&team->loop_finished);
        pthread_mutex_unlock(&team->mutex);
        return;
    }
    /* Each of the others is busy with its last item, which usually takes less time than going to sleep. */
    for (int64_t end = now_ns() + SPIN_NS; now_ns() < end; cpu_relax())
        if (atomic_load(&loop->finished) == items) return;
    pthread_mutex_lock(&team->mutex);
    while (atomic_load(&loop->finished) < items) pthread_cond_wait(&team->loop_finished, &team->mutex);
    pthread_mutex_unlock(&team->mutex);
}

/* Every member calls this after its last loop. Returns 1 to the last one, which must free the shared memory.
 * The atomic subtraction orders the other members' accesses before that. */
static int team_leave(struct team *team) {
    if (team->offer.places > 0) pool_withdraw(&team->offer);
    if (atomic_fetch_sub(&team->members, 1) > 1) return 0;
    pthread_cond_destroy(&team->loop_finished);
    pthread_mutex_destroy(&team->mutex);
    return 1;
}

#endif
