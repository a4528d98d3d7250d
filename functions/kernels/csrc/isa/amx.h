/* Tile products for Intel's AMX with int8 and bfloat16 (Sapphire Rapids and later): one instruction
 * multiplies up to 16 rows of 64 bytes by 16 outputs. Quantised types give the same bits as AVX-512, since
 * the sums of a group are exact, and take AMX for more rows than AVX-512 takes at once. bfloat16 takes it
 * always, so that the order of a sum does not depend on the number of rows. Everything else is AVX-512. */

#ifndef FAASMOE_ISA_AMX_H
#define FAASMOE_ISA_AMX_H

#include <immintrin.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../layout.h"
#include "avx512.h"

#define TARGET_amx \
    __attribute__((target("amx-tile,amx-int8,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")))
#define AMX_INLINE TARGET_amx ALWAYS_INLINE

enum { amx_MAX_ROWS = 16, amx_BF16 = BF16_GROUPS };

#define AMX_GROUPS 4 /* that are multiplied, then scaled: at the same time, both would want the same port */

/* The compiler does not know that a tile is loaded from memory, which must have been written by then. */
#define AMX_WRITTEN() __asm__ volatile("" ::: "memory")

/* Tile registers: 0 and 1, 5 and 6 are the sums of the halves of a tile of weights, 2 is activations of
 * `rows` rows and `steps` steps, 3 and 4 are the halves' weights. Takes 80 ns. */
AMX_INLINE void amx_configure(int rows, int steps) {
    const uint8_t height = (uint8_t)rows, depth = (uint8_t)steps;
    const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {
        .palette = 1,
        .row_bytes = {64, 64, (uint16_t)(4 * steps), 64, 64, 64, 64},
        .rows = {height, height, height, depth, depth, height, height},
    };
    _tile_loadconfig(&config);
}

/* Decodes groups [g, end) of a chunk. `*weights` and `*factors` are those of group g, then those of `end`. */
AMX_INLINE void amx_decode(const enum dtype dtype, int64_t g, int64_t end, const uint8_t **weights,
                           const uint8_t **factors, struct decoded_group *decoded) {
    const __m512i zero = _mm512_set1_epi8((char)zero_of(dtype));
    for (; g < end; g++, *weights += group_bytes(dtype)) {
        if (dtype == INT4_MIN && g % SUPER_GROUP == 0) {
            *factors = *weights;
            *weights += 4 * TILE_ROWS;
        }
        const uint8_t *scales = *weights + group_bytes(dtype) - 2 * TILE_ROWS;
        struct decoded_group *group = &decoded[g];
        UNROLLED (half, 2) {
            UNROLLED (s, GROUP_STEPS) {
                const __m512i codes = avx512_codes(dtype, *weights + 64 * half, s);
                _mm512_store_si512(group->values[s][HALF_TILE * half], _mm512_sub_epi8(codes, zero));
            }
            _mm512_store_ps(group->scales + HALF_TILE * half, avx512_scales(dtype, scales, *factors, half));
            if (dtype == INT4_MIN)
                _mm512_store_ps(group->minima + HALF_TILE * half, avx512_minima(scales, *factors, half));
        }
    }
    AMX_WRITTEN();
}

/* The exact integer sums of a few groups. */
struct amx_dots {
    _Alignas(64) int32_t of[AMX_GROUPS][amx_MAX_ROWS][TILE_ROWS];
};

/* Macros, since the numbers of tile registers must be literals. */
#define AMX_MULTIPLY(first, second, x, w)                      \
    do {                                                       \
        _tile_loadd(2, x, 4 * GROUP_STEPS);                    \
        _tile_loadd(3, (w)->values[0][0], STEP_BYTES);         \
        _tile_zero(first);                                     \
        _tile_dpbssd(first, 2, 3);                             \
        _tile_loadd(4, (w)->values[0][HALF_TILE], STEP_BYTES); \
        _tile_zero(second);                                    \
        _tile_dpbssd(second, 2, 4);                            \
    } while (0)
