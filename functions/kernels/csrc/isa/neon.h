/* Tile products for ARM's NEON as every 64-bit ARM processor has it: vectors of 4 dwords, 32 registers.
 * neon_dotprod.h and neon_i8mm.h have better instructions for the integer sums, and the rest from here. */

#ifndef FAASMOE_ISA_NEON_H
#define FAASMOE_ISA_NEON_H

#include <arm_neon.h>

#include "../activations.h"
#include "../layout.h"

#define TARGET_neon /* what the compiler assumes of every 64-bit ARM processor */

#define NEON_PARTS (TILE_ROWS / 4) /* vectors per step */

/* The registers hold the sums of 3 rows for a tile, or of 6 rows for one half of it. */
enum { NEON_MAX_ROWS = 6, neon_MAX_ROWS = NEON_MAX_ROWS, neon_BF16 = BF16_FLOATS };

/* Calls body(rows, ...) with `rows` as a constant: only then can the compiler unroll the loops over rows and
 * keep the sums in registers. An array with a variable index would live in memory. */
#define NEON_FOR_ROWS(body, rows, ...)       \
    switch (rows) {                          \
        case 1: body(1, __VA_ARGS__); break; \
        case 2: body(2, __VA_ARGS__); break; \
        case 3: body(3, __VA_ARGS__); break; \
        case 4: body(4, __VA_ARGS__); break; \
        case 5: body(5, __VA_ARGS__); break; \
        case 6: body(6, __VA_ARGS__); break; \
    }

/* The weights of one input, for 4 rows. A bfloat16 is the upper half of a float: of the two in a dword, the
 * first is shifted up, and of the second, its neighbour is cleared. */
ALWAYS_INLINE float32x4_t neon_floats(const enum dtype dtype, const uint8_t *weights, const int place) {
    const uint32x4_t dwords = vreinterpretq_u32_u8(vld1q_u8(weights));
    if (dtype == F32) return vreinterpretq_f32_u32(dwords);
    const uint32x4_t second = vandq_u32(dwords, vdupq_n_u32(0xFFFF0000));
    return vreinterpretq_f32_u32(place == 0 ? vshlq_n_u32(dwords, 16) : second);
}

/* Register blocking: the sums of `parts` vectors of a tile, from `part` on, stay in registers over all steps.
 * A vector of weights is loaded and widened once, and every row of the panel uses it. */
ALWAYS_INLINE void neon_float_parts(const int rows, const int parts, const enum dtype dtype,
                                    const struct panel *x, const uint8_t *weights, int64_t steps, int part,
                                    float *product) {
    const int inputs = dtype == F32 ? 1 : 2; /* of a step */
    const packed_float *values = (const packed_float *)x->values;
    float32x4_t sum[NEON_MAX_ROWS][NEON_PARTS];
    UNROLLED (r, rows)
        UNROLLED (p, parts) sum[r][p] = vld1q_f32(product + r * TILE_ROWS + 4 * (part + p));
    for (int64_t s = 0; s < steps; s++, weights += STEP_BYTES) {
        if (part == 0 && s % GROUP_STEPS == 0) panel_prefetch(x, s / GROUP_STEPS);
        UNROLLED (place, inputs) {
            UNROLLED (p, parts) {
                const float32x4_t w = neon_floats(dtype, weights + 16 * (part + p), place);
                UNROLLED (r, rows) sum[r][p] = vfmaq_n_f32(sum[r][p], w, values[place * rows + r]);
            }
        }
        values += inputs * rows;
    }
    UNROLLED (r, rows)
        UNROLLED (p, parts) vst1q_f32(product + r * TILE_ROWS + 4 * (part + p), sum[r][p]);
}

ALWAYS_INLINE void neon_float_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                   const uint8_t *weights, int64_t steps, float *product) {
    const int parts = rows > NEON_MAX_ROWS / 2 ? NEON_PARTS / 2 : NEON_PARTS;
    for (int part = 0; part < NEON_PARTS; part += parts)
        neon_float_parts(rows, parts, dtype, x, weights, steps, part, product);
}

