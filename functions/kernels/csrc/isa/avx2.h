/* Tile products for AVX2 with FMA: vectors of 8 dwords, 16 registers. */

#ifndef FAASMOE_ISA_AVX2_H
#define FAASMOE_ISA_AVX2_H

#include <immintrin.h>

#include "../activations.h"
#include "../layout.h"

#define TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
#define AVX2_INLINE TARGET_avx2 ALWAYS_INLINE
#define AVX2_PARTS 4 /* vectors per step */

/* The registers hold the float sums of 6 rows for one half of a tile. A panel has float32 instead of
 * bfloat16, since it would be widened again for every tile. */
enum { avx2_MAX_ROWS = 6, avx2_BF16 = BF16_FLOATS };

/* Calls body(rows, ...) with `rows` as a constant: only then can the compiler unroll the loops over rows and
 * keep the sums in registers. An array with a variable index would live in memory. */
#define AVX2_FOR_ROWS(body, rows, ...)       \
    switch (rows) {                          \
        case 1: body(1, __VA_ARGS__); break; \
        case 2: body(2, __VA_ARGS__); break; \
        case 3: body(3, __VA_ARGS__); break; \
        case 4: body(4, __VA_ARGS__); break; \
        case 5: body(5, __VA_ARGS__); break; \
        case 6: body(6, __VA_ARGS__); break; \
    }

AVX2_INLINE __m256i avx2_load(const void *bytes) { return _mm256_loadu_si256(bytes); }

/* The weights of one input, for 8 rows. A bfloat16 is the upper half of a float: of the two in a dword, the
 * first is shifted up, and of the second, its neighbour is cleared. */
AVX2_INLINE __m256 avx2_floats(const enum dtype dtype, const uint8_t *weights, const int place) {
    const __m256i dwords = avx2_load(weights);
    if (dtype == F32) return _mm256_castsi256_ps(dwords);
    const __m256i second = _mm256_and_si256(dwords, _mm256_set1_epi32((int)0xFFFF0000));
    return _mm256_castsi256_ps(place == 0 ? _mm256_slli_epi32(dwords, 16) : second);
}

/* Register blocking: the sums of `parts` vectors of a tile stay in registers over all steps. A vector of
 * weights is loaded and widened once, and every row of the panel uses it. */
AVX2_INLINE void avx2_float_parts(const int rows, const int parts, const enum dtype dtype,
                                  const struct panel *x, const uint8_t *weights, int64_t steps,
                                  float *product) {
    const int inputs = dtype == F32 ? 1 : 2; /* of a step */
    const packed_float *values = (const packed_float *)x->values;
    __m256 sum[avx2_MAX_ROWS][AVX2_PARTS];
    UNROLLED (r, rows)
        UNROLLED (p, parts) sum[r][p] = _mm256_loadu_ps(product + r * TILE_ROWS + 8 * p);
    for (int64_t s = 0; s < steps; s++, weights += STEP_BYTES) {
        if (s % GROUP_STEPS == 0) panel_prefetch(x, s / GROUP_STEPS);
        for (int place = 0; place < inputs; place++, values += rows) {
            __m256 w[AVX2_PARTS];
            UNROLLED (p, parts) w[p] = avx2_floats(dtype, weights + 32 * p, place);
            UNROLLED (r, rows) {
                const __m256 v = _mm256_broadcast_ss((const float *)&values[r]);
                UNROLLED (p, parts) sum[r][p] = _mm256_fmadd_ps(w[p], v, sum[r][p]);
            }
        }
    }
    UNROLLED (r, rows)
        UNROLLED (p, parts) _mm256_storeu_ps(product + r * TILE_ROWS + 8 * p, sum[r][p]);
}

AVX2_INLINE void avx2_float_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                 const uint8_t *weights, int64_t steps, float *product) {
    const int parts = rows > avx2_MAX_ROWS / 2 ? AVX2_PARTS / 2 : AVX2_PARTS;
    for (int p = 0; p < AVX2_PARTS; p += parts)
        avx2_float_parts(rows, parts, dtype, x, weights + 32 * p, steps, product + 8 * p);
}

/* A table of CODE_VALUES, in both lanes. */
AVX2_INLINE __m256i avx2_table(const enum dtype dtype) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)CODE_VALUES[dtype]));
}

