/* What a layer adds to its rows, value by value. Plain C that dense_isa.h compiles for each instruction set.
 * With bfloat16, each result is rounded where transformers rounds it. */

#ifndef FAASMOE_ELEMENTWISE_H
#define FAASMOE_ELEMENTWISE_H

#include <math.h>
#include <stdint.h>

#include "activations.h"
#include "layout.h"

/* A value as an array of `dtype` would hold it. */
ALWAYS_INLINE float rounded(const enum dtype dtype, float value) {
    return dtype == BF16 ? bf16_to_float(float_to_bf16(value)) : value;
}

ALWAYS_INLINE void store_value(const enum dtype dtype, void *values, int64_t i, float value) {
    if (dtype == BF16)
        ((uint16_t *)values)[i] = float_to_bf16(value);
    else
        ((float *)values)[i] = value;
}

/* hidden += factor * (routed + shared), each of which may be NULL. `routed` has the dtype `routed_dtype`, the
 * others have `dtype`. */
ALWAYS_INLINE void add_experts_typed(const enum dtype dtype, const enum dtype routed_dtype, int64_t count,
                                     float factor, void *hidden, const void *routed, const void *shared) {
    for (int64_t i = 0; i < count; i++) {
        float sum = routed ? rounded(dtype, stored_value(routed_dtype, routed, i)) : 0;
        if (shared) sum = rounded(dtype, sum + stored_value(dtype, shared, i));
        store_value(dtype, hidden, i, stored_value(dtype, hidden, i) + rounded(dtype, factor * sum));
    }
}

/* Each branch passes constants, so the loop does not test them. */
ALWAYS_INLINE void add_experts(enum dtype dtype, enum dtype routed_dtype, int64_t count, float factor,
                               void *hidden, const void *routed, const void *shared) {
    if (dtype == F32)
        add_experts_typed(F32, F32, count, factor, hidden, routed, shared);
    else if (routed_dtype == F32)
        add_experts_typed(BF16, F32, count, factor, hidden, routed, shared);
    else
        add_experts_typed(BF16, BF16, count, factor, hidden, routed, shared);
}

ALWAYS_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp_clamped(-x)); }

ALWAYS_INLINE void gate_row(const enum dtype dtype, int64_t size, const void *gate, const void *x,
                            int64_t start, void *out) {
    float sums[SUMS] = {0};
    int64_t i = 0;
    for (; i + SUMS <= size; i += SUMS)
        for (int j = 0; j < SUMS; j++)
            sums[j] += stored_value(dtype, gate, i + j) * stored_value(dtype, x, start + i + j);
    for (; i < size; i++) sums[0] += stored_value(dtype, gate, i) * stored_value(dtype, x, start + i);
    const float factor = rounded(dtype, sigmoid(rounded(dtype, added_up(sums))));
    for (i = start; i < start + size; i++) store_value(dtype, out, i, factor * stored_value(dtype, out, i));
}

/* Multiplies each row of out [rows][size] with sigmoid(gate [size] . the row of x [rows][size]). */
ALWAYS_INLINE void gate_rows(enum dtype dtype, int64_t rows, int64_t size, const void *gate, const void *x,
                             void *out) {
    for (int64_t row = 0; row < rows; row++)
        if (dtype == BF16)
            gate_row(BF16, size, gate, x, row * size, out);
        else
            gate_row(F32, size, gate, x, row * size, out);
}

/* log(1 + e^x), which is x where e^x is large. */
ALWAYS_INLINE float softplus(float x) { return x > 20 ? x : log1pf(exp_clamped(x)); }

/* The functions of a gate of attention. */
enum attention_gate { GATE_SIGMOID, GATE_SOFTPLUS };

/* values [heads][size] *= the function of gate, which has one value for each of theirs, or for each head. */
ALWAYS_INLINE void gate_heads(enum dtype dtype, enum attention_gate function, int64_t heads, int64_t size,
                              int64_t gates, const void *gate, int64_t first_gate, void *values,
                              int64_t first) {
    const int64_t shared = heads * size / gates;
    for (int64_t g = 0; g < gates; g++) {
        const float x = stored_value(dtype, gate, first_gate + g);
        const float factor = rounded(dtype, function == GATE_SIGMOID ? sigmoid(x) : softplus(x));
        for (int64_t i = first + g * shared; i < first + (g + 1) * shared; i++)
            store_value(dtype, values, i, factor * stored_value(dtype, values, i));
    }
}

#endif