#define AMX_STORE(first, second, out)                              \
    do {                                                           \
        _tile_stored(first, (out)[0], 4 * TILE_ROWS);              \
        _tile_stored(second, (out)[0] + HALF_TILE, 4 * TILE_ROWS); \
    } while (0)

/* The sums of groups [first, end). They are stored two groups later, when they are ready. */
AMX_INLINE void amx_dot(const struct panel *x, int64_t first, int64_t end, struct amx_dots *dots) {
    const struct decoded_group *w = x->work->decoded + first;
    const uint32_t *values = x->values + first * GROUP_STEPS * x->rows;
    const int groups = (int)(end - first), next = GROUP_STEPS * x->rows;
    for (int g = 0; g < groups + 2; g++) {
        if (g % 2 == 0) {
            if (g > 1) AMX_STORE(0, 1, dots->of[g - 2]);
            if (g < groups) AMX_MULTIPLY(0, 1, values + g * next, w + g);
        } else {
            if (g > 1) AMX_STORE(5, 6, dots->of[g - 2]);
            if (g < groups) AMX_MULTIPLY(5, 6, values + g * next, w + g);
        }
        if (g < groups) panel_prefetch(x, first + g);
    }
}

/* product += the sums of `groups` groups, from `first` on, times their scales. */
AMX_INLINE void amx_add(const int groups, const int has_minima, const struct panel *x, int64_t first,
                        const int32_t (*dots)[amx_MAX_ROWS][TILE_ROWS], float *product) {
    const struct decoded_group *w = &x->work->decoded[first];
    __m512 scale[AMX_GROUPS][2];
    UNROLLED (g, groups)
        UNROLLED (h, 2) scale[g][h] = _mm512_load_ps(w[g].scales + HALF_TILE * h);
    ROLLED (r, x->rows) {
        float *out = product + r * TILE_ROWS;
        __m512 sum[2] = {_mm512_loadu_ps(out), _mm512_loadu_ps(out + HALF_TILE)};
        UNROLLED (g, groups) {
            const int64_t place = (first + g) * x->rows + r;
            const __m512 row_scale = _mm512_set1_ps(x->scales[place]);
            UNROLLED (h, 2) {
                const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(&dots[g][r][HALF_TILE * h]));
                sum[h] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale[g][h], row_scale), sum[h]);
            }
            if (!has_minima) continue;
            const __m512 row_sum = _mm512_set1_ps(x->sums[place]);
            UNROLLED (h, 2)
                sum[h] = _mm512_fnmadd_ps(_mm512_load_ps(w[g].minima + HALF_TILE * h), row_sum, sum[h]);
        }
        UNROLLED (h, 2) _mm512_storeu_ps(out + HALF_TILE * h, sum[h]);
    }
}

AMX_INLINE void amx_quantised_rows(const enum dtype dtype, const struct panel *x, const uint8_t *weights,
                                   int64_t steps, float *product) {
    const int64_t groups = steps / GROUP_STEPS;
    const uint8_t *factors = weights;
    struct amx_dots dots;
    for (int64_t g = 0, end; g < groups; g = end) {
        end = g + AMX_GROUPS < groups ? g + AMX_GROUPS : groups;
        if (!x->work->is_decoded) amx_decode(dtype, g, end, &weights, &factors, x->work->decoded);
        amx_dot(x, g, end, &dots);
        if (end - g == AMX_GROUPS)
            amx_add(AMX_GROUPS, dtype == INT4_MIN, x, g, dots.of, product);
        else
            for (int64_t f = g; f < end; f++) amx_add(1, dtype == INT4_MIN, x, f, dots.of + (f - g), product);
    }
}

/* Groups of bfloat16 weights, for which the tiles of activations and weights are full. */
AMX_INLINE void amx_bf16_groups(const struct panel *x, int64_t first, int64_t count, const uint8_t *weights) {
    const uint32_t *values = x->values + first * GROUP_PAIRS * x->rows;
    for (int64_t g = 0; g < count; g++) {
        _tile_loadd(2, values + g * GROUP_PAIRS * x->rows, 4 * GROUP_PAIRS);
        _tile_loadd(3, weights + g * GROUP_PAIRS * STEP_BYTES, STEP_BYTES);
        _tile_dpbf16ps(0, 2, 3);
        _tile_loadd(4, weights + g * GROUP_PAIRS * STEP_BYTES + 64, STEP_BYTES);
        _tile_dpbf16ps(1, 2, 4);
        UNROLLED (i, 2) panel_prefetch(x, 2 * (first + g) + i);
    }
}

