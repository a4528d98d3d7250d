/* A few threads that share the items of one loop after another, for the length of one call.
 *
 * The caller works itself, and offers the rest to the pool's threads (pool.h). Only items that somebody has
 * begun are waited for: who comes late, as on a busy machine, finds nothing left to do. By then the call may
 * have returned, so who leaves last frees what the team shares. */

#ifndef FAASMOE_TEAM_H
#define FAASMOE_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "pool.h"

#define WORTH_A_TEAM (2 << 20) /* bytes of weights times rows: less takes no longer than waking a thread */

struct loop {
    atomic_int_fast64_t begun, finished; /* items */
};

struct team {
    struct offer offer;
    pthread_mutex_t mutex;
    pthread_cond_t loop_finished;
    atomic_int members;
};

/* How many members a call that multiplies so many bytes of weights with a row each keeps busy. */
static int team_size(int64_t bytes, int threads) { return bytes < WORTH_A_TEAM ? 1 : threads; }

/* Has up to `count` other threads call work(member), each with a member of its own, `stride` bytes apart.
 * Members only share items, so how many come changes nothing but the time. */
static void team_start(struct team *team, int count, void (*work)(void *member), void *members,
                       size_t stride) {
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->loop_finished, NULL);
    atomic_init(&team->members, 1);
    team->offer = (struct offer){
        .work = work, .members = members, .stride = stride, .places = count, .taken = &team->members};
    if (count > 0) pool_offer(&team->offer);
}

/* Every member calls this; each item is done once, by whoever is free. Returns when all are done. */
static void team_for(struct team *team, struct loop *loop, int64_t items,
                     void (*body)(void *member, int64_t item), void *member) {
    int64_t item, mine = 0;
    for (; (item = atomic_fetch_add(&loop->begun, 1)) < items; mine++) body(member, item);
    if (atomic_fetch_add(&loop->finished, mine) + mine == items) {
        pthread_mutex_lock(&team->mutex);
        pthread_cond_broadcast(&team->loop_finished);
        pthread_mutex_unlock(&team->mutex);
        return;
    }
    /* The others are busy with one item each, which mostly takes less time than going to sleep. */
    for (int64_t end = now_ns() + SPIN_NS; now_ns() < end; cpu_relax())
        if (atomic_load(&loop->finished) == items) return;
    pthread_mutex_lock(&team->mutex);
    while (atomic_load(&loop->finished) < items) pthread_cond_wait(&team->loop_finished, &team->mutex);
    pthread_mutex_unlock(&team->mutex);
}

/* To be called after the last loop. Whether the caller was the last member, who frees what they share. */
static int team_leave(struct team *team) {
    if (team->offer.places > 0) pool_withdraw(&team->offer);
    if (atomic_fetch_sub(&team->members, 1) > 1) return 0;
    pthread_cond_destroy(&team->loop_finished);
    pthread_mutex_destroy(&team->mutex);
    return 1;
}

#endif