/* The codes of one step of a group, for 8 of the tile's rows: as unsigned bytes, or signed as they are. */
AVX2_INLINE __m256i avx2_codes(const enum dtype dtype, const int is_signed, const uint8_t *codes,
                               const int step) {
    const __m256i zero = _mm256_set1_epi8((char)zero_of(dtype));
    if (dtype == INT8) {
        const __m256i code = avx2_load(codes + step * STEP_BYTES);
        return is_signed ? _mm256_xor_si256(code, zero) : code;
    }
    const __m256i pair = avx2_load(codes + step / 2 * STEP_BYTES);
    const __m256i code = _mm256_and_si256(step % 2 ? _mm256_srli_epi16(pair, 4) : pair, _mm256_set1_epi8(15));
    if (dtype == INT4 || dtype == INT4_MIN) return code;
    const __m256i table = avx2_table(dtype);
    return _mm256_shuffle_epi8(is_signed ? table : _mm256_add_epi8(table, zero), code);
}

AVX2_INLINE __m256 avx2_halves(const void *bytes) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)bytes));
}

AVX2_INLINE __m256 avx2_bytes(const void *bytes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes)));
}

/* The scales of 8 rows of a group. `factors` are those of its super group, int4_min only. */
AVX2_INLINE __m256 avx2_scales(const enum dtype dtype, const uint8_t *scales, const uint8_t *factors,
                               const int part) {
    if (dtype == INT4_MIN)
        return _mm256_mul_ps(avx2_halves(factors + 16 * part), avx2_bytes(scales + 8 * part));
    if (dtype != MXFP4) return avx2_halves(scales + 16 * part);
    const __m128i bits = _mm_loadu_si128((const __m128i *)(scales + 16 * part));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/* How many vectors of a tile are multiplied together: as many as have their integer sums in registers. */
AVX2_INLINE int avx2_parts(const int rows) { return rows <= 2 ? 4 : rows <= 4 ? 2 : 1; }

/* product += the integer sums of a group times its scales, for 8 of the tile's rows. */
AVX2_INLINE void avx2_add_part(const int rows, const enum dtype dtype, const struct panel *x, int64_t group,
                               const uint8_t *codes, const uint8_t *factors, const int part,
                               __m256i dot[][AVX2_PARTS], const int place, float *product) {
    const uint8_t *scales = codes + group_bytes(dtype) - 2 * TILE_ROWS;
    const __m256 scale = avx2_scales(dtype, scales, factors, part);
    UNROLLED (r, rows) {
        float *out = product + r * TILE_ROWS + 8 * part;
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x->scales[group * rows + r]));
        const __m256 sum = _mm256_loadu_ps(out);
        _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][place]), both, sum));
    }
    if (dtype != INT4_MIN) return;
    const __m256 minimum = _mm256_mul_ps(avx2_halves(factors + 2 * TILE_ROWS + 16 * part),
                                         avx2_bytes(scales + TILE_ROWS + 8 * part));
    UNROLLED (r, rows) {
        float *out = product + r * TILE_ROWS + 8 * part;
        const __m256 activations = _mm256_set1_ps(x->sums[group * rows + r]);
        _mm256_storeu_ps(out, _mm256_fnmadd_ps(minimum, activations, _mm256_loadu_ps(out)));
    }
}

/* vpmaddubsw multiplies unsigned by signed bytes and adds pairs, with saturation at 16 bits. */

/* The integer sums of a group for codes below 25. All 8 products of codes below 16 and an int8 fit 16 bits
 * together; of larger codes, 4 do. */
AVX2_INLINE void avx2_dot_small(const int rows, const int parts, const enum dtype dtype,
                                const struct panel *x, int64_t group, const uint8_t *codes,
                                __m256i dot[][AVX2_PARTS]) {
    const uint32_t *values = x->values + group * GROUP_STEPS * rows;
    const int times = dtype == MXFP4 ? 2 : 1, pairs = PAIR_STEPS / times;
    UNROLLED (r, rows)
        UNROLLED (p, parts)
            dot[r][p] = dtype == INT4_MIN ? _mm256_setzero_si256()
                                          : _mm256_set1_epi32(x->corrections[group * rows + r]);
    ROLLED (time, times) {
        __m256i sum[avx2_MAX_ROWS][AVX2_PARTS];
        UNROLLED (r, rows)
            UNROLLED (p, parts) sum[r][p] = _mm256_setzero_si256();
        ROLLED (pair, pairs) {
            UNROLLED (s, 2) {
                UNROLLED (p, parts) {
                    const __m256i w = avx2_codes(dtype, 0, codes + 32 * p, s);
                    UNROLLED (r, rows) {
                        const __m256i v = _mm256_set1_epi32((int)values[r * GROUP_STEPS + s]);
                        sum[r][p] = _mm256_add_epi16(sum[r][p], _mm256_maddubs_epi16(w, v));
                    }
                }
            }
            codes += STEP_BYTES;
            values += 2;
        }
        UNROLLED (r, rows)
            UNROLLED (p, parts) {
                const __m256i wide = _mm256_madd_epi16(sum[r][p], _mm256_set1_epi16(1));
                dot[r][p] = _mm256_add_epi32(dot[r][p], wide);
            }
    }
}