/* The sums stay in tiles. The last steps of a tile are filled up with zeros. */
AMX_INLINE void amx_bf16_rows(const struct panel *x, const uint8_t *weights, int64_t steps, float *sums) {
    const int64_t whole = steps / GROUP_PAIRS, rest = steps % GROUP_PAIRS;
    _tile_loadd(0, sums, 4 * TILE_ROWS);
    _tile_loadd(1, sums + HALF_TILE, 4 * TILE_ROWS);
    amx_bf16_groups(x, 0, whole, weights);
    if (rest) {
        _Alignas(64) uint8_t last[GROUP_PAIRS * STEP_BYTES] = {0};
        memcpy(last, weights + whole * GROUP_PAIRS * STEP_BYTES, (size_t)(rest * STEP_BYTES));
        AMX_WRITTEN();
        amx_bf16_groups(x, whole, 1, last);
    }
    _tile_stored(0, sums, 4 * TILE_ROWS);
    _tile_stored(1, sums + HALF_TILE, 4 * TILE_ROWS);
}

/* A panel of fewer rows than the tiles have must not write the sums of the next one. */
TARGET_amx static void amx_bf16(const struct panel *x, const uint8_t *weights, int64_t steps,
                                float *product) {
    _Alignas(64) float sums[amx_MAX_ROWS][TILE_ROWS];
    const size_t nbytes = (size_t)x->rows * sizeof *sums;
    if (x->work->is_first) amx_configure(x->work->rows, GROUP_PAIRS);
    if (x->rows == x->work->rows) {
        amx_bf16_rows(x, weights, steps, product);
    } else {
        memcpy(sums, product, nbytes);
        AMX_WRITTEN();
        amx_bf16_rows(x, weights, steps, sums[0]);
        memcpy(product, sums, nbytes);
    }
    if (x->work->is_last) _tile_release();
}

#define AMX_QUANTISED(name, dtype)                                                                  \
    TARGET_amx static void amx_##name(const struct panel *x, const uint8_t *weights, int64_t steps, \
                                      float *product) {                                             \
        if (x->work->rows <= avx512_MAX_ROWS) {                                                     \
            avx512_##name(x, weights, steps, product);                                              \
            return;                                                                                 \
        }                                                                                           \
        if (x->work->is_first) amx_configure(x->work->rows, GROUP_STEPS);                           \
        amx_quantised_rows(dtype, x, weights, steps, product);                                      \
        if (x->work->is_last) _tile_release();                                                      \
    }

FOR_EACH_QUANTISED(AMX_QUANTISED)

TARGET_amx static void amx_f32(const struct panel *x, const uint8_t *weights, int64_t steps, float *product) {
    const int half = x->rows > avx512_MAX_ROWS ? (x->rows + 1) / 2 : x->rows;
    for (int first = 0, rows; first < x->rows; first += rows) {
        struct panel part = *x;
        part.values += first;
        rows = x->rows - first < half ? x->rows - first : half;
        AVX512_FOR_ROWS(avx512_float_rows, rows, F32, &part, weights, steps, product + first * TILE_ROWS);
    }
}

/* Linux lets a process use tiles once it has asked. Its children may, too. */
static int amx_permitted;

static void amx_ask(void) {
    enum { ARCH_REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    amx_permitted = syscall(SYS_arch_prctl, ARCH_REQUEST_PERMISSION, TILE_DATA) == 0;
}

static int amx_runs_here(void) {
    static pthread_once_t asked = PTHREAD_ONCE_INIT;
    if (!avx512_runs_here() || !__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-int8") ||
        !__builtin_cpu_supports("amx-bf16"))
        return 0;
    pthread_once(&asked, amx_ask);
    return amx_permitted;
}

#endif
