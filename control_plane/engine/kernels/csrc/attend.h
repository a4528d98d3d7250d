/* Attention of queries over the tokens that they see. Plain C that dense_isa.h compiles for each instruction
 * set.
 *
 * Keys and values are read in parts of some tokens, which become floats once for many queries and stay in the
 * first-level cache meanwhile. Groups of queries skip tokens that none of them sees. Each sum runs over the
 * same values in the same order whatever the groups and parts, so a query's result does not depend on the
 * others. */

#ifndef FAASMOE_ATTEND_H
#define FAASMOE_ATTEND_H

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
    int64_t tokens;
    /* The tokens that a query sees, some of `tokens`. Neither end is before that of the query before it. */
    int64_t first[ATTEND_QUERIES], end[ATTEND_QUERIES];
    float *scores; /* [queries][tokens], scratch */
    float *part;   /* [PART_TOKENS][head_dim], scratch */
    float *out;    /* [queries][head_dim] */
};

/* Adds a query that sees tokens [first, end). */
static inline void attend_to(struct attend *a, const float *query, int64_t first, int64_t end) {
    a->query[a->queries] = query;
    a->first[a->queries] = first;
    a->end[a->queries++] = end;
}

/* Keys or values [end - first][head_dim] of tokens [first, end). */
struct attend_part {
    const void *rows;
    int64_t first, end;
};

enum attend_pass { SCORES, WEIGHTED_VALUES };

/* Makes a query's scores weights, 0 for tokens that it does not see. These are tokens of its own sequence,
 * whose rows attend together; if their values are not finite, its output is not either. Returns the sum. */
ALWAYS_INLINE float attend_weights(const struct attend *a, int64_t q) {
    float *scores = a->scores + q * a->tokens;
    const int64_t first = a->first[q], end = a->end[q];
    memset(scores, 0, (size_t)first * sizeof *scores);
    memset(scores + end, 0, (size_t)(a->tokens - end) * sizeof *scores);
    return exponentials(scores + first, end - first);
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
