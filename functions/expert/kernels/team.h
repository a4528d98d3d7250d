/* A few threads that share the items of one loop after another, for the length of one call. */

#ifndef FAASMOE_TEAM_H
#define FAASMOE_TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define TEAM_MAX 64

struct team {
    pthread_mutex_t mutex;
    pthread_cond_t loop_done;
    int size, arrived, loops_done;
    atomic_int_fast64_t next_item;
};

/* Waits until all members have finished the loop, and readies the next one. */
static void team_barrier(struct team *team) {
    pthread_mutex_lock(&team->mutex);
    const int loops_done = team->loops_done;
    if (++team->arrived == team->size) {
        team->arrived = 0;
        team->loops_done++;
        atomic_store(&team->next_item, 0);
        pthread_cond_broadcast(&team->loop_done);
    }
    while (team->loops_done == loops_done) pthread_cond_wait(&team->loop_done, &team->mutex);
    pthread_mutex_unlock(&team->mutex);
}

/* Every member calls this; each item is done once, by whoever is free. */
static void team_for(struct team *team, int64_t items, void (*body)(void *member, int64_t item),
                     void *member) {
    int64_t item;
    while ((item = atomic_fetch_add(&team->next_item, 1)) < items) body(member, item);
    team_barrier(team);
}

/* Runs work(member) on `wanted` threads, the caller's among them, with the members at `stride` bytes. Where
 * the system refuses a thread the team is smaller; members only share items, so that changes nothing but the
 * time. */
static void team_run(struct team *team, int wanted, void *(*work)(void *member), void *members,
                     size_t stride) {
    pthread_t threads[TEAM_MAX];
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->loop_done, NULL);
    atomic_init(&team->next_item, 0);
    pthread_mutex_lock(&team->mutex); /* no barrier opens before the size is known */
    team->size = 1;
    while (team->size < wanted) {
        void *member = (char *)members + (size_t)team->size * stride;
        if (pthread_create(&threads[team->size], NULL, work, member) != 0) break;
        team->size++;
    }
    const int size = team->size;
    pthread_mutex_unlock(&team->mutex);
    work(members);
    for (int i = 1; i < size; i++) pthread_join(threads[i], NULL);
    pthread_cond_destroy(&team->loop_done);
    pthread_mutex_destroy(&team->mutex);
}

#endif
