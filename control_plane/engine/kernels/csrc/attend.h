/* Attention of queries over the tokens that they see. Plain C that dense_isa.h compiles for each instruction
 * set.
 *
 * Keys and values are read in parts of some tokens, which become floats once for many queries and stay in the
 * first-level cache meanwhile. Groups of queries skip tokens that none of them sees. Each sum runs over the
 * same values in the same order whatever the groups and parts, so a query's result does not depend on the
 * others. */

#ifndef FAASMOE_ATTEND_H
#define FAASMOE_ATTEND_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "layout.h"
#include "softmax.h"

#define ATTEND_QUERIES 32 /* the most queries of one call */
#define PART_TOKENS 32
#define CONVERTING_PAYS 4 /* with as many queries or more */

/* Queries that share one head of keys and values: of several heads, and of several rows of one sequence. */
struct attend {
    int64_t queries, head_dim;
    const float *query[ATTEND_QUERIES]; /* [head_dim] each, scaled */
    const void *keys, *values;          /* [tokens][head_dim], float32 or bfloat16 */
    int64_t value_size;                 /* of each value, if that is not head_dim; 0: it is */
    int64_t value_stride;               /* from one token's value to the next's; 0: value_size */
    int64_t tokens;
    /* The tokens that a query sees, some of `tokens`. Neither end is before that of the query before it. */
    int64_t first[ATTEND_QUERIES], end[ATTEND_QUERIES];
    float softcap;      /* scores become softcap * tanh(score / softcap); 0: they stay */
    const float *sinks; /* [queries]: a score of each in its softmax that belongs to no token; or NULL */
    float *scores;      /* [queries][tokens], scratch */
    float *part;        /* [PART_TOKENS][the larger of head_dim and value_size], scratch */
    float *out;         /* [queries][value_size] */
};

/* Adds a query that sees tokens [first, end). */
static inline void attend_to(struct attend *a, const float *query, int64_t first, int64_t end) {
    a->query[a->queries] = query;
    a->first[a->queries] = first;
    a->end[a->queries++] = end;
}

/* Keys or values [end - first][size] of tokens [first, end), `stride` values apart. */
struct attend_part {
    const void *rows;
    int64_t size, stride, first, end;
};

enum attend_pass { SCORES, WEIGHTED_VALUES };

static inline struct attend_part attend_keys(const struct attend *a) {
    return (struct attend_part){a->keys, a->head_dim, a->head_dim, 0, a->tokens};
}

static inline struct attend_part attend_values(const struct attend *a) {
    const int64_t size = a->value_size ? a->value_size : a->head_dim;
    return (struct attend_part){a->values, size, a->value_stride ? a->value_stride : size, 0, a->tokens};
}

/* With tanh(x) = 1 - 2 / (e^2x + 1). */
ALWAYS_INLINE void cap_scores(float cap, float *scores, int64_t count) {
    for (int64_t i = 0; i < count; i++) scores[i] = cap - 2 * cap / (exp_clamped(scores[i] * (2 / cap)) + 1);
}

/* Makes a query's scores weights, 0 for tokens that it does not see. These are tokens of its own sequence,
 * whose rows attend together; if their values are not finite, its output is not either. Returns their sum,
 * with the sink's. */
ALWAYS_INLINE float attend_weights(const struct attend *a, int64_t q) {
    float *scores = a->scores + q * a->tokens;
    const int64_t first = a->first[q], end = a->end[q];
    memset(scores, 0, (size_t)first * sizeof *scores);
    memset(scores + end, 0, (size_t)(a->tokens - end) * sizeof *scores);
    if (a->softcap != 0) cap_scores(a->softcap, scores + first, end - first);
    return exponentials_beside(a->sinks ? a->sinks[q] : -INFINITY, scores + first, end - first);
}

#define ATTEND_JOINED(name, lanes) attend_##name##_##lanes
#define ATTEND_NAME(name, lanes) ATTEND_JOINED(name, lanes)

#define LANES 4
#include "attend_vectors.h"
#undef LANES
#define LANES 8
#include "attend_vectors.h"
#undef LANES
#define LANES 16
#include "attend_vectors.h"
#undef LANES

#endif
