/* Activations before and after the tile products: conversion, quantisation, what is between an expert's
 * products. Plain C that isa.h
 * compiles for each instruction set. */

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

/* A float16 as a float. Scaled up as a float, the exponent of a normal value is right, and what was denormal
 * becomes normal. There are no infinities: no scale is. */
ALWAYS_INLINE float half_to_float(uint16_t bits) {
    const float magnitude = bits_float((uint32_t)(bits & 0x7FFF) << 13) * 0x1p112f;
    return bits_float(float_bits(magnitude) | (uint32_t)(bits & 0x8000) << 16);
}

/* Value i of an array of float32 or bfloat16. */
ALWAYS_INLINE float stored_value(const enum dtype dtype, const void *values, int64_t i) {
    return dtype == BF16 ? bf16_to_float(((const uint16_t *)values)[i]) : ((const float *)values)[i];
}

#define SUMS 16 /* partial sums of a long sum: independent, so that they fill a vector */

ALWAYS_INLINE float added_up(float *sums) {
    for (int width = SUMS / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++) sums[j] += sums[j + width];
    return sums[0];
}

/* Nearest, ties to even; NaN stays NaN. */
ALWAYS_INLINE uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

/* Writes values to out[start], float32 or bfloat16. */
static inline void write_values(void *out, enum dtype dtype, int64_t start, const float *values,
                                int64_t count) {
    if (dtype == BF16)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)out)[start + i] = float_to_bf16(values[i]);
    else
        memcpy((float *)out + start, values, (size_t)count * sizeof *values);
}

/* Floats from 2^23 to 2^24 have a spacing of 1. Adding 1.5 * 2^23 to a much smaller float therefore rounds it
 * to the nearest integer, ties to even, which is then in the low bits of the sum. Unlike lrintf, it
 * vectorises. */
#define ROUNDING_MAGIC 12582912.0f

ALWAYS_INLINE int32_t round_to_int(float value) {
    return (int32_t)(float_bits(value + ROUNDING_MAGIC) - float_bits(ROUNDING_MAGIC));
}

/* condition ? a : b. GCC 12 makes branches of such an expression in a larger formula, for which it then finds
 * no vectors but with AVX-512. */
ALWAYS_INLINE float chosen(int condition, float a, float b) {
    const uint32_t mask = -(uint32_t)condition;
    return bits_float((float_bits(a) & mask) | (float_bits(b) & ~mask));
}

/* e^x with a relative error of at most 2e-7, with x clamped to +-87. e^x = 2^n * e^r with |r| <= ln(2) / 2;
 * e^r is a Taylor polynomial. */
ALWAYS_INLINE float exp_clamped(float x) {
    x = chosen(x < -87.0f, -87.0f, x);
    x = chosen(x > 87.0f, 87.0f, x);
    const float n = x * 1.44269504f + ROUNDING_MAGIC - ROUNDING_MAGIC;
    /* ln(2) in two parts: the first has few bits, so its product with n is exact, and r stays precise. */
    const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 1.0f / 2;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * bits_float((uint32_t)(round_to_int(n) + 127) << 23);
}

/* out = silu(gate) * up for a product [rows][16 gates, 16 ups]. */
ALWAYS_INLINE void swiglu_tile(int rows, const float *product, float *out, int64_t stride) {
    for (int r = 0; r < rows; r++, product += TILE_ROWS, out += stride)
        for (int i = 0; i < HALF_TILE; i++)
            out[i] = product[i] / (1.0f + exp_clamped(-product[i])) * product[HALF_TILE + i];
}

/* The normal distribution function erfc(-x / sqrt(2)) / 2, with an error of at most 3e-7. erfc(z) is
 * t * p(t) * e^(-z^2) with t = 1 / (1 + 0.33 z), where the polynomial p was fitted for z up to 9.4 so that
 * its largest relative error is least: 8.2e-8. */
ALWAYS_INLINE float normal_distribution(float x) {
    const float z = fabsf(x) * 0.707106781f, t = 1.0f / (1.0f + 0.33f * z);
    float p = -0.13592850f;
    p = p * t + 0.46268693f;
    p = p * t - 0.35543659f;
    p = p * t + 0.41253936f;
    p = p * t + 0.045011871f;
    p = p * t + 0.20192344f;
    p = p * t + 0.18283731f;
    p = p * t + 0.18636611f;
    const float upper = 0.5f * (p * t) * exp_clamped(-0.5f * x * x);
    return chosen(x > 0.0f, 1.0f - upper, upper);
}