/* The signed codes of one step of a pair, for 4 of the tile's rows. Those of int4_min have no sign. */
ALWAYS_INLINE int8x16_t neon_codes(const enum dtype dtype, const uint8_t *codes, int pair, const int half) {
    if (dtype == INT8) {
        const uint8x16_t code = vld1q_u8(codes + (2 * pair + half) * STEP_BYTES);
        return vreinterpretq_s8_u8(veorq_u8(code, vdupq_n_u8(128)));
    }
    const uint8x16_t both = vld1q_u8(codes + pair * STEP_BYTES);
    const uint8x16_t code = half ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
    if (dtype == INT4_MIN) return vreinterpretq_s8_u8(code);
    if (dtype == INT4) return vsubq_s8(vreinterpretq_s8_u8(code), vdupq_n_s8(8));
    return vqtbl1q_s8(vld1q_s8(CODE_VALUES[dtype]), code);
}

ALWAYS_INLINE uint16x4_t neon_load_halves(const uint8_t *bytes) {
    return vreinterpret_u16_u8(vld1_u8(bytes));
}

ALWAYS_INLINE float32x4_t neon_halves(const uint8_t *bytes) {
    return vcvt_f32_f16(vreinterpret_f16_u16(neon_load_halves(bytes)));
}

ALWAYS_INLINE float32x4_t neon_bytes(const uint8_t *bytes) {
    const packed_dword *dword = (const packed_dword *)bytes;
    const uint16x8_t halves = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(*dword)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves)));
}

/* The scales of 4 rows of a group. `factors` are those of its super group, int4_min only. */
ALWAYS_INLINE float32x4_t neon_scales(const enum dtype dtype, const uint8_t *scales, const uint8_t *factors,
                                      int part) {
    if (dtype == INT4_MIN) return vmulq_f32(neon_halves(factors + 8 * part), neon_bytes(scales + 4 * part));
    if (dtype != MXFP4) return neon_halves(scales + 8 * part);
    return vreinterpretq_f32_u32(vshll_n_u16(neon_load_halves(scales + 8 * part), 16));
}

/* The minima of 4 rows of a group, which are 0 but for int4_min. */
ALWAYS_INLINE float32x4_t neon_minima(const enum dtype dtype, const uint8_t *scales, const uint8_t *factors,
                                      int part) {
    if (dtype != INT4_MIN) return vdupq_n_f32(0);
    return neon_scales(dtype, scales + TILE_ROWS, factors + 2 * TILE_ROWS, part);
}

/* product += the integer sums of a group, for `parts` vectors from `part` on, times its scales. */
ALWAYS_INLINE void neon_add_group(const int rows, const int parts, const enum dtype dtype,
                                  const struct panel *x, int64_t group, const uint8_t *codes,
                                  const uint8_t *factors, int part, int32x4_t dot[][NEON_PARTS],
                                  float *product) {
    const uint8_t *scales = codes + group_bytes(dtype) - 2 * TILE_ROWS;
    const float *row_scales = x->scales + group * rows, *row_sums = x->sums + group * rows;
    UNROLLED (p, parts) {
        const float32x4_t scale = neon_scales(dtype, scales, factors, part + p);
        const float32x4_t minimum = neon_minima(dtype, scales, factors, part + p);
        UNROLLED (r, rows) {
            float *out = product + r * TILE_ROWS + 4 * (part + p);
            const float32x4_t both = vmulq_n_f32(scale, row_scales[r]);
            float32x4_t sum = vfmaq_f32(vld1q_f32(out), vcvtq_f32_s32(dot[r][p]), both);
            if (dtype == INT4_MIN) sum = vfmsq_n_f32(sum, minimum, row_sums[r]);
            vst1q_f32(out, sum);
        }
    }
}

/* dot + the dot products of 4 weights and 4 activations in each of 4 rows. Two products fit 16 bits
 * together. */
ALWAYS_INLINE int32x4_t neon_dot(int32x4_t dot, int8x16_t w, int8x16_t v) {
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(v)), high = vmull_high_s8(w, v);
    return vpadalq_s16(dot, vpaddq_s16(low, high));
}

