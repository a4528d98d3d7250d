/* A few threads that share the items of one loop after another, for the length of one call.
 *
 * Only items that somebody has begun are waited for. A thread that the system starts late, as on a busy
 * machine, finds nothing left to do and leaves; by then the call may have returned. So threads are detached,
 * and who leaves last frees what they share. */

#ifndef FAASMOE_TEAM_H
#define FAASMOE_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define TEAM_MAX 64

struct loop {
    atomic_int_fast64_t begun; /* items */
    int64_t finished;          /* items; under the team's mutex */
};

struct team {
    pthread_mutex_t mutex;
    pthread_cond_t loop_finished;
    atomic_int members;
};

static void team_init(struct team *team) {
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->loop_finished, NULL);
    atomic_init(&team->members, 1);
}

/* Starts `count` threads, each with its member, `stride` bytes apart. Where the system refuses one the team
 * is smaller; members only share items, so that changes nothing but the time. */
static void team_start(struct team *team, int count, void *(*work)(void *member), void *members,
                       size_t stride) {
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < count; i++) {
        pthread_t thread;
        atomic_fetch_add(&team->members, 1);
        if (pthread_create(&thread, &detached, work, (char *)members + (size_t)i * stride) != 0) {
            atomic_fetch_sub(&team->members, 1);
            break;
        }
    }
    pthread_attr_destroy(&detached);
}

/* Every member calls this; each item is done once, by whoever is free. Returns when all are done. */
static void team_for(struct team *team, struct loop *loop, int64_t items,
                     void (*body)(void *member, int64_t item), void *member) {
    int64_t item, mine = 0;
    for (; (item = atomic_fetch_add(&loop->begun, 1)) < items; mine++) body(member, item);
    pthread_mutex_lock(&team->mutex);
    loop->finished += mine;
    if (loop->finished == items) pthread_cond_broadcast(&team->loop_finished);
    while (loop->finished < items) pthread_cond_wait(&team->loop_finished, &team->mutex);
    pthread_mutex_unlock(&team->mutex);
}

/* Whether the caller, who has left, was the last. */
static int team_leave(struct team *team) {
    if (atomic_fetch_sub(&team->members, 1) > 1) return 0;
    pthread_cond_destroy(&team->loop_finished);
    pthread_mutex_destroy(&team->mutex);
    return 1;
}

#endif