/* The integer sums of a group for codes of 8 bits. A pair of products fits 16 bits if both factors have a
 * sign, so the sign of a weight goes to the activation. */
AVX2_INLINE void avx2_dot_signed(const int rows, const int parts, const enum dtype dtype,
                                 const struct panel *x, int64_t group, const uint8_t *codes,
                                 __m256i dot[][AVX2_PARTS]) {
    const uint32_t *values = x->values + group * GROUP_STEPS * rows;
    const int pair_bytes = (dtype == INT8 ? 2 : 1) * STEP_BYTES;
    UNROLLED (r, rows)
        UNROLLED (p, parts) dot[r][p] = _mm256_setzero_si256();
    ROLLED (pair, PAIR_STEPS) {
        UNROLLED (s, 2) {
            UNROLLED (p, parts) {
                const __m256i w = avx2_codes(dtype, 1, codes + 32 * p, s), magnitude = _mm256_abs_epi8(w);
                UNROLLED (r, rows) {
                    const __m256i v = _mm256_set1_epi32((int)values[r * GROUP_STEPS + s]);
                    const __m256i products = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(v, w));
                    const __m256i wide = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
                    dot[r][p] = _mm256_add_epi32(dot[r][p], wide);
                }
            }
        }
        codes += pair_bytes;
        values += 2;
    }
}

AVX2_INLINE void avx2_dot(const int rows, const int parts, const enum dtype dtype, const struct panel *x,
                          int64_t group, const uint8_t *codes, __m256i dot[][AVX2_PARTS]) {
    if (dtype == INT8 || dtype == INT4_NL)
        avx2_dot_signed(rows, parts, dtype, x, group, codes, dot);
    else
        avx2_dot_small(rows, parts, dtype, x, group, codes, dot);
}

/* For every group of a tile, DOT computes the integer sums. A macro, since a function for AVX2 may not call
 * one for more than AVX2. */
#define AVX2_FOR_GROUPS(DOT, rows, dtype, x, weights, steps, product)                                   \
    const int parts = avx2_parts(rows);                                                                 \
    const uint8_t *factors = weights;                                                                   \
    for (int64_t g = 0; g < steps / GROUP_STEPS; g++, weights += group_bytes(dtype)) {                  \
        if (dtype == INT4_MIN && g % SUPER_GROUP == 0) {                                                \
            factors = weights;                                                                          \
            weights += 4 * TILE_ROWS;                                                                   \
        }                                                                                               \
        panel_prefetch(x, g);                                                                           \
        ROLLED (first, AVX2_PARTS / parts) {                                                            \
            __m256i dot[avx2_MAX_ROWS][AVX2_PARTS];                                                     \
            DOT(rows, parts, dtype, x, g, weights + 32 * first * parts, dot);                           \
            UNROLLED (p, parts)                                                                         \
                avx2_add_part(rows, dtype, x, g, weights, factors, first * parts + p, dot, p, product); \
        }                                                                                               \
    }

AVX2_INLINE void avx2_quantised_rows(const int rows, const enum dtype dtype, const struct panel *x,
                                     const uint8_t *weights, int64_t steps, float *product) {
    AVX2_FOR_GROUPS(avx2_dot, rows, dtype, x, weights, steps, product)
}

#define AVX2_PRODUCT(name, dtype, body)                                                               \
    TARGET_avx2 static void avx2_##name(const struct panel *x, const uint8_t *weights, int64_t steps, \
                                        float *product) {                                             \
        AVX2_FOR_ROWS(body, x->rows, dtype, x, weights, steps, product);                              \
    }
#define AVX2_QUANTISED(name, dtype) AVX2_PRODUCT(name, dtype, avx2_quantised_rows)

AVX2_PRODUCT(f32, F32, avx2_float_rows)
AVX2_PRODUCT(bf16, BF16, avx2_float_rows)
FOR_EACH_QUANTISED(AVX2_QUANTISED)

static int avx2_runs_here(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#endif