/* Defines NAME_dots(), which has the integer sums of a group for `parts` vectors, by NAME_dot(). */
#define NEON_DOTS(isa)                                                                                  \
    TARGET_##isa ALWAYS_INLINE void isa##_dots(const int rows, const int parts, const enum dtype dtype, \
                                               const uint32_t *values, const uint8_t *codes,            \
                                               int32x4_t dot[][NEON_PARTS]) {                           \
        UNROLLED (r, rows)                                                                              \
            UNROLLED (p, parts) dot[r][p] = vdupq_n_s32(0);                                             \
        ROLLED (pair, PAIR_STEPS) {                                                                     \
            UNROLLED (half, 2) {                                                                        \
                UNROLLED (p, parts) {                                                                   \
                    const int8x16_t w = neon_codes(dtype, codes + 16 * p, pair, half);                  \
                    UNROLLED (r, rows) {                                                                \
                        const uint32x4_t v = vdupq_n_u32(values[r * GROUP_STEPS]);                      \
                        dot[r][p] = isa##_dot(dot[r][p], w, vreinterpretq_s8_u32(v));                   \
                    }                                                                                   \
                }                                                                                       \
                values++;                                                                               \
            }                                                                                           \
        }                                                                                               \
    }

/* Defines NAME_quantised_rows() by NAME_dots(). A panel of 3 rows or more computes a group in two halves. */
#define NEON_QUANTISED_ROWS(isa)                                                                        \
    TARGET_##isa ALWAYS_INLINE void isa##_quantised_rows(const int rows, const enum dtype dtype,        \
                                                         const struct panel *x, const uint8_t *weights, \
                                                         int64_t steps, float *product) {               \
        const int parts = rows > 2 ? NEON_PARTS / 2 : NEON_PARTS;                                       \
        const uint8_t *factors = weights;                                                               \
        for (int64_t g = 0; g < steps / GROUP_STEPS; g++, weights += group_bytes(dtype)) {              \
            if (dtype == INT4_MIN && g % SUPER_GROUP == 0) {                                            \
                factors = weights;                                                                      \
                weights += 4 * TILE_ROWS;                                                               \
            }                                                                                           \
            panel_prefetch(x, g);                                                                       \
            const uint32_t *values = x->values + g * GROUP_STEPS * rows;                                \
            for (int part = 0; part < NEON_PARTS; part += parts) {                                      \
                int32x4_t dot[NEON_MAX_ROWS][NEON_PARTS];                                               \
                isa##_dots(rows, parts, dtype, values, weights + 16 * part, dot);                       \
                neon_add_group(rows, parts, dtype, x, g, weights, factors, part, dot, product);         \
            }                                                                                           \
        }                                                                                               \
    }

#define NEON_PRODUCT(isa, name, dtype, body)                                                            \
    TARGET_##isa static void isa##_##name(const struct panel *x, const uint8_t *weights, int64_t steps, \
                                          float *product) {                                             \
        NEON_FOR_ROWS(body, x->rows, dtype, x, weights, steps, product);                                \
    }

/* Defines all tile products of an instruction set by NAME_dots(). */
#define NEON_PRODUCTS(isa)                                    \
    NEON_QUANTISED_ROWS(isa)                                  \
    NEON_PRODUCT(isa, f32, F32, neon_float_rows)              \
    NEON_PRODUCT(isa, bf16, BF16, neon_float_rows)            \
    NEON_PRODUCT(isa, int8, INT8, isa##_quantised_rows)       \
    NEON_PRODUCT(isa, int4, INT4, isa##_quantised_rows)       \
    NEON_PRODUCT(isa, int4_nl, INT4_NL, isa##_quantised_rows) \
    NEON_PRODUCT(isa, mxfp4, MXFP4, isa##_quantised_rows)     \
    NEON_PRODUCT(isa, int4_min, INT4_MIN, isa##_quantised_rows)

NEON_DOTS(neon)
NEON_PRODUCTS(neon)

static int neon_runs_here(void) { return 1; }

#endif
