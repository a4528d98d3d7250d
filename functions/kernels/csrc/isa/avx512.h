/* Tile products for AVX-512 with BF16 and VNNI (AMD Zen 4, Intel Sapphire Rapids, and later): vectors of 16
 * dwords, 32 registers. */

#ifndef FAASMOE_ISA_AVX512_H
#define FAASMOE_ISA_AVX512_H

#include <immintrin.h>

#include "../activations.h"
#include "../layout.h"

#define TARGET_avx512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")))
#define AVX512_INLINE TARGET_avx512 ALWAYS_INLINE

/* A step is two vectors, so a panel of 8 rows takes 16 of the 32 registers for its sums. Quantised types take
 * 8 for the integer sums of one half of a group. */
enum { avx512_MAX_ROWS = 8, avx512_BF16 = BF16_PAIRS };

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

AVX512_INLINE void avx512_load(const int rows, const float *product, __m512 sum[][2]) {
    UNROLLED (r, rows)
        UNROLLED (h, 2) sum[r][h] = _mm512_loadu_ps(product + r * TILE_ROWS + 16 * h);
}

AVX512_INLINE void avx512_store(const int rows, float *product, __m512 sum[][2]) {
    UNROLLED (r, rows)
        UNROLLED (h, 2) _mm512_storeu_ps(product + r * TILE_ROWS + 16 * h, sum[r][h]);
}

/* Register blocking: all sums of the panel stay in registers over all steps. A step's weights are loaded
 * once, and every row of the panel uses them. */
AVX512_INLINE void avx512_float_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                     const uint8_t *weights, int64_t steps, float *product) {
    __m512 sum[avx512_MAX_ROWS][2];
    avx512_load(rows, product, sum);
    const uint32_t *values = x->values;
    for (int64_t s = 0; s < steps; s++, weights += STEP_BYTES, values += x->rows) {
        if (s % GROUP_STEPS == 0) panel_prefetch(x, s / GROUP_STEPS);
        const __m512i w0 = _mm512_loadu_si512(weights), w1 = _mm512_loadu_si512(weights + 64);
        UNROLLED (r, rows) {
            const __m512i v = _mm512_set1_epi32((int)values[r]);
            sum[r][0] = avx512_multiply_add(dtype, w0, v, sum[r][0]);
            sum[r][1] = avx512_multiply_add(dtype, w1, v, sum[r][1]);
        }
    }
    avx512_store(rows, product, sum);
}

/* The unsigned codes of one step of a group, for 16 of the tile's rows. */
AVX512_INLINE __m512i avx512_codes(const enum dtype dtype, const uint8_t *codes, int step) {
    if (dtype == INT8) return _mm512_loadu_si512(codes + step * STEP_BYTES);
    const __m512i low = _mm512_set1_epi8(15), pair = _mm512_loadu_si512(codes + step / 2 * STEP_BYTES);
    const __m512i code = _mm512_and_si512(step % 2 ? _mm512_srli_epi16(pair, 4) : pair, low);
    if (dtype == INT4 || dtype == INT4_MIN) return code;
    const __m128i values = _mm_loadu_si128((const __m128i *)CODE_VALUES[dtype]);
    const __m128i table = _mm_add_epi8(values, _mm_set1_epi8((char)zero_of(dtype)));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), code);
}

AVX512_INLINE __m512 avx512_halves(const void *bytes) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)bytes));
}

AVX512_INLINE __m512 avx512_bytes(const void *bytes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
}

