/* Tile products for AVX-512 with BF16 and VNNI (Zen 4, Sapphire Rapids and later). */

#ifndef FAASMOE_TILES_AVX512_H
#define FAASMOE_TILES_AVX512_H

#include <immintrin.h>

#include "activations.h"
#include "layout.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")))
#define AVX512_INLINE AVX512 ALWAYS_INLINE
#define PF(x,s) __builtin_prefetch(pf); __builtin_prefetch(pf+64); pf += x->prefetch_stride;
#define AVX512_MAX_ROWS 12 /* 24 sums, 2 weight vectors and the broadcasts fill the 32 registers */

/* Calls body(rows, ...) with a constant number of rows, so that the sums of a panel become registers. */
#define AVX512_FOR_ROWS(body, rows, ...)            \
    switch (rows) {                                 \
        case 1: body(1, __VA_ARGS__); break;        \
        case 2: body(2, __VA_ARGS__); break;        \
        case 3: body(3, __VA_ARGS__); break;        \
        case 4: body(4, __VA_ARGS__); break;        \
        case 5: body(5, __VA_ARGS__); break;        \
        case 6: body(6, __VA_ARGS__); break;        \
        case 7: body(7, __VA_ARGS__); break;        \
        case 8: body(8, __VA_ARGS__); break;        \
        case 9: body(9, __VA_ARGS__); break;        \
        case 10: body(10, __VA_ARGS__); break;      \
        case 11: body(11, __VA_ARGS__); break;      \
        case 12: body(12, __VA_ARGS__); break;      \
    }

AVX512_INLINE void avx512_f32_rows(const int rows, const struct panel *x, const uint8_t *weights, float *out) {
    __m512 sum[AVX512_MAX_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const uint32_t *values = x->values; const uint8_t *pf = x->prefetch;
    for (int64_t s = 0; s < x->steps; s++, weights += STEP_BYTES, values += rows) {
        const __m512 w0 = _mm512_loadu_ps(weights), w1 = _mm512_loadu_ps(weights + 64);
        PF(x,s) UNROLL for (int r = 0; r < rows; r++) {
            const __m512 v = _mm512_castsi512_ps(_mm512_set1_epi32((int)values[r]));
            sum[r][0] = _mm512_fmadd_ps(w0, v, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(w1, v, sum[r][1]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++, out += TILE_ROWS) {
        _mm512_storeu_ps(out, sum[r][0]);
        _mm512_storeu_ps(out + 16, sum[r][1]);
    }
}

AVX512_INLINE void avx512_bf16_rows(const int rows, const struct panel *x, const uint8_t *weights, float *out) {
    __m512 sum[AVX512_MAX_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const uint32_t *values = x->values; const uint8_t *pf = x->prefetch;
    for (int64_t s = 0; s < x->steps; s++, weights += STEP_BYTES, values += rows) {
        const __m512bh w0 = (__m512bh)_mm512_loadu_si512(weights), w1 = (__m512bh)_mm512_loadu_si512(weights + 64);
        PF(x,s) UNROLL for (int r = 0; r < rows; r++) {
            const __m512bh v = (__m512bh)_mm512_set1_epi32((int)values[r]);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], w0, v);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], w1, v);
        }
    }
    UNROLL for (int r = 0; r < rows; r++, out += TILE_ROWS) {
        _mm512_storeu_ps(out, sum[r][0]);
        _mm512_storeu_ps(out + 16, sum[r][1]);
    }
}

AVX512_INLINE void avx512_int8_rows(const int rows, const struct panel *x, const uint8_t *weights,
                                    const packed_float *scales, float *out) {
    __m512 sum[AVX512_MAX_ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    const uint32_t *values = x->values; const uint8_t *pf = x->prefetch;
    for (int64_t start = 0, group = 0; start < x->steps; start += GROUP_STEPS, group += rows) {
        const int64_t steps = x->steps - start < GROUP_STEPS ? x->steps - start : GROUP_STEPS;
        __m512i dot[AVX512_MAX_ROWS][2];
        UNROLL for (int r = 0; r < rows; r++) dot[r][0] = dot[r][1] = _mm512_set1_epi32(x->corrections[group + r]);
        for (int64_t s = 0; s < steps; s++, weights += STEP_BYTES, values += rows) {
            const __m512i w0 = _mm512_loadu_si512(weights), w1 = _mm512_loadu_si512(weights + 64);
            PF(x,s) UNROLL for (int r = 0; r < rows; r++) {
                const __m512i v = _mm512_set1_epi32((int)values[r]);
                dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], w0, v);
                dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], w1, v);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const __m512 scale = _mm512_set1_ps(x->scales[group + r]);
            sum[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][0]), scale, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][1]), scale, sum[r][1]);
        }
    }
    const __m512 scale0 = _mm512_loadu_ps(scales), scale1 = _mm512_loadu_ps(scales + 16);
    UNROLL for (int r = 0; r < rows; r++, out += TILE_ROWS) {
        _mm512_storeu_ps(out, _mm512_mul_ps(sum[r][0], scale0));
        _mm512_storeu_ps(out + 16, _mm512_mul_ps(sum[r][1], scale1));
    }
}

AVX512 static void avx512_f32(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    AVX512_FOR_ROWS(avx512_f32_rows, x->rows, x, weights, out)
}

AVX512 static void avx512_bf16(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    AVX512_FOR_ROWS(avx512_bf16_rows, x->rows, x, weights, out)
}

AVX512 static void avx512_int8(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    AVX512_FOR_ROWS(avx512_int8_rows, x->rows, x, weights, scales, out)
}

AVX512 static void avx512_swiglu(int rows, const float *tile, float *out, int64_t stride) {
    swiglu_tile(rows, tile, out, stride);
}

AVX512 static void avx512_encode(enum dtype dtype, int64_t count, const float *x, uint32_t *dwords, float *scales,
                                 int32_t *corrections) {
    encode_row(dtype, count, x, dwords, scales, corrections);
}

static int avx512_runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
}

#endif
