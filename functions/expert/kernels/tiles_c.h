/* Tile products in plain C, for machines without one of the other instruction sets. The loops over a step's
 * 32 rows are what a compiler vectorises. */

#ifndef FAASMOE_TILES_C_H
#define FAASMOE_TILES_C_H

#include "activations.h"
#include "layout.h"

#define C_MAX_ROWS 8

static void c_f32(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    for (int r = 0; r < x->rows; r++, out += TILE_ROWS) {
        float sum[TILE_ROWS] = {0};
        for (int64_t s = 0; s < x->steps; s++) {
            const packed_float *w = (const packed_float *)(weights + s * STEP_BYTES);
            const float v = bits_float(x->values[s * x->rows + r]);
            for (int i = 0; i < TILE_ROWS; i++) sum[i] += w[i] * v;
        }
        memcpy(out, sum, sizeof sum);
    }
}

static void c_bf16(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    (void)scales;
    for (int r = 0; r < x->rows; r++, out += TILE_ROWS) {
        float sum[TILE_ROWS] = {0};
        for (int64_t s = 0; s < x->steps; s++) {
            const packed_dword *w = (const packed_dword *)(weights + s * STEP_BYTES);
            const uint32_t pair = x->values[s * x->rows + r];
            const float v0 = bits_float(pair << 16), v1 = bits_float(pair & 0xFFFF0000);
            for (int i = 0; i < TILE_ROWS; i++) sum[i] += bits_float(w[i] << 16) * v0;
            for (int i = 0; i < TILE_ROWS; i++) sum[i] += bits_float(w[i] & 0xFFFF0000) * v1;
        }
        memcpy(out, sum, sizeof sum);
    }
}

static void c_int8(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out) {
    for (int r = 0; r < x->rows; r++, out += TILE_ROWS) {
        float sum[TILE_ROWS] = {0};
        for (int64_t s = 0, group = r; s < x->steps; group += x->rows) {
            const int64_t end = x->steps - s < GROUP_STEPS ? x->steps : s + GROUP_STEPS;
            int32_t dot[TILE_ROWS];
            for (int i = 0; i < TILE_ROWS; i++) dot[i] = x->corrections[group];
            for (; s < end; s++) {
                const packed_dword *w = (const packed_dword *)(weights + s * STEP_BYTES);
                for (int shift = 0; shift < 32; shift += 8) {
                    const int16_t v = (int8_t)(x->values[s * x->rows + r] >> shift);
                    for (int i = 0; i < TILE_ROWS; i++) dot[i] += (int16_t)(w[i] >> shift & 0xFF) * v;
                }
            }
            for (int i = 0; i < TILE_ROWS; i++) sum[i] += (float)dot[i] * x->scales[group];
        }
        for (int i = 0; i < TILE_ROWS; i++) out[i] = sum[i] * scales[i];
    }
}

static void c_swiglu(int rows, const float *tile, float *out, int64_t stride) {
    swiglu_tile(rows, tile, out, stride);
}

static void c_encode(enum dtype dtype, int64_t count, const float *x, uint32_t *dwords, float *scales,
                     int32_t *corrections) {
    encode_row(dtype, count, x, dwords, scales, corrections);
}

static int c_runs_here(void) { return 1; }

#endif
