/* One step of the gated delta rule for one head. Plain C that dense_isa.h compiles for each instruction set.
 *
 * A head's state S [key_size][value_size] maps keys to values. A step lets it decay, takes what it has for
 * the key from the new value, and adds the rest: S' = e^g S + k (beta (v - k . e^g S)). The output is q . S'.
 */

#ifndef FAASMOE_DELTA_RULE_H
#define FAASMOE_DELTA_RULE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "layout.h"

#define NORM_EPSILON 1e-6f
#define KEYS_AT_ONCE 4 /* rows of a state that are read together, so that sums are stored less often */

struct delta_step {
    int64_t key_size, value_size;
    const float *state; /* [key_size][value_size], before the step */
    float *next;        /* the state after it; may be the same memory */
    const float *query, *key, *value;
    const float *decay; /* [decay_size], logarithms: one of the head, or one of each value of a key */
    int64_t decay_size;
    float beta;
    float *out;                              /* [value_size] */
    float *factors, *keys, *queries, *delta; /* scratch: three of [key_size], and [value_size] */
};

/* out = factor * x / sqrt(sum of squares of x) */
ALWAYS_INLINE void unit_vector(int64_t size, const float *x, float factor, float *restrict out) {
    float sums[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= size; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += x[i + j] * x[i + j];
    for (; i < size; i++) sums[0] += x[i] * x[i];
    const float scale = factor / sqrtf(added_up(sums) + NORM_EPSILON);
    for (i = 0; i < size; i++) out[i] = x[i] * scale;
}

/* Adds what `count` rows of the state have for the decayed key and query. */
ALWAYS_INLINE void look_up(const int count, int64_t size, const float *rows, const float *keys,
                           const float *queries, float *restrict for_key, float *restrict for_query) {
    for (int64_t v = 0; v < size; v++) {
        float key_sum = for_key[v], query_sum = for_query[v];
        for (int k = 0; k < count; k++) {
            key_sum += keys[k] * rows[k * size + v];
            query_sum += queries[k] * rows[k * size + v];
        }
        for_key[v] = key_sum;
        for_query[v] = query_sum;
    }
}

ALWAYS_INLINE void delta_rule(const struct delta_step *s) {
    const int64_t keys = s->key_size, values = s->value_size;
    float *restrict factors = s->factors, *restrict delta = s->delta, *restrict out = s->out;
    unit_vector(keys, s->key, 1.0f, s->keys);
    unit_vector(keys, s->query, 1.0f / sqrtf((float)keys), s->queries);
    float product = 0;
    for (int64_t k = 0; k < keys; k++) product += s->keys[k] * s->queries[k];
    for (int64_t k = 0; k < keys; k++) factors[k] = exp_clamped(s->decay[s->decay_size > 1 ? k : 0]);
    for (int64_t k = 0; k < keys; k++) s->queries[k] *= factors[k];

    memset(delta, 0, (size_t)values * sizeof *delta);
    memset(out, 0, (size_t)values * sizeof *out);
    int64_t k = 0;
    float decayed[KEYS_AT_ONCE];
    for (; k + KEYS_AT_ONCE <= keys; k += KEYS_AT_ONCE) {
        for (int i = 0; i < KEYS_AT_ONCE; i++) decayed[i] = s->keys[k + i] * factors[k + i];
        look_up(KEYS_AT_ONCE, values, s->state + k * values, decayed, s->queries + k, delta, out);
    }
    for (; k < keys; k++) {
        decayed[0] = s->keys[k] * factors[k];
        look_up(1, values, s->state + k * values, decayed, s->queries + k, delta, out);
    }

    for (int64_t v = 0; v < values; v++) {
        delta[v] = s->beta * (s->value[v] - delta[v]);
        out[v] += product * delta[v];
    }
    for (k = 0; k < keys; k++) {
        const float *row = s->state + k * values, factor = factors[k], key = s->keys[k];
        float *next = s->next + k * values;
        for (int64_t v = 0; v < values; v++) next[v] = factor * row[v] + key * delta[v];
    }
}

#endif
