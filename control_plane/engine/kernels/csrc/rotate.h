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

#endif
