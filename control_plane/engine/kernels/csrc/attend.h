/* Attention of one row over the tokens that it sees, and rotary embedding. Plain C that dense_isa.h compiles
 * for each instruction set. */

#ifndef FAASMOE_ATTEND_H
#define FAASMOE_ATTEND_H

#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "elementwise.h"
#include "layout.h"

#define TOKENS_PER_PASS \
    4 /* added up in registers before a sum is stored: a quarter of the loads and stores */

/* The query heads of one row that share one head of keys and values. */
struct attend {
    int64_t heads, head_dim, tokens;
    const float *query;        /* [heads][head_dim], scaled */
    const void *keys, *values; /* [tokens][head_dim], float32 or bfloat16 */
    float *scores;             /* [heads][tokens], scratch */
    float *out;                /* [heads][head_dim] */
};

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

ALWAYS_INLINE float attend_dot(const enum dtype dtype, int64_t count, const float *query, const void *keys,
                               int64_t start) {
    float sums[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += query[i + j] * stored_value(dtype, keys, start + i + j);
    for (; i < count; i++) sums[0] += query[i] * stored_value(dtype, keys, start + i);
    return added_up(sums);
}

ALWAYS_INLINE void attend_softmax(float *scores, int64_t count) {
    float largest = scores[0], sum = 0;
    for (int64_t i = 1; i < count; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t i = 0; i < count; i++) scores[i] = exp_clamped(scores[i] - largest);
    for (int64_t i = 0; i < count; i++) sum += scores[i];
    for (int64_t i = 0; i < count; i++) scores[i] /= sum;
}

/* out += the weighted values of the `count` tokens that begin at `first`. */
ALWAYS_INLINE void attend_add(const enum dtype dtype, const struct attend *a, int64_t first, const int count,
                              const float *weights, float *out) {
    const int64_t size = a->head_dim, start = first * size;
    for (int64_t i = 0; i < size; i++) {
        float sum = out[i];
        UNROLLED (t, count) sum += weights[t] * stored_value(dtype, a->values, start + t * size + i);
        out[i] = sum;
    }
}

/* Token by token, so that each key and value is read from memory once for all heads that share it. */
ALWAYS_INLINE void attend_rows(const enum dtype dtype, const struct attend *a) {
    const int64_t size = a->head_dim;
    for (int64_t t = 0; t < a->tokens; t++)
        for (int64_t h = 0; h < a->heads; h++)
            a->scores[h * a->tokens + t] = attend_dot(dtype, size, a->query + h * size, a->keys, t * size);
    for (int64_t h = 0; h < a->heads; h++) attend_softmax(a->scores + h * a->tokens, a->tokens);
    memset(a->out, 0, (size_t)(a->heads * size) * sizeof *a->out);
    int64_t t = 0;
    for (; t + TOKENS_PER_PASS <= a->tokens; t += TOKENS_PER_PASS)
        for (int64_t h = 0; h < a->heads; h++)
            attend_add(dtype, a, t, TOKENS_PER_PASS, a->scores + h * a->tokens + t, a->out + h * size);
    for (; t < a->tokens; t++)
        for (int64_t h = 0; h < a->heads; h++)
            attend_add(dtype, a, t, 1, a->scores + h * a->tokens + t, a->out + h * size);
}

/* `dtype` is that of keys and values. Each branch passes a constant, so the inner loops do not test it. */
ALWAYS_INLINE void attend(enum dtype dtype, const struct attend *a) {
    if (dtype == BF16)
        attend_rows(BF16, a);
    else
        attend_rows(F32, a);
}

#endif
