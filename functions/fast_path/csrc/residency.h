/* Takes the experts of a call that are all in memory, and counts their use, as residency.py, expert_cache.py
 * and eviction.py do. */

#ifndef FAASMOE_RESIDENCY_H
#define FAASMOE_RESIDENCY_H

#include "server.h"

#define CALL_WAIT_SECONDS 1.0 /* for the call before: whoever has to wait longer does so in Python */

/* The experts of a call, ascending. */
struct called_experts {
    int64_t layer; /* counted from the block's first */
    int64_t count, rows;
    int64_t *position; /* [count] */
    int64_t *rows_of;  /* [count] */
};

/* Whether the last answer of the connection has a report that still holds. */
static int is_reported(const struct residency_state *state, const struct client_state *client,
                       double seconds) {
    return client->reported == state->version && monotonic() - client->reported_at < seconds;
}

/* Waits for the end of the running call, if that comes soon. */
static void await_end(const struct residency *r) {
    const struct timespec end = time_after(CALL_WAIT_SECONDS);
    while (r->state->in_call && r->state->is_plain) {
        r->state->wanted = 1;
        if (pthread_cond_timedwait(&r->guard->changed, &r->guard->mutex, &end) == ETIMEDOUT) return;
    }
}

/* Begins a call if no other is running any more and nothing but its use has to be accounted: returns 1, and
 * sets offsets[i] for expert i. Returns 0 otherwise. Until residency_finish, no expert of it is dropped. */
static int residency_begin(const struct server *server, const struct client_state *client,
                           const struct called_experts *called, int64_t *offsets) {
    const struct residency *r = &server->residency;
    int begun = 0;
    GUARDED(r->guard) {
        if (r->state->in_call) await_end(r);
        begun =
            r->state->is_plain && !r->state->in_call && is_reported(r->state, client, server->report_seconds);
        for (int64_t i = 0; begun && i < called->count; i++) {
            offsets[i] = r->ready[called->position[i]];
            begun = offsets[i] >= 0;
        }
        if (begun) {
            memcpy(r->held, called->position, (size_t)called->count * sizeof *r->held);
            r->state->held = called->count;
            r->state->in_call = 1;
        }
    }
    return begun;
}

static double least_of(double a, double b) { return a < b ? a : b; }

/* NextUse.record of eviction.py */
static void count_use(const struct residency *r, const struct called_experts *called) {
    const int64_t first = r->bounds[called->layer], end = r->bounds[called->layer + 1];
    r->uses_state->calls++;
    r->uses_state->layer = called->layer;
    for (int64_t h = 0; h < r->half_lives; h++) {
        double *uses = r->uses + h * r->positions;
        for (int64_t p = first; p < end; p++) uses[p] *= r->kept[h];
        for (int64_t i = 0; i < called->count; i++) {
            const double share = (double)called->rows_of[i] * (r->scaled_rows / (double)called->rows);
            uses[called->position[i]] += (1 - r->kept[h]) * least_of(1, share);
        }
    }
    for (int64_t i = 0; i < called->count; i++) r->last_used[called->position[i]] = r->uses_state->calls;
    for (int64_t p = first; p < end; p++) {
        double sum = 0;
        for (int64_t h = 0; h < r->half_lives; h++) sum += r->uses[h * r->positions + p];
        const double mean = sum / (double)r->half_lives;
        r->rounds[p] = 1 / (mean > r->least ? mean : r->least);
    }
}

/* Ends the call, and wakes those that wait for its end. */
static void residency_finish(const struct residency *r, const struct called_experts *called) {
    GUARDED(r->guard) {
        count_use(r, called);
        r->state->in_call = r->state->held = 0;
        if (r->state->wanted) pthread_cond_broadcast(&r->guard->changed);
        r->state->wanted = 0;
    }
}

#endif