/* f(x), with an error of at most 3e-7 times the larger of |x| and f(x). NaN stays NaN. */
ALWAYS_INLINE float activation_of(const enum activation_function function, float alpha, float x) {
    switch (function) {
        case SILU: return x / (1.0f + exp_clamped(-alpha * x));
        /* x / 2 * (1 + tanh(u)), with u = sqrt(2 / pi) * (x + 0.044715 x^3). */
        case GELU_TANH: return x / (1.0f + exp_clamped(-1.59576912f * (x + 0.044715f * x * x * x)));
        case GELU: return x * normal_distribution(x);
        case RELU: return chosen(x < 0.0f, 0.0f, x);
        default: return chosen(x < 0.0f, 0.0f, x * x); /* RELU2 */
    }
}

/* The activation of a product [rows][16 gates, 16 ups], or [rows][32 ups]. Comparisons with NaN are false, so
 * a limit keeps it. */
ALWAYS_INLINE void activate_rows(const enum activation_function function, const struct activation *a,
                                 int rows, const float *product, float *out, int64_t stride) {
    const float limit = a->limit, alpha = a->alpha, up_offset = a->up_offset;
    if (!a->gated) {
        for (int r = 0; r < rows; r++, product += TILE_ROWS, out += stride)
            for (int i = 0; i < TILE_ROWS; i++) out[i] = activation_of(function, alpha, product[i]);
        return;
    }
    for (int r = 0; r < rows; r++, product += TILE_ROWS, out += stride)
        for (int i = 0; i < HALF_TILE; i++) {
            const float gate = chosen(product[i] > limit, limit, product[i]);
            float up = product[HALF_TILE + i];
            up = chosen(up > limit, limit, up);
            up = chosen(up < -limit, -limit, up);
            out[i] = activation_of(function, alpha, gate) * (up + up_offset);
        }
}

/* As activate_rows(), with the loops compiled for each function. `stride` is the distance of rows of out in
 * floats. What most models have comes first, without what they do not need. */
ALWAYS_INLINE void activate_tile(const struct activation *a, int rows, const float *product, float *out,
                                 int64_t stride) {
    if (a->function == SILU && a->gated && a->limit == INFINITY && a->alpha == 1.0f && a->up_offset == 0.0f) {
        swiglu_tile(rows, product, out, stride);
        return;
    }
    switch (a->function) {
        case SILU: activate_rows(SILU, a, rows, product, out, stride); break;
        case GELU_TANH: activate_rows(GELU_TANH, a, rows, product, out, stride); break;
        case GELU: activate_rows(GELU, a, rows, product, out, stride); break;
        case RELU: activate_rows(RELU, a, rows, product, out, stride); break;
        case RELU2: activate_rows(RELU2, a, rows, product, out, stride); break;
    }
}

/* A row of activations, encoded for products with weights of one dtype. The members are as in `struct panel`,
 * but for one row. */
struct encoded_row {
    uint32_t *dwords;
    float *scales;
    int32_t *corrections;
    float *sums;
};

/* Symmetric int8 with the scale absmax / 127. A value that is not finite makes the scale not finite, so the
 * row's result is not finite either. */
ALWAYS_INLINE void quantise_group(enum dtype dtype, const float *x, int64_t group, struct encoded_row *row) {
    /* Without the sign, the bits of floats compare as integers like their values, and NaN is the largest. */
    uint32_t absmax = 0;
    for (int i = 0; i < GROUP_VALUES; i++) {
        const uint32_t bits = float_bits(x[i]) & 0x7FFFFFFF;
        absmax = bits > absmax ? bits : absmax;
    }
    float scale = bits_float(absmax) / 127.0f;
    if (scale < FLT_MIN) scale = 0.0f;
    const float divisor = scale == 0.0f ? INFINITY : scale;
    int8_t values[GROUP_VALUES];
    int32_t sum = 0;
    for (int i = 0; i < GROUP_VALUES; i++) {
        values[i] = (int8_t)round_to_int(x[i] / divisor);
        sum += values[i]; /* of a scale that is not finite, too, a number that fits */
    }
    memcpy(row->dwords + group * GROUP_STEPS, values, sizeof values);
    row->scales[group] = scale;
    row->corrections[group] = -zero_of(dtype) * sum;
    row->sums[group] = scale * (float)sum;
}

/* `count` is a multiple of GROUP_VALUES. */
ALWAYS_INLINE void encode_row(enum dtype dtype, const enum bf16_panel bf16, int64_t count, const float *x,
                              struct encoded_row *row) {
    if (is_quantised(dtype))
        for (int64_t g = 0; g < count / GROUP_VALUES; g++)
            quantise_group(dtype, x + g * GROUP_VALUES, g, row);
    else if (dtype == F32)
        memcpy(row->dwords, x, (size_t)count * sizeof *x);
    else if (bf16 != BF16_FLOATS)
        for (int64_t i = 0; i < count / 2; i++)
            row->dwords[i] = float_to_bf16(x[2 * i]) | (uint32_t)float_to_bf16(x[2 * i + 1]) << 16;
    else
        for (int64_t i = 0; i < count; i++) row->dwords[i] = (uint32_t)float_to_bf16(x[i]) << 16;
}

#endif
