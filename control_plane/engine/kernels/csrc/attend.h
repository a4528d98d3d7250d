/* Attention of queries over the tokens that they see, and rotary embedding. Plain C that dense_isa.h compiles
 * for each instruction set. */

#ifndef FAASMOE_ATTEND_H
#define FAASMOE_ATTEND_H

#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "elementwise.h"
#include "layout.h"

#define ATTEND_QUERIES 16 /* the most queries of one call */
#define QUERIES_AT_ONCE 4
/* Sums that are kept in registers together: of so many queries and tokens, or queries and 16 values. */
#define SUMS_AT_ONCE 8

/* Queries that share one head of keys and values: of several heads, and of several rows of one sequence. */
struct attend {
    int64_t queries, head_dim;
    const float *query[ATTEND_QUERIES]; /* [head_dim] each, scaled */
    const void *keys, *values;          /* [tokens][head_dim], float32 or bfloat16 */
    int64_t tokens;
    int64_t first[ATTEND_QUERIES], seen[ATTEND_QUERIES]; /* the tokens that a query sees: some of `tokens` */
    float *scores;                                       /* [queries][tokens], scratch */
    float *out;                                          /* [queries][head_dim] */
};

/* Adds a query that sees `seen` tokens from `first` on. */
static inline void attend_to(struct attend *a, const float *query, int64_t first, int64_t seen) {
    a->query[a->queries] = query;
    a->first[a->queries] = first;
    a->seen[a->queries++] = seen;
}

/* With bfloat16, both products and their sum are rounded, as transformers does. */
ALWAYS_INLINE float rotated_value(const enum dtype dtype, float value, float other, float cosine,
                                  float sine) {
    return rounded(dtype, rounded(dtype, value * cosine) + rounded(dtype, other * sine));
}

/* Rotary embedding (arXiv 2104.09864): value i of a head and value i + size / 2 are a vector, which is
 * rotated by an angle of the row's position. */
ALWAYS_INLINE void rotate_head(const enum dtype dtype, int64_t size, const void *x, int64_t start,
                               const void *cosine, const void *sine, int64_t angles, float *out) {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = stored_value(dtype, x, start + i);
        const float second = stored_value(dtype, x, start + half + i);
        out[i] = rotated_value(dtype, first, -second, stored_value(dtype, cosine, angles + i),
                               stored_value(dtype, sine, angles + i));
        out[half + i] = rotated_value(dtype, second, first, stored_value(dtype, cosine, angles + half + i),
                                      stored_value(dtype, sine, angles + half + i));
    }
}

/* Rotates heads [heads][size], which begin at value `start` of x. Their angles begin at value `angles` of
 * cosine and sine. */
ALWAYS_INLINE void rotate(enum dtype dtype, int64_t heads, int64_t size, const void *x, int64_t start,
                          const void *cosine, const void *sine, int64_t angles, float *out) {
    for (int64_t h = 0; h < heads; h++)
        if (dtype == BF16)
            rotate_head(BF16, size, x, start + h * size, cosine, sine, angles, out + h * size);
        else
            rotate_head(F32, size, x, start + h * size, cosine, sine, angles, out + h * size);
}

/* SUMS floats, which the compiler keeps in as many registers as the instruction set needs for them. */
typedef float attend_vector __attribute__((vector_size(4 * SUMS)));

/* `count` values from value i on, up to SUMS, with zeros behind them. */
ALWAYS_INLINE void attend_load(const enum dtype dtype, const void *values, int64_t i, int64_t count,
                               attend_vector *out) {
    typedef uint16_t halves __attribute__((vector_size(2 * SUMS)));
    typedef uint32_t words __attribute__((vector_size(4 * SUMS)));
    halves bits = {0};
    *out = (attend_vector){0};
    if (dtype == F32) {
        memcpy(out, (const float *)values + i, (size_t)count * sizeof(float));
        return;
    }
    memcpy(&bits, (const uint16_t *)values + i, (size_t)count * sizeof(uint16_t));
    const words wide = __builtin_convertvector(bits, words) << 16;
    memcpy(out, &wide, sizeof *out);
}

ALWAYS_INLINE float attend_added_up(const attend_vector *sums) {
    float values[SUMS];
    memcpy(values, sums, sizeof values);
    return added_up(values);
}

/* Adds the products of values [i, i + count) to the sums [queries][tokens]. */
ALWAYS_INLINE void attend_multiply(const enum dtype dtype, const struct attend *a, int64_t q,
                                   const int queries, int64_t t, const int tokens, int64_t i, int64_t count,
                                   attend_vector *sums) {
    attend_vector query[QUERIES_AT_ONCE];
    UNROLLED (n, queries) attend_load(F32, a->query[q + n], i, count, &query[n]);
    UNROLLED (k, tokens) {
        attend_vector key;
        attend_load(dtype, a->keys, (t + k) * a->head_dim + i, count, &key);
        UNROLLED (n, queries) sums[n * tokens + k] += query[n] * key;
    }
}

