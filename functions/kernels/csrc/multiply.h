/* A panel of activations times a tile of a packed matrix. */

#ifndef FAASMOE_MULTIPLY_H
#define FAASMOE_MULTIPLY_H

#include <stdint.h>

#include "isa/isa.h"
#include "layout.h"
#include "operand.h"
#include "routing.h"

#define PREFETCH_AHEAD (4 << 10) /* bytes: a page, since hardware prefetchers do not cross the end of one */

/* product[rows][TILE_ROWS] = an expert's i-th panel x a tile of one of its matrices. */
static void multiply(const struct isa *isa, const struct matrix *matrix, const struct operand *x,
                     const struct routed_expert *expert, int64_t tile, int64_t i, float *product) {
    const int64_t tile_bytes = matrix->steps * STEP_BYTES;
    const uint8_t *weights = expert->weights + matrix->weights + tile * tile_bytes;
    const packed_float *scales = (const packed_float *)(expert->weights + matrix->scales) + tile * TILE_ROWS;
    struct panel panel = operand_panel(x, expert->first_panel + i);
    /* With one panel, memory bandwidth is the limit, so it prefetches a little ahead in the same tile. With
     * several, all but the first find the tile in the cache; each prefetches its share of the next tile. */
    panel.prefetch =
        weights + (expert->panels == 1 ? PREFETCH_AHEAD : tile_bytes + tile_bytes * i / expert->panels);
    panel.prefetch_bytes = STEP_BYTES / expert->panels;
    isa->product[matrix->dtype](&panel, weights, scales, product);
}

#endif
