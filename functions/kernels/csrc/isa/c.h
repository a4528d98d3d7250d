/* Tile products in plain C, for any machine. The compiler vectorises the loops over the rows of a step. */

#ifndef FAASMOE_ISA_C_H
#define FAASMOE_ISA_C_H

#include "../activations.h"
#include "../layout.h"

#define TARGET_c /* what the compiler assumes of every machine */

enum { c_MAX_ROWS = 8, c_BF16 = BF16_FLOATS };

static void c_f32(const struct panel *x, const uint8_t *weights, int64_t steps, float *product) {
    for (int r = 0; r < x->rows; r++, product += TILE_ROWS)
        for (int64_t s = 0; s < steps; s++) {
            const packed_float *w = (const packed_float *)(weights + s * STEP_BYTES);
            const float v = bits_float(x->values[s * x->rows + r]);
            for (int i = 0; i < TILE_ROWS; i++) product[i] += w[i] * v;
        }
}

static void c_bf16(const struct panel *x, const uint8_t *weights, int64_t steps, float *product) {
    for (int r = 0; r < x->rows; r++, product += TILE_ROWS)
        for (int64_t s = 0; s < steps; s++) {
            const packed_dword *w = (const packed_dword *)(weights + s * STEP_BYTES);
            const uint32_t *v = x->values + 2 * s * x->rows + r;
            const float first = bits_float(v[0]), second = bits_float(v[x->rows]);
            for (int i = 0; i < TILE_ROWS; i++) {
                product[i] += bits_float(w[i] << 16) * first;
                product[i] += bits_float(w[i] & 0xFFFF0000) * second;
            }
        }
}

/* A group of a quantised tile. Its values are integers, and sums of their products with int8 are exact as
 * floats, which GCC vectorises for any machine. */
struct c_group {
    float values[GROUP_VALUES][TILE_ROWS];
    float scales[TILE_ROWS];
    float minima[TILE_ROWS]; /* int4_min only */
};

/* The signed values of one step of a group. Codes of int4_min have no sign. */
ALWAYS_INLINE void c_read_step(const enum dtype dtype, const uint8_t *codes, int step,
                               float values[4][TILE_ROWS]) {
    const int index = dtype == INT8 ? step : step / 2, half = dtype == INT8 ? 0 : step % 2 * 4;
    const packed_dword *dwords = (const packed_dword *)(codes + index * STEP_BYTES);
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < TILE_ROWS; i++) {
            const uint32_t code = dwords[i] >> (8 * j + half) & (dtype == INT8 ? 255 : 15);
            if (dtype == INT4_NL || dtype == MXFP4)
                values[j][i] = CODE_VALUES[dtype][code];
            else
                values[j][i] = (float)((int32_t)code - zero_of(dtype));
        }
}

/* Reads the group at `codes`. `factors` are those of its super group, int4_min only. */
ALWAYS_INLINE void c_read_group(const enum dtype dtype, const uint8_t *codes, const packed_half *factors,
                                struct c_group *group) {
    const uint8_t *scales = codes + group_bytes(dtype) - 2 * TILE_ROWS;
    const packed_half *halves = (const packed_half *)scales;
    for (int s = 0; s < GROUP_STEPS; s++) c_read_step(dtype, codes, s, group->values + 4 * s);
    for (int i = 0; i < TILE_ROWS; i++)
        if (dtype == INT4_MIN) {
            group->scales[i] = half_to_float(factors[i]) * scales[i];
            group->minima[i] = half_to_float(factors[TILE_ROWS + i]) * scales[TILE_ROWS + i];
        } else {
            group->scales[i] = dtype == MXFP4 ? bf16_to_float(halves[i]) : half_to_float(halves[i]);
        }
}

/* product += row r of a group of the panel x a group of the tile. */
ALWAYS_INLINE void c_add_group(const enum dtype dtype, const struct panel *x, int64_t number, int r,
                               const struct c_group *group, float *product) {
    const int64_t place = number * x->rows + r;
    float dot[TILE_ROWS] = {0};
    for (int v = 0; v < GROUP_VALUES; v++) {
        const uint32_t quad = x->values[place * GROUP_STEPS + v / 4];
        const float activation = (int8_t)(quad >> (8 * (v % 4)));
        for (int i = 0; i < TILE_ROWS; i++) dot[i] += group->values[v][i] * activation;
    }
    for (int i = 0; i < TILE_ROWS; i++) product[i] += dot[i] * (group->scales[i] * x->scales[place]);
    if (dtype == INT4_MIN)
        for (int i = 0; i < TILE_ROWS; i++) product[i] -= group->minima[i] * x->sums[place];
}

ALWAYS_INLINE void c_quantised(const enum dtype dtype, const struct panel *x, const uint8_t *weights,
                               int64_t steps, float *product) {
    const packed_half *factors = NULL;
    struct c_group group;
    for (int64_t g = 0; g < steps / GROUP_STEPS; g++, weights += group_bytes(dtype)) {
        if (dtype == INT4_MIN && g % SUPER_GROUP == 0) {
            factors = (const packed_half *)weights;
            weights += 4 * TILE_ROWS;
        }
        c_read_group(dtype, weights, factors, &group);
        for (int r = 0; r < x->rows; r++) c_add_group(dtype, x, g, r, &group, product + r * TILE_ROWS);
    }
}

#define C_QUANTISED(name, dtype)                                                                         \
    static void c_##name(const struct panel *x, const uint8_t *weights, int64_t steps, float *product) { \
        c_quantised(dtype, x, weights, steps, product);                                                  \
    }

FOR_EACH_QUANTISED(C_QUANTISED)

static int c_runs_here(void) { return 1; }

#endif
