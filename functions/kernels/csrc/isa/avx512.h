/* Tile products for AVX-512 with BF16 and VNNI (AMD Zen 4, Intel Sapphire Rapids, and later): vectors of 16
 * dwords, 32 registers. */

#ifndef FAASMOE_ISA_AVX512_H
#define FAASMOE_ISA_AVX512_H

#include <immintrin.h>

#include "../activations.h"
#include "../layout.h"

#define TARGET_avx512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")))
#define AVX512_INLINE TARGET_avx512 ALWAYS_INLINE

/* A step is two vectors, so a panel of 8 rows takes 16 of the 32 registers for its sums. int8 takes the other
 * 16 for the integer sums of a group; the few that spill do so once per group. */
enum { avx512_MAX_ROWS = 8 };

/* Calls body(rows, ...) with `rows` as a constant: only then can the compiler unroll the loops over rows and
 * keep the sums in registers. An array with a variable index would live in memory. */
#define AVX512_FOR_ROWS(body, rows, ...)     \
    switch (rows) {                          \
        case 1: body(1, __VA_ARGS__); break; \
        case 2: body(2, __VA_ARGS__); break; \
        case 3: body(3, __VA_ARGS__); break; \
        case 4: body(4, __VA_ARGS__); break; \
        case 5: body(5, __VA_ARGS__); break; \
        case 6: body(6, __VA_ARGS__); break; \
        case 7: body(7, __VA_ARGS__); break; \
        case 8: body(8, __VA_ARGS__); break; \
    }

/* sum + weights x activation for one dword of each of 16 rows: 1 float32 or 2 bfloat16 values. */
AVX512_INLINE __m512 avx512_multiply_add(const enum dtype dtype, __m512i w, __m512i v, __m512 sum) {
    if (dtype == F32) return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(v), sum);
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)v);
}

/* Register blocking: all sums of the panel stay in registers over all steps. A step's weights are loaded
 * once, and every row of the panel uses them, so weights are read from memory once per panel. */
AVX512_INLINE void avx512_float_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                     const uint8_t *weights, float *out) {
    __m512 sum[avx512_MAX_ROWS][2];
    UNROLLED (r, rows) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const uint32_t *values = x->values;
    for (int64_t s = 0; s < x->steps; s++, weights += STEP_BYTES, values += rows) {
        panel_prefetch(x, s);
        const __m512i w0 = _mm512_loadu_si512(weights), w1 = _mm512_loadu_si512(weights + 64);
        UNROLLED (r, rows) {
            const __m512i v = _mm512_set1_epi32((int)values[r]);
            sum[r][0] = avx512_multiply_add(dtype, w0, v, sum[r][0]);
            sum[r][1] = avx512_multiply_add(dtype, w1, v, sum[r][1]);
        }
    }
    UNROLLED (r, rows) {
        _mm512_storeu_ps(out + r * TILE_ROWS, sum[r][0]);
        _mm512_storeu_ps(out + r * TILE_ROWS + 16, sum[r][1]);
    }
}

/* Register blocking as in avx512_float_rows, with two sets of sums: `dot` is the exact integer sum of one
 * group of activations, which share a scale, and `sum` collects the scaled groups. `dot` begins with the
 * group's correction, which undoes the offset of 128 with which weights are stored. */
AVX512_INLINE void avx512_int8_rows(const int rows, const struct panel *x, const uint8_t *weights,
                                    const packed_float *scales, float *out) {
    __m512 sum[avx512_MAX_ROWS][2];
    UNROLLED (r, rows) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const uint32_t *values = x->values;
    for (int64_t s = 0, group = 0; s < x->steps; group += rows) {
        const int64_t end = x->steps - s < GROUP_STEPS ? x->steps : s + GROUP_STEPS;
        __m512i dot[avx512_MAX_ROWS][2];
        UNROLLED (r, rows) dot[r][0] = dot[r][1] = _mm512_set1_epi32(x->corrections[group + r]);
        for (; s < end; s++, weights += STEP_BYTES, values += rows) {
            panel_prefetch(x, s);
            const __m512i w0 = _mm512_loadu_si512(weights), w1 = _mm512_loadu_si512(weights + 64);
            UNROLLED (r, rows) {
                const __m512i v = _mm512_set1_epi32((int)values[r]);
                dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w0, v);
                dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w1, v);
            }
        }
        UNROLLED (r, rows) {
            const __m512 scale = _mm512_set1_ps(x->scales[group + r]);
            sum[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][0]), scale, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][1]), scale, sum[r][1]);
        }
    }
    const __m512 scale0 = _mm512_loadu_ps(scales), scale1 = _mm512_loadu_ps(scales + 16);
    UNROLLED (r, rows) {
        _mm512_storeu_ps(out + r * TILE_ROWS, _mm512_mul_ps(sum[r][0], scale0));
        _mm512_storeu_ps(out + r * TILE_ROWS + 16, _mm512_mul_ps(sum[r][1], scale1));
    }
}

TARGET_avx512 static void avx512_f32(const struct panel *x, const uint8_t *weights,
                                     const packed_float *scales, float *out) {
    (void)scales;
    AVX512_FOR_ROWS(avx512_float_rows, x->rows, F32, x, weights, out);
}

TARGET_avx512 static void avx512_bf16(const struct panel *x, const uint8_t *weights,
                                      const packed_float *scales, float *out) {
    (void)scales;
    AVX512_FOR_ROWS(avx512_float_rows, x->rows, BF16, x, weights, out);
}

TARGET_avx512 static void avx512_int8(const struct panel *x, const uint8_t *weights,
                                      const packed_float *scales, float *out) {
    AVX512_FOR_ROWS(avx512_int8_rows, x->rows, x, weights, scales, out);
}

static int avx512_runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
}

#endif
