/* Softmax. Plain C that dense_isa.h compiles for each instruction set. */

#ifndef FAASMOE_SOFTMAX_H
#define FAASMOE_SOFTMAX_H

#include <math.h>
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

/* e^x for x up to 0, or 0. */
ALWAYS_INLINE float softmax_weight(float x) {
    const float weight = exp_clamped(x);
    return x < LEAST_EXPONENT ? 0 : weight;
}

/* Replaces values by weights whose ratios are those of their exponentials. Returns the sum of the weights and
 * of that of another value; with -INFINITY, of them alone. */
ALWAYS_INLINE float exponentials_beside(float other, float *values, int64_t count) {
    const float most = largest_of(values, count), largest = other > most ? other : most;
    float sums[SUMS] = {0};
    for (int64_t i = 0; i < count; i++) values[i] = softmax_weight(values[i] - largest);
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += values[i + j];
    for (; i < count; i++) sums[0] += values[i];
    return added_up(sums) + softmax_weight(other - largest);
}

ALWAYS_INLINE void softmax(float *values, int64_t count) {
    const float sum = exponentials_beside(-INFINITY, values, count);
    for (int64_t i = 0; i < count; i++) values[i] /= sum;
}

#endif
