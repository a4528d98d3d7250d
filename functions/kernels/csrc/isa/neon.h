/* Tile products for ARM's NEON, which every 64-bit ARM processor has: vectors of 4 dwords, 32 registers. */

#ifndef FAASMOE_ISA_NEON_H
#define FAASMOE_ISA_NEON_H

#include <arm_neon.h>

#include "../activations.h"
#include "../layout.h"

#define TARGET_neon /* what the compiler assumes of every 64-bit ARM processor */
#define NEON_VECTORS (TILE_ROWS / 4)

enum { neon_MAX_ROWS = 4 };

/* Calls body(rows, ...) with `rows` as a constant: only then can the compiler unroll the loops over rows and
 * keep the sums in registers. An array with a variable index would live in memory. */
#define NEON_FOR_ROWS(body, rows, ...)       \
    switch (rows) {                          \
        case 1: body(1, __VA_ARGS__); break; \
        case 2: body(2, __VA_ARGS__); break; \
        case 3: body(3, __VA_ARGS__); break; \
        case 4: body(4, __VA_ARGS__); break; \
    }

/* 4 dwords of a step. Weights may begin at any byte. */
ALWAYS_INLINE uint32x4_t neon_load(const uint8_t *bytes) { return vreinterpretq_u32_u8(vld1q_u8(bytes)); }

/* A bfloat16 is the upper half of a float. Of the two in a dword, the first is shifted up, and the second is
 * left in place and its neighbour cleared. */
ALWAYS_INLINE float32x4_t neon_first(uint32x4_t pairs) {
    return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
}

ALWAYS_INLINE float32x4_t neon_second(uint32x4_t pairs) {
    return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF0000)));
}

/* sum + weights x activation for one dword of each of 4 rows: 1 float32 or 2 bfloat16 values. */
ALWAYS_INLINE float32x4_t neon_multiply_add(const enum dtype dtype, uint32x4_t w, uint32_t v,
                                            float32x4_t sum) {
    if (dtype == F32) return vfmaq_n_f32(sum, vreinterpretq_f32_u32(w), bits_float(v));
    sum = vfmaq_n_f32(sum, neon_first(w), bits_float(v << 16));
    return vfmaq_n_f32(sum, neon_second(w), bits_float(v & 0xFFFF0000));
}

/* Register blocking: all sums of the panel stay in registers over all steps. A vector of weights is loaded
 * once, and every row of the panel uses it. A panel of 3 rows takes 24 of the 32 registers for its sums, one
 * of 4 rows takes 16 and computes the tile in two halves. */
ALWAYS_INLINE void neon_float_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                   const uint8_t *weights, float *out) {
    const int vectors = rows < 4 ? NEON_VECTORS : NEON_VECTORS / 2;
    for (int first = 0; first < NEON_VECTORS; first += vectors) {
        float32x4_t sum[neon_MAX_ROWS][NEON_VECTORS];
        UNROLLED (r, rows)
            UNROLLED (p, vectors) sum[r][p] = vdupq_n_f32(0);
        const uint8_t *w = weights + 16 * first;
        const uint32_t *values = x->values;
        for (int64_t s = 0; s < x->steps; s++, w += STEP_BYTES, values += rows) {
            if (first == 0) panel_prefetch(x, s);
            UNROLLED (p, vectors) {
                const uint32x4_t dwords = neon_load(w + 16 * p);
                UNROLLED (r, rows) sum[r][p] = neon_multiply_add(dtype, dwords, values[r], sum[r][p]);
            }
        }
        UNROLLED (r, rows)
            UNROLLED (p, vectors) vst1q_f32(out + r * TILE_ROWS + 4 * (first + p), sum[r][p]);
    }
}

static void neon_f32(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    NEON_FOR_ROWS(neon_float_rows, x->rows, F32, x, weights, out);
}

static void neon_bf16(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    NEON_FOR_ROWS(neon_float_rows, x->rows, BF16, x, weights, out);
}

#define neon_int8 c_int8

static int neon_runs_here(void) { return 1; }

#endif
