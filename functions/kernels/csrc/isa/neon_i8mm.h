/* Tile products for ARM's NEON with the int8 matrix instructions (Neoverse V1 and N2, Cortex-A510 and A710,
 * and later): 2 rows of weights times 2 rows of activations, 8 values each. */

#ifndef FAASMOE_ISA_NEON_I8MM_H
#define FAASMOE_ISA_NEON_I8MM_H

#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "neon_dotprod.h"

#define TARGET_neon_i8mm __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#define NEON_I8MM_PAIRS (NEON_MAX_ROWS / 2)

enum { neon_i8mm_MAX_ROWS = NEON_MAX_ROWS, neon_i8mm_BF16 = BF16_FLOATS };

/* 8 values of row `row` and of the next one, which is the same again at the end of the panel. */
ALWAYS_INLINE int8x16_t neon_i8mm_activations(const int rows, const int row, const uint32_t *values) {
    const int next = row == rows - 1 ? row : row + 1;
    return vreinterpretq_s8_u32(
        vcombine_u32(vld1_u32(values + row * GROUP_STEPS), vld1_u32(values + next * GROUP_STEPS)));
}

/* A pair of steps. A sum is 2 rows of weights x 2 rows of activations; there are two for a vector. */
TARGET_neon_i8mm ALWAYS_INLINE void neon_i8mm_pair(const int rows, const int parts, const enum dtype dtype,
                                                   const uint32_t *values, const uint8_t *codes, int pair,
                                                   int32x4_t sum[][NEON_PARTS][2]) {
    int8x16_t v[NEON_I8MM_PAIRS];
    UNROLLED (q, (rows + 1) / 2) v[q] = neon_i8mm_activations(rows, 2 * q, values + 2 * pair);
    UNROLLED (p, parts) {
        const int32x4_t first = vreinterpretq_s32_s8(neon_codes(dtype, codes + 16 * p, pair, 0));
        const int32x4_t second = vreinterpretq_s32_s8(neon_codes(dtype, codes + 16 * p, pair, 1));
        const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
        UNROLLED (q, (rows + 1) / 2) {
            sum[q][p][0] = vmmlaq_s32(sum[q][p][0], low, v[q]);
            sum[q][p][1] = vmmlaq_s32(sum[q][p][1], high, v[q]);
        }
    }
}

/* The integer sums of a group. A single row has no use for matrices. */
TARGET_neon_i8mm ALWAYS_INLINE void neon_i8mm_dots(const int rows, const int parts, const enum dtype dtype,
                                                   const uint32_t *values, const uint8_t *codes,
                                                   int32x4_t dot[][NEON_PARTS]) {
    if (rows == 1) {
        neon_dotprod_dots(rows, parts, dtype, values, codes, dot);
        return;
    }
    int32x4_t sum[NEON_I8MM_PAIRS][NEON_PARTS][2];
    UNROLLED (q, (rows + 1) / 2)
        UNROLLED (p, parts) sum[q][p][0] = sum[q][p][1] = vdupq_n_s32(0);
    ROLLED (pair, PAIR_STEPS) neon_i8mm_pair(rows, parts, dtype, values, codes, pair, sum);
    UNROLLED (r, rows)
        UNROLLED (p, parts) {
            const int32x4_t *both = sum[r / 2][p];
            dot[r][p] = r % 2 ? vuzp2q_s32(both[0], both[1]) : vuzp1q_s32(both[0], both[1]);
        }
}

NEON_PRODUCTS(neon_i8mm)

static int neon_i8mm_runs_here(void) {
    return neon_dotprod_runs_here() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
}

#endif