/* Scores of `queries` x `tokens`, from those of query `q` and token `t` on. Each is added up in the same
 * order, whatever the numbers. */
ALWAYS_INLINE void attend_scores(const enum dtype dtype, const struct attend *a, int64_t q, const int queries,
                                 int64_t t, const int tokens) {
    attend_vector sums[SUMS_AT_ONCE] = {0};
    int64_t i = 0;
    for (; i + SUMS <= a->head_dim; i += SUMS)
        attend_multiply(dtype, a, q, queries, t, tokens, i, SUMS, sums);
    if (i < a->head_dim) attend_multiply(dtype, a, q, queries, t, tokens, i, a->head_dim - i, sums);
    UNROLLED (n, queries)
        UNROLLED (k, tokens) a->scores[(q + n) * a->tokens + t + k] = attend_added_up(&sums[n * tokens + k]);
}

ALWAYS_INLINE void attend_softmax(float *scores, int64_t count) {
    float largest = scores[0], sums[SUMS] = {0};
    for (int64_t i = 1; i < count; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t i = 0; i < count; i++) scores[i] = exp_clamped(scores[i] - largest);
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += scores[i + j];
    for (; i < count; i++) sums[0] += scores[i];
    const float sum = added_up(sums);
    for (i = 0; i < count; i++) scores[i] /= sum;
}

/* The weights of a query's tokens: 0 for those that it does not see. These are tokens of its own sequence,
 * whose rows attend together; if their values are not finite, its sum is not either. */
ALWAYS_INLINE void attend_weights(const struct attend *a, int64_t q) {
    float *scores = a->scores + q * a->tokens;
    const int64_t end = a->first[q] + a->seen[q];
    attend_softmax(scores + a->first[q], a->seen[q]);
    memset(scores, 0, (size_t)a->first[q] * sizeof *scores);
    memset(scores + end, 0, (size_t)(a->tokens - end) * sizeof *scores);
}

/* `count` weighted values of `queries` queries, from value i on: up to `vectors` x SUMS. */
ALWAYS_INLINE void attend_values(const enum dtype dtype, const struct attend *a, int64_t q, const int queries,
                                 int64_t i, const int vectors, int64_t count) {
    attend_vector sums[SUMS_AT_ONCE] = {0};
    const float *weights = a->scores + q * a->tokens;
    for (int64_t t = 0; t < a->tokens; t++)
        UNROLLED (v, vectors) {
            attend_vector value;
            const int64_t first = i + v * SUMS, part = count < SUMS ? count : SUMS;
            attend_load(dtype, a->values, t * a->head_dim + first, part, &value);
            UNROLLED (n, queries) sums[n * vectors + v] += weights[n * a->tokens + t] * value;
        }
    UNROLLED (n, queries)
        memcpy(a->out + (q + n) * a->head_dim + i, &sums[n * vectors], (size_t)count * sizeof(float));
}

/* The scores, the weights and the weighted values of `queries` queries. */
ALWAYS_INLINE void attend_queries(const enum dtype dtype, const struct attend *a, int64_t q,
                                  const int queries) {
    const int share = SUMS_AT_ONCE / queries; /* tokens, or vectors of values */
    int64_t t = 0, i = 0;
    for (; t + share <= a->tokens; t += share) attend_scores(dtype, a, q, queries, t, share);
    for (; t < a->tokens; t++) attend_scores(dtype, a, q, queries, t, 1);
    UNROLLED (n, queries) attend_weights(a, q + n);
    for (; i + share * SUMS <= a->head_dim; i += share * SUMS)
        attend_values(dtype, a, q, queries, i, share, share * SUMS);
    for (; i + SUMS <= a->head_dim; i += SUMS) attend_values(dtype, a, q, queries, i, 1, SUMS);
    if (i < a->head_dim) attend_values(dtype, a, q, queries, i, 1, a->head_dim - i);
}

ALWAYS_INLINE void attend_all(const enum dtype dtype, const struct attend *a) {
    int64_t q = 0;
    for (; q + QUERIES_AT_ONCE <= a->queries; q += QUERIES_AT_ONCE)
        attend_queries(dtype, a, q, QUERIES_AT_ONCE);
    for (; q + 2 <= a->queries; q += 2) attend_queries(dtype, a, q, 2);
    for (; q < a->queries; q++) attend_queries(dtype, a, q, 1);
}

/* `dtype` is that of keys and values. Each branch passes a constant, so the inner loops do not test it. */
ALWAYS_INLINE void attend(enum dtype dtype, const struct attend *a) {
    if (dtype == BF16)
        attend_all(BF16, a);
    else
        attend_all(F32, a);
}

#endif
