/* What happens to activations between the products. Plain C: each instruction set compiles its own copy. */

#ifndef FAASMOE_ACTIVATIONS_H
#define FAASMOE_ACTIVATIONS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "layout.h"

ALWAYS_INLINE uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

ALWAYS_INLINE float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

ALWAYS_INLINE float bf16_to_float(uint16_t bits) { return bits_float((uint32_t)bits << 16); }

static void bf16_to_floats(int64_t count, const uint16_t *bits, float *values) {
    for (int64_t i = 0; i < count; i++) values[i] = bf16_to_float(bits[i]);
}

/* Nearest, ties to even; NaN stays NaN. */
ALWAYS_INLINE uint32_t float_to_bf16(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded;
}

/* Adding 1.5 * 2^23 leaves the integer nearest to a small value, ties to even, in the low bits. */
#define ROUNDING_MAGIC 12582912.0f
ALWAYS_INLINE int32_t round_to_int(float value) {
    return (int32_t)(float_bits(value + ROUNDING_MAGIC) - float_bits(ROUNDING_MAGIC));
}

/* e^x to 2e-7, for |x| <= 87: 2^n * e^r with |r| <= ln(2)/2, and e^r by its Taylor polynomial. */
ALWAYS_INLINE float exp_clamped(float x) {
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    const float n = x * 1.44269504f + ROUNDING_MAGIC - ROUNDING_MAGIC;
    const float r = x - n * 0.693359375f - n * -2.12194440e-4f; /* ln(2) in two parts: the first product is exact */
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * bits_float((uint32_t)(round_to_int(n) + 127) << 23);
}

/* out[r][i] = silu(gate) * up, from tile products [rows][16 gates, 16 ups]; out has `stride` floats a row. */
ALWAYS_INLINE void swiglu_tile(int rows, const float *tile, float *out, int64_t stride) {
    for (int r = 0; r < rows; r++, tile += TILE_ROWS, out += stride)
        for (int i = 0; i < HALF_TILE; i++)
            out[i] = tile[i] / (1.0f + exp_clamped(-tile[i])) * tile[HALF_TILE + i];
}

/* Symmetric int8 with scale absmax / 127. A value that is not finite makes the scale so, and with it the result. */
ALWAYS_INLINE void quantize_group(const float *x, uint32_t *dwords, float *scale, int32_t *correction) {
    uint32_t absmax = 0; /* bits of non-negative floats are in the order of their values, with NaN on top */
    for (int i = 0; i < GROUP_VALUES; i++) {
        const uint32_t bits = float_bits(x[i]) & 0x7FFFFFFF;
        absmax = bits > absmax ? bits : absmax;
    }
    *scale = bits_float(absmax) / 127.0f;
    if (*scale < FLT_MIN) *scale = 0.0f;
    const float divisor = *scale == 0.0f ? INFINITY : *scale;
    int32_t sum = 0;
    for (int i = 0; i < GROUP_STEPS; i++) {
        uint32_t dword = 0;
        for (int j = 0; j < 4; j++) {
            const int8_t q = (int8_t)round_to_int(x[4 * i + j] / divisor);
            sum += q;
            dword |= (uint32_t)(uint8_t)q << (8 * j);
        }
        dwords[i] = dword;
    }
    *correction = -128 * sum;
}

/* One row of activations in the form that weights of `dtype` are multiplied with. `count` is a multiple of 128. */
ALWAYS_INLINE void encode_row(enum dtype dtype, int64_t count, const float *x, uint32_t *dwords, float *scales,
                              int32_t *corrections) {
    if (dtype == F32) {
        memcpy(dwords, x, (size_t)count * sizeof *x);
    } else if (dtype == BF16) {
        for (int64_t i = 0; i < count / 2; i++)
            dwords[i] = float_to_bf16(x[2 * i]) | float_to_bf16(x[2 * i + 1]) << 16;
    } else {
        for (int64_t g = 0; g < count / GROUP_VALUES; g++)
            quantize_group(x + g * GROUP_VALUES, dwords + g * GROUP_STEPS, scales + g, corrections + g);
    }
}

#endif
