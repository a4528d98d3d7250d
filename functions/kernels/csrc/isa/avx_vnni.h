/* Tile products for AVX2 with AVX-VNNI (Intel Alder Lake, N100, and later): vpdpbusd for vectors of 8 dwords.
 */

#ifndef FAASMOE_ISA_AVX_VNNI_H
#define FAASMOE_ISA_AVX_VNNI_H

#include <immintrin.h>

#include "../layout.h"
#include "avx2.h"

#define TARGET_avx_vnni __attribute__((target("avx2,fma,f16c,avxvnni")))
#define AVX_VNNI_INLINE TARGET_avx_vnni ALWAYS_INLINE

enum { avx_vnni_MAX_ROWS = avx2_MAX_ROWS, avx_vnni_BF16 = avx2_BF16 };

/* The integer sums of a group. They begin with the correction, which takes out what makes the codes unsigned.
 */
AVX_VNNI_INLINE void avx_vnni_dot(const int rows, const int parts, const enum dtype dtype,
                                  const struct panel *x, int64_t group, const uint8_t *codes,
                                  __m256i dot[][AVX2_PARTS]) {
    const uint32_t *values = x->values + group * GROUP_STEPS * rows;
    const int pair_bytes = (dtype == INT8 ? 2 : 1) * STEP_BYTES;
    UNROLLED (r, rows)
        UNROLLED (p, parts) dot[r][p] = _mm256_set1_epi32(x->corrections[group * rows + r]);
    ROLLED (pair, PAIR_STEPS) {
        UNROLLED (s, 2) {
            UNROLLED (p, parts) {
                const __m256i w = avx2_codes(dtype, 0, codes + 32 * p, s);
                UNROLLED (r, rows) {
                    const __m256i v = _mm256_set1_epi32((int)values[r * GROUP_STEPS + s]);
                    dot[r][p] = _mm256_dpbusd_avx_epi32(dot[r][p], w, v);
                }
            }
        }
        codes += pair_bytes;
        values += 2;
    }
}

AVX_VNNI_INLINE void avx_vnni_quantised_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                             const uint8_t *weights, int64_t steps, float *product) {
    AVX2_FOR_GROUPS(avx_vnni_dot, rows, dtype, x, weights, steps, product)
}

#define AVX_VNNI_QUANTISED(name, dtype)                                                        \
    TARGET_avx_vnni static void avx_vnni_##name(const struct panel *x, const uint8_t *weights, \
                                                int64_t steps, float *product) {               \
        AVX2_FOR_ROWS(avx_vnni_quantised_rows, x->rows, dtype, x, weights, steps, product);    \
    }

FOR_EACH_QUANTISED(AVX_VNNI_QUANTISED)

#define avx_vnni_f32 avx2_f32
#define avx_vnni_bf16 avx2_bf16

static int avx_vnni_runs_here(void) { return avx2_runs_here() && __builtin_cpu_supports("avxvnni"); }

#endif
