/* Tile products for AVX2 with FMA. */

#ifndef FAASMOE_TILES_AVX2_H
#define FAASMOE_TILES_AVX2_H

#include <immintrin.h>

#include "activations.h"
#include "layout.h"

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX2_INLINE AVX2 ALWAYS_INLINE
#define AVX2_MAX_ROWS 3 /* 8 sums of the 16 registers; a third row spills */
#define AVX2_PARTS 4    /* vectors in a step */

/* Calls body(rows, ...) with a constant number of rows, so that the sums of a panel become registers. */
#define AVX2_FOR_ROWS(body, rows, ...) \
    if ((rows) == 1) {                 \
        body(1, __VA_ARGS__);          \
    } else if ((rows) == 2) {                           \
        body(2, __VA_ARGS__);          \
    } else {body(3,__VA_ARGS__);}

AVX2_INLINE __m256i avx2_load(const uint8_t *bytes) { return _mm256_loadu_si256((const __m256i *)bytes); }

AVX2_INLINE __m256 avx2_broadcast(uint32_t bits) { return _mm256_castsi256_ps(_mm256_set1_epi32((int)bits)); }

AVX2_INLINE void avx2_f32_rows(const int rows, const struct panel *x, const uint8_t *weights, float *out) {
    __m256 sum[AVX2_MAX_ROWS][AVX2_PARTS] = {0};
    const uint32_t *values = x->values;
    for (int64_t s = 0; s < x->steps; s++, weights += STEP_BYTES, values += rows) {
        UNROLL for (int p = 0; p < AVX2_PARTS; p++) {
            const __m256 w = _mm256_castsi256_ps(avx2_load(weights + 32 * p));
            UNROLL for (int r = 0; r < rows; r++) sum[r][p] = _mm256_fmadd_ps(w, avx2_broadcast(values[r]), sum[r][p]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < AVX2_PARTS; p++) _mm256_storeu_ps(out + r * TILE_ROWS + 8 * p, sum[r][p]);
}

/* A dword of two bfloat16 becomes two floats: the first by a shift, the second by clearing the first. */
AVX2_INLINE void avx2_bf16_rows(const int rows, const struct panel *x, const uint8_t *weights, float *out) {
    __m256 sum[AVX2_MAX_ROWS][AVX2_PARTS] = {0};
    const __m256i second = _mm256_set1_epi32((int)0xFFFF0000);
    const uint32_t *values = x->values;
    for (int64_t s = 0; s < x->steps; s++, weights += STEP_BYTES, values += rows) {
        UNROLL for (int p = 0; p < AVX2_PARTS; p++) {
            const __m256i w = avx2_load(weights + 32 * p);
            const __m256 w0 = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
            const __m256 w1 = _mm256_castsi256_ps(_mm256_and_si256(w, second));
            UNROLL for (int r = 0; r < rows; r++) {
                const __m256i v = _mm256_set1_epi32((int)values[r]);
                sum[r][p] = _mm256_fmadd_ps(w0, _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)), sum[r][p]);
                sum[r][p] = _mm256_fmadd_ps(w1, _mm256_castsi256_ps(_mm256_and_si256(v, second)), sum[r][p]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < AVX2_PARTS; p++) _mm256_storeu_ps(out + r * TILE_ROWS + 8 * p, sum[r][p]);
}

/* vpmaddubsw would saturate, so bytes are widened to 16 bits: even ones by a mask, odd ones by a shift. */
AVX2_INLINE void avx2_int8_rows(const int rows, const struct panel *x, const uint8_t *weights,
                                const packed_float *scales, float *out) {
    __m256 sum[AVX2_MAX_ROWS][AVX2_PARTS] = {0};
    const __m256i even = _mm256_set1_epi16(0x00FF);
    const uint32_t *values = x->values;
    for (int64_t start = 0, group = 0; start < x->steps; start += GROUP_STEPS, group += rows) {
        const int64_t steps = x->steps - start < GROUP_STEPS ? x->steps - start : GROUP_STEPS;
        __m256i dot[AVX2_MAX_ROWS][AVX2_PARTS];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int p = 0; p < AVX2_PARTS; p++) dot[r][p] = _mm256_set1_epi32(x->corrections[group + r]);
        for (int64_t s = 0; s < steps; s++, weights += STEP_BYTES, values += rows) {
            UNROLL for (int r = 0; r < rows; r++) {
                const __m256i v = _mm256_set1_epi32((int)values[r]);
                const __m256i v0 = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), v1 = _mm256_srai_epi16(v, 8);
                UNROLL for (int p = 0; p < AVX2_PARTS; p++) {
                    const __m256i w = avx2_load(weights + 32 * p);
                    const __m256i w0 = _mm256_and_si256(w, even), w1 = _mm256_srli_epi16(w, 8);
                    const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(w0, v0), _mm256_madd_epi16(w1, v1));
                    dot[r][p] = _mm256_add_epi32(dot[r][p], both);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256 scale = _mm256_set1_ps(x->scales[group + r]);
            UNROLL for (int p = 0; p < AVX2_PARTS; p++)
                sum[r][p] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][p]), scale, sum[r][p]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int p = 0; p < AVX2_PARTS; p++)
            _mm256_storeu_ps(out + r * TILE_ROWS + 8 * p, _mm256_mul_ps(sum[r][p], _mm256_loadu_ps(scales + 8 * p)));
}

AVX2 static void avx2_f32(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    AVX2_FOR_ROWS(avx2_f32_rows, x->rows, x, weights, out)
}

AVX2 static void avx2_bf16(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    AVX2_FOR_ROWS(avx2_bf16_rows, x->rows, x, weights, out)
}

AVX2 static void avx2_int8(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    AVX2_FOR_ROWS(avx2_int8_rows, x->rows, x, weights, scales, out)
}

AVX2 static void avx2_swiglu(int rows, const float *tile, float *out, int64_t stride) {
    swiglu_tile(rows, tile, out, stride);
}

AVX2 static void avx2_encode(enum dtype dtype, int64_t count, const float *x, uint32_t *dwords, float *scales,
                             int32_t *corrections) {
    encode_row(dtype, count, x, dwords, scales, corrections);
}

static int avx2_runs_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#endif
