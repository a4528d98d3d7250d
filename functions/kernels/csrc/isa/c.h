/* Tile products in plain C, for any machine. The compiler vectorises the loops over the rows of a step. */

#ifndef FAASMOE_ISA_C_H
#define FAASMOE_ISA_C_H

#include <string.h>

#include "../activations.h"
#include "../layout.h"

#define TARGET_c /* what the compiler assumes of every machine */

enum { c_MAX_ROWS = 8 };

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
            for (int i = 0; i < TILE_ROWS; i++)
                sum[i] += bits_float(w[i] << 16) * v0 + bits_float(w[i] & 0xFFFF0000) * v1;
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
                const uint32_t quad = x->values[s * x->rows + r];
                for (int shift = 0; shift < 32; shift += 8)
                    for (int i = 0; i < TILE_ROWS; i++)
                        dot[i] += (int)(w[i] >> shift & 0xFF) * (int8_t)(quad >> shift);
            }
            for (int i = 0; i < TILE_ROWS; i++) sum[i] += (float)dot[i] * x->scales[group];
        }
        for (int i = 0; i < TILE_ROWS; i++) out[i] = sum[i] * scales[i];
    }
}

static int c_runs_here(void) { return 1; }

#endif