/* The scales of 16 rows of a group. `factors` are those of its super group, int4_min only. */
AVX512_INLINE __m512 avx512_scales(const enum dtype dtype, const uint8_t *scales, const uint8_t *factors,
                                   int half) {
    if (dtype == INT4_MIN)
        return _mm512_mul_ps(avx512_halves(factors + 32 * half), avx512_bytes(scales + 16 * half));
    if (dtype != MXFP4) return avx512_halves(scales + 32 * half);
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(scales + 32 * half)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/* The minima of 16 rows of a group of int4_min. */
AVX512_INLINE __m512 avx512_minima(const uint8_t *scales, const uint8_t *factors, int half) {
    return _mm512_mul_ps(avx512_halves(factors + 2 * TILE_ROWS + 32 * half),
                         avx512_bytes(scales + TILE_ROWS + 16 * half));
}

/* dot = the exact integer sums of a group. They begin with the correction, which takes out what makes the
 * codes unsigned. */
AVX512_INLINE void avx512_dot(const int rows, const enum dtype dtype, const struct panel *x, int64_t group,
                              const uint8_t *codes, __m512i dot[][2]) {
    const uint32_t *values = x->values + group * GROUP_STEPS * rows;
    UNROLLED (r, rows) {
        const int32_t correction = dtype == INT4_MIN ? 0 : x->corrections[group * rows + r];
        dot[r][0] = dot[r][1] = _mm512_set1_epi32(correction);
    }
    const int step_bytes = (dtype == INT8 ? 2 : 1) * STEP_BYTES; /* of a pair of steps */
    ROLLED (pair, PAIR_STEPS) {
        const uint8_t *both = codes + pair * step_bytes;
        UNROLLED (s, 2) {
            const __m512i w0 = avx512_codes(dtype, both, s), w1 = avx512_codes(dtype, both + 64, s);
            UNROLLED (r, rows) {
                const __m512i v = _mm512_set1_epi32((int)values[r * GROUP_STEPS + s]);
                dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w0, v);
                dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w1, v);
            }
        }
        values += 2;
    }
}

/* sum += the integer sums of a group times its scales, for one half of the tile's rows. */
AVX512_INLINE void avx512_add_group(const int rows, const enum dtype dtype, const struct panel *x,
                                    int64_t group, const uint8_t *codes, const uint8_t *factors,
                                    const int half, __m512i dot[][2], __m512 sum[][2]) {
    const uint8_t *scales = codes + group_bytes(dtype) - 2 * TILE_ROWS;
    const __m512 scale = avx512_scales(dtype, scales, factors, half);
    const int64_t first = group * rows;
    UNROLLED (r, rows) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x->scales[first + r]));
        sum[r][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][half]), both, sum[r][half]);
    }
    if (dtype != INT4_MIN) return;
    const __m512 minimum = avx512_minima(scales, factors, half);
    UNROLLED (r, rows)
        sum[r][half] = _mm512_fnmadd_ps(minimum, _mm512_set1_ps(x->sums[first + r]), sum[r][half]);
}

AVX512_INLINE void avx512_quantised_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                         const uint8_t *weights, int64_t steps, float *product) {
    __m512 sum[avx512_MAX_ROWS][2];
    const uint8_t *factors = weights;
    avx512_load(rows, product, sum);
    for (int64_t g = 0; g < steps / GROUP_STEPS; g++, weights += group_bytes(dtype)) {
        if (dtype == INT4_MIN && g % SUPER_GROUP == 0) {
            factors = weights;
            weights += 4 * TILE_ROWS;
        }
        panel_prefetch(x, g);
        __m512i dot[avx512_MAX_ROWS][2];
        avx512_dot(rows, dtype, x, g, weights, dot);
        UNROLLED (half, 2) avx512_add_group(rows, dtype, x, g, weights, factors, half, dot, sum);
    }
    avx512_store(rows, product, sum);
}

#define AVX512_PRODUCT(name, dtype, body)                                                                 \
    TARGET_avx512 static void avx512_##name(const struct panel *x, const uint8_t *weights, int64_t steps, \
                                            float *product) {                                             \
        AVX512_FOR_ROWS(body, x->rows, dtype, x, weights, steps, product);                                \
    }
#define AVX512_QUANTISED(name, dtype) AVX512_PRODUCT(name, dtype, avx512_quantised_rows)

AVX512_PRODUCT(f32, F32, avx512_float_rows)
AVX512_PRODUCT(bf16, BF16, avx512_float_rows)
FOR_EACH_QUANTISED(AVX512_QUANTISED)

static int avx512_runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
}

#endif
