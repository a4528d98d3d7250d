/* Tile products for AVX2 with FMA: vectors of 8 dwords, 16 registers. */

#ifndef FAASMOE_ISA_AVX2_H
#define FAASMOE_ISA_AVX2_H

#include <immintrin.h>

#include "../activations.h"
#include "../layout.h"

#define TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE TARGET_avx2 ALWAYS_INLINE
#define AVX2_PARTS 4 /* vectors per step */

/* A panel of 3 rows takes 12 of the 16 registers for its sums. One holds a vector of weights, one an
 * activation, and the rest are scratch for widening. A fourth row would spill sums in every step. */
enum { avx2_MAX_ROWS = 3 };

/* Calls body(rows, ...) with `rows` as a constant: only then can the compiler unroll the loops over rows and
 * keep the sums in registers. An array with a variable index would live in memory. */
#define AVX2_FOR_ROWS(body, rows, ...)       \
    switch (rows) {                          \
        case 1: body(1, __VA_ARGS__); break; \
        case 2: body(2, __VA_ARGS__); break; \
        case 3: body(3, __VA_ARGS__); break; \
    }

AVX2_INLINE __m256i avx2_load(const void *bytes) { return _mm256_loadu_si256(bytes); }

/* A bfloat16 is the upper half of a float. Of the two in a dword, the first is shifted up, and the second is
 * left in place and its neighbour cleared. */
AVX2_INLINE __m256 avx2_first(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }

AVX2_INLINE __m256 avx2_second(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xFFFF0000)));
}

/* sum + weights x activation for one dword of each of 8 rows: 1 float32 or 2 bfloat16 values. */
AVX2_INLINE __m256 avx2_multiply_add(const enum dtype dtype, __m256i w, __m256i v, __m256 sum) {
    if (dtype == F32) return _mm256_fmadd_ps(_mm256_castsi256_ps(w), _mm256_castsi256_ps(v), sum);
    sum = _mm256_fmadd_ps(avx2_first(w), avx2_first(v), sum);
    return _mm256_fmadd_ps(avx2_second(w), avx2_second(v), sum);
}

/* Register blocking: all sums of the panel stay in registers over all steps. A vector of weights is loaded
 * once, and every row of the panel uses it, so weights are read from memory once per panel. */
AVX2_INLINE void avx2_float_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                 const uint8_t *weights, float *out) {
    __m256 sum[avx2_MAX_ROWS][AVX2_PARTS] = {0};
    const uint32_t *values = x->values;
    for (int64_t s = 0; s < x->steps; s++, weights += STEP_BYTES, values += rows) {
        panel_prefetch(x, s);
        UNROLLED (p, AVX2_PARTS) {
            const __m256i w = avx2_load(weights + 32 * p);
            UNROLLED (r, rows)
                sum[r][p] = avx2_multiply_add(dtype, w, _mm256_set1_epi32((int)values[r]), sum[r][p]);
        }
    }
    UNROLLED (r, rows)
        UNROLLED (p, AVX2_PARTS) _mm256_storeu_ps(out + r * TILE_ROWS + 8 * p, sum[r][p]);
}

/* dot + the dot product of 4 unsigned weights with 4 signed activations in each of 8 rows. vpmaddubsw would
 * saturate at 16 bits, so bytes are widened first: the even ones by clearing the odd ones (weights) or sign
 * extension (activations), the odd ones by a shift. Sums of the widened products fit 32 bits. */
AVX2_INLINE __m256i avx2_multiply_add_int8(__m256i w, __m256i v, __m256i dot) {
    const __m256i w_even = _mm256_and_si256(w, _mm256_set1_epi16(0x00FF)), w_odd = _mm256_srli_epi16(w, 8);
    const __m256i v_even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), v_odd = _mm256_srai_epi16(v, 8);
    dot = _mm256_add_epi32(dot, _mm256_madd_epi16(w_even, v_even));
    return _mm256_add_epi32(dot, _mm256_madd_epi16(w_odd, v_odd));
}

/* Register blocking as in avx2_float_rows, with two sets of sums: `dot` is the exact integer sum of one group
 * of activations, which share a scale, and `sum` collects the scaled groups. `dot` begins with the group's
 * correction, which undoes the offset of 128 with which weights are stored. */
AVX2_INLINE void avx2_int8_rows(const int rows, const struct panel *x, const uint8_t *weights,
                                const packed_float *scales, float *out) {
    __m256 sum[avx2_MAX_ROWS][AVX2_PARTS] = {0};
    const uint32_t *values = x->values;
    for (int64_t s = 0, group = 0; s < x->steps; group += rows) {
        const int64_t end = x->steps - s < GROUP_STEPS ? x->steps : s + GROUP_STEPS;
        __m256i dot[avx2_MAX_ROWS][AVX2_PARTS];
        UNROLLED (r, rows)
            UNROLLED (p, AVX2_PARTS) dot[r][p] = _mm256_set1_epi32(x->corrections[group + r]);
        for (; s < end; s++, weights += STEP_BYTES, values += rows) {
            panel_prefetch(x, s);
            UNROLLED (p, AVX2_PARTS) {
                const __m256i w = avx2_load(weights + 32 * p);
                UNROLLED (r, rows)
                    dot[r][p] = avx2_multiply_add_int8(w, _mm256_set1_epi32((int)values[r]), dot[r][p]);
            }
        }
        UNROLLED (r, rows) {
            const __m256 scale = _mm256_set1_ps(x->scales[group + r]);
            UNROLLED (p, AVX2_PARTS)
                sum[r][p] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][p]), scale, sum[r][p]);
        }
    }
    UNROLLED (p, AVX2_PARTS) {
        const __m256 scale = _mm256_castsi256_ps(avx2_load(scales + 8 * p));
        UNROLLED (r, rows) _mm256_storeu_ps(out + r * TILE_ROWS + 8 * p, _mm256_mul_ps(sum[r][p], scale));
    }
}

TARGET_avx2 static void avx2_f32(const struct panel *x, const uint8_t *weights, const packed_float *scales,
                                 float *out) {
    (void)scales;
    AVX2_FOR_ROWS(avx2_float_rows, x->rows, F32, x, weights, out);
}

TARGET_avx2 static void avx2_bf16(const struct panel *x, const uint8_t *weights, const packed_float *scales,
                                  float *out) {
    (void)scales;
    AVX2_FOR_ROWS(avx2_float_rows, x->rows, BF16, x, weights, out);
}

TARGET_avx2 static void avx2_int8(const struct panel *x, const uint8_t *weights, const packed_float *scales,
                                  float *out) {
    AVX2_FOR_ROWS(avx2_int8_rows, x->rows, x, weights, scales, out);
}

static int avx2_runs_here(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#endif
