/* Rotary embedding. Plain C that dense_isa.h compiles for each instruction set. */

#ifndef FAASMOE_ROTATE_H
#define FAASMOE_ROTATE_H

#include <stdint.h>

#include "activations.h"
#include "elementwise.h"
#include "layout.h"

/* With bfloat16, both products and their sum are rounded, as transformers does. */
ALWAYS_INLINE float rotated_value(const enum dtype dtype, float value, float other, float cosine,
                                  float sine) {
    return rounded(dtype, rounded(dtype, value * cosine) + rounded(dtype, other * sine));
}

/* Rotary embedding (arXiv 2104.09864): value i of a head and value i + size / 2 are a vector, which is
 * rotated by an angle of the row's position. */
ALWAYS_INLINE void rotate_halves(const enum dtype dtype, int64_t size, const void *x, int64_t start,
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

/* The same of values 2i and 2i + 1. */
ALWAYS_INLINE void rotate_pairs(const enum dtype dtype, int64_t size, const void *x, int64_t start,
                                const void *cosine, const void *sine, int64_t angles, float *out) {
    for (int64_t i = 0; i < size / 2; i++) {
        const float first = stored_value(dtype, x, start + 2 * i);
        const float second = stored_value(dtype, x, start + 2 * i + 1);
        const float c = stored_value(dtype, cosine, angles + i), s = stored_value(dtype, sine, angles + i);
        out[2 * i] = rotated_value(dtype, first, -second, c, s);
        out[2 * i + 1] = rotated_value(dtype, second, first, c, s);
    }
}

/* What of each head is rotated. */
struct rotation {
    int64_t head_dim, rotated; /* values of a head; the first of them that are rotated */
    int interleaved;           /* whether the vectors are pairs, instead of values of two halves */
};

ALWAYS_INLINE void rotate_head(const enum dtype dtype, const struct rotation *r, const void *x, int64_t start,
                               const void *cosine, const void *sine, int64_t angles, float *out) {
    if (r->interleaved)
        rotate_pairs(dtype, r->rotated, x, start, cosine, sine, angles, out);
    else
        rotate_halves(dtype, r->rotated, x, start, cosine, sine, angles, out);
    for (int64_t i = r->rotated; i < r->head_dim; i++) out[i] = stored_value(dtype, x, start + i);
}

/* Rotates heads [heads][head_dim], which begin at value `start` of x. Their angles, `rotated` of them, begin
 * at value `angles` of cosine and sine. */
ALWAYS_INLINE void rotate(enum dtype dtype, const struct rotation *r, int64_t heads, const void *x,
                          int64_t start, const void *cosine, const void *sine, int64_t angles, float *out) {
    for (int64_t h = 0; h < heads; h++)
        if (dtype == BF16)
            rotate_head(BF16, r, x, start + h * r->head_dim, cosine, sine, angles, out + h * r->head_dim);
        else
            rotate_head(F32, r, x, start + h * r->head_dim, cosine, sine, angles, out + h * r->head_dim);
}

#endif
