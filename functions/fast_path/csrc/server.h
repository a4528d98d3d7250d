/* What all connections of a function share: its block, and the states that Python and C use in turn. */

#ifndef FAASMOE_SERVER_H
#define FAASMOE_SERVER_H

#include "condition.h"
#include "gated_ffn.h"
#include "shared.h"

#define MAX_NAME_BYTES 128 /* of the model's fingerprint, the instance's name or an address */

/* The experts of the block by position: the order in which they lie in its file, layer by layer. */
struct residency {
    Condition *guard;
    struct residency_state *state;
    int64_t *ready; /* [positions], the byte of the arena at which an expert begins that a call may use at
                       once; -1 for others */
    int64_t *held;  /* [positions], of which the first state->held are those of the running call in C */
    /* The estimates of eviction.py. */
    struct uses_state *uses_state;
    double *uses;          /* [half_lives][positions] */
    double *rounds;        /* [positions] */
    int64_t *last_used;    /* [positions] */
    const double *kept;    /* [half_lives] */
    const int64_t *bounds; /* [layers + 1], the first position of each layer */
    int64_t positions, half_lives;
    double scaled_rows, least;
};

struct server {
    const struct isa *isa;
    struct shape shape;
    enum dtype hidden_dtype;
    int threads;
    int64_t top_k, layers, experts;
    int64_t max_body_nbytes;
    char model[MAX_NAME_BYTES], instance[MAX_NAME_BYTES];
    const uint8_t *weights;
    const int64_t *layer_numbers; /* [layers] */
    const int64_t *position_of;   /* [layers][experts], -1 for other blocks' experts */
    Condition *function_guard, *proofs_guard, *connections_guard;
    struct function_state *function;
    struct proofs_state *proofs; /* an empty proof of the caller: everybody may call */
    struct connections_state *connections;
    struct residency residency;
    double report_seconds; /* after which a connection gets a report, even if nothing has changed */
};

#define GUARDED(condition)                                                              \
    for (int guarded_once = (pthread_mutex_lock(&(condition)->mutex), 1); guarded_once; \
         guarded_once = (pthread_mutex_unlock(&(condition)->mutex), 0))

/* time.monotonic() of Python */
static inline double monotonic(void) { return (double)now_ns() * 1e-9; }

#endif
