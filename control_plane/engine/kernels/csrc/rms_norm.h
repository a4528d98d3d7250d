/* Root mean square normalisation, as in the models of transformers. Plain C that dense_isa.h compiles for
 * each instruction set. */

#ifndef FAASMOE_RMS_NORM_H
#define FAASMOE_RMS_NORM_H

#include <math.h>
#include <stdint.h>

#include "activations.h"
#include "layout.h"

/* out = weight * (x / sqrt(mean(x^2) + epsilon)). With bfloat16, the second factor is rounded too, as
 * transformers does. */
ALWAYS_INLINE void rms_norm_row(const enum dtype dtype, int64_t size, const void *x, const void *weight,
                                float epsilon, void *out) {
    float sums[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= size; i += SUMS)
        for (int j = 0; j < SUMS; j++) {
            const float value = stored_value(dtype, x, i + j);
            sums[j] += value * value;
        }
    for (; i < size; i++) sums[0] += stored_value(dtype, x, i) * stored_value(dtype, x, i);
    const float scale = 1.0f / sqrtf(added_up(sums) / (float)size + epsilon);
    for (i = 0; i < size; i++) {
        const float value = stored_value(dtype, x, i) * scale, factor = stored_value(dtype, weight, i);
        if (dtype == BF16)
            ((uint16_t *)out)[i] = float_to_bf16(bf16_to_float(float_to_bf16(value)) * factor);
        else
            ((float *)out)[i] = value * factor;
    }
}

ALWAYS_INLINE void rms_norm(enum dtype dtype, int64_t rows, int64_t size, const char *x, const void *weight,
                            float epsilon, char *out) {
    for (int64_t row = 0; row < rows; row++) {
        const int64_t start = row * size * (dtype == BF16 ? 2 : 4);
        if (dtype == BF16)
            rms_norm_row(BF16, size, x + start, weight, epsilon, out + start);
        else
            rms_norm_row(F32, size, x + start, weight, epsilon, out + start);
    }
}

#endif
