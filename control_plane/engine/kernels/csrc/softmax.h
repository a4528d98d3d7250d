/* Softmax. Plain C that dense_isa.h compiles for each instruction set. */

#ifndef FAASMOE_SOFTMAX_H
#define FAASMOE_SOFTMAX_H

#include <stdint.h>

#include "activations.h"
#include "layout.h"

/* Below e^this, a weight is 0: times a value, it could be denormal, which is slow. */
#define LEAST_EXPONENT (-80.0f)

ALWAYS_INLINE float largest_of(const float *values, int64_t count) {
    float largest[SUMS];
    for (int j = 0; j < SUMS; j++) largest[j] = values[0];
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) largest[j] = values[i + j] > largest[j] ? values[i + j] : largest[j];
    for (; i < count; i++) largest[0] = values[i] > largest[0] ? values[i] : largest[0];
    for (int j = 1; j < SUMS; j++) largest[0] = largest[j] > largest[0] ? largest[j] : largest[0];
    return largest[0];
}

/* Replaces values by weights whose ratios are those of their exponentials. Returns the sum of the weights. */
ALWAYS_INLINE float exponentials(float *values, int64_t count) {
    const float largest = largest_of(values, count);
    float sums[SUMS] = {0};
    for (int64_t i = 0; i < count; i++) {
        const float x = values[i] - largest, weight = exp_clamped(x);
        values[i] = x < LEAST_EXPONENT ? 0 : weight;
    }
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += values[i + j];
    for (; i < count; i++) sums[0] += values[i];
    return added_up(sums);
}

ALWAYS_INLINE void softmax(float *values, int64_t count) {
    const float sum = exponentials(values, count);
    for (int64_t i = 0; i < count; i++) values[i] /= sum;
}

#endif
