/* Panels of activations times a tile of a packed matrix. */

#ifndef FAASMOE_MULTIPLY_H
#define FAASMOE_MULTIPLY_H

#include <stdint.h>
#include <string.h>

#include "isa/isa.h"
#include "layout.h"
#include "operand.h"
#include "routing.h"

#define PREFETCH_AHEAD \
    (4 << 10)           /* bytes, of one panel: hardware prefetchers do not cross the end of a page */
#define ROWS_AT_ONCE 64 /* the most rows of one product */

/* How many of an expert's panels one product takes, from the i-th on. */
static inline int64_t panels_at_once(const struct isa *isa, const struct routed_expert *expert, int64_t i) {
    const int64_t most = ROWS_AT_ONCE / isa->max_rows, left = expert->panels - i;
    return left < most ? left : most;
}

static inline int64_t rows_of(const struct panel_routes *panels, int64_t count) {
    const struct panel_routes *last = &panels[count - 1];
    return last->first + last->rows - panels[0].first;
}

/* product[rows][TILE_ROWS] = `panels` panels of an expert, from the i-th on, x a tile of one of its matrices.
 * Several panels share each chunk of the tile while it is in the first-level cache, and each prefetches its
 * share of the next chunk. */
static void multiply(const struct isa *isa, const struct matrix *matrix, const struct operand *x,
                     const struct routed_expert *expert, int64_t tile, int64_t i, int64_t panels,
                     float *product) {
    const struct panel_routes *routes = &x->routing->panel[expert->first_panel + i];
    const uint8_t *weights = expert->weights + matrix->weights + tile * matrix->tile_bytes;
    struct tile_work work;
    work.rows = routes[0].rows;
    memset(product, 0, (size_t)(rows_of(routes, panels) * TILE_ROWS) * sizeof *product);
    for (int64_t step = 0; step < matrix->steps; step += CHUNK_STEPS) {
        const int64_t rest = matrix->steps - step, steps = rest < CHUNK_STEPS ? rest : CHUNK_STEPS;
        const int64_t nbytes = bytes_of_steps(matrix->dtype, steps);
        for (int64_t p = 0; p < panels; p++) {
            struct panel panel = operand_panel(x, expert->first_panel + i + p, step);
            panel.work = &work;
            work.is_first = step == 0 && p == 0;
            work.is_last = rest <= CHUNK_STEPS && p == panels - 1;
            work.is_decoded = p > 0;
            panel.prefetch = weights + (panels == 1 ? PREFETCH_AHEAD : nbytes + nbytes * p / panels);
            panel.prefetch_bytes = nbytes / ceil_div(steps, GROUP_STEPS) / panels;
            isa->product[matrix->dtype](&panel, weights, steps,
                                        product + (routes[p].first - routes[0].first) * TILE_ROWS);
        }
        weights += nbytes;
    }
}

#endif
