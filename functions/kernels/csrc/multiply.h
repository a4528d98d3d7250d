/* A panel of activations times a tile of a packed matrix, and what is done with the product. */

#ifndef FAASMOE_MULTIPLY_H
#define FAASMOE_MULTIPLY_H

#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "isa.h"
#include "layout.h"
#include "operand.h"
#include "routing.h"

#define PREFETCH_AHEAD (4 << 10) /* a page: hardware prefetchers stop at the end of one */

/* product[rows][TILE_ROWS] = an expert's i-th panel x a tile of one of its matrices. */
static void multiply(const struct isa *isa, const struct matrix *matrix, const struct operand *x,
                     const struct routed_expert *expert, int64_t tile, int64_t i, float *product) {
    const int64_t tile_bytes = matrix->steps * STEP_BYTES;
    const uint8_t *weights = expert->weights + matrix->weights + tile * tile_bytes;
    const packed_float *scales = (const packed_float *)(expert->weights + matrix->scales) + tile * TILE_ROWS;
    struct panel panel = operand_panel(x, expert->first_panel + i);
    /* A lone panel waits for memory, and reads ahead. Several find the tile in cache from the second on, and
     * each fetches its share of the next one. */
    panel.prefetch =
        weights + (expert->panels == 1 ? PREFETCH_AHEAD : tile_bytes + tile_bytes * i / expert->panels);
    panel.prefetch_bytes = STEP_BYTES / expert->panels;
    isa->product[matrix->dtype](&panel, weights, scales, product);
}

/* How many of a tile's rows are among the `outputs` of its matrix: the last tile may stand over. */
static int64_t tile_width(int64_t outputs, int64_t tile) {
    const int64_t rest = outputs - tile * TILE_ROWS;
    return rest < TILE_ROWS ? rest : TILE_ROWS;
}

/* Writes values to out[start], float32 or bfloat16. */
static void write_values(void *out, enum dtype dtype, int64_t start, const float *values, int64_t count) {
    if (dtype == BF16)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)out)[start + i] = float_to_bf16(values[i]);
    else
        memcpy((float *)out + start, values, (size_t)count * sizeof *values);
}

#endif
