/* Activations on their way into a product: rows are encoded for the weights' dtype, and interleaved as panels. */

#ifndef FAASMOE_OPERAND_H
#define FAASMOE_OPERAND_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "isa.h"
#include "layout.h"
#include "routing.h"

/* The activations of all routes. The panel of routes [first, first + rows) starts at value first * steps. */
struct operand {
    int64_t steps, groups;
    uint32_t *values;
    float *scales;
    int32_t *corrections;
};

/* One thread's room for one row, padded to whole groups. */
struct encoder {
    float *row;
    uint32_t *dwords;
    float *scales;
    int32_t *corrections;
};

static int64_t padded_length(int64_t values) { return ceil_div(values, GROUP_VALUES) * GROUP_VALUES; }

/* Both return -1 without memory, else 0, and must be freed either way. */
static int operand_alloc(struct operand *x, int64_t routes, const struct matrix *m, enum dtype dtype) {
    x->steps = m->steps;
    x->groups = dtype == INT8 ? ceil_div(m->steps, GROUP_STEPS) : 0;
    x->values = malloc((size_t)(routes * x->steps + 1) * sizeof *x->values);
    x->scales = malloc((size_t)(routes * x->groups + 1) * sizeof *x->scales);
    x->corrections = malloc((size_t)(routes * x->groups + 1) * sizeof *x->corrections);
    return x->values && x->scales && x->corrections ? 0 : -1;
}

static int encoder_alloc(struct encoder *e, int64_t longest_row) {
    const size_t length = (size_t)padded_length(longest_row);
    e->row = malloc(length * sizeof *e->row);
    e->dwords = malloc(length * sizeof *e->dwords);
    e->scales = malloc(length / GROUP_VALUES * sizeof *e->scales);
    e->corrections = malloc(length / GROUP_VALUES * sizeof *e->corrections);
    return e->row && e->dwords && e->scales && e->corrections ? 0 : -1;
}

static void operand_free(struct operand *x) {
    free(x->values);
    free(x->scales);
    free(x->corrections);
}

static void encoder_free(struct encoder *e) {
    free(e->row);
    free(e->dwords);
    free(e->scales);
    free(e->corrections);
}

/* Encodes the `length` values in the encoder's row, and puts them at place r of a panel. */
static void operand_put(struct operand *x, const struct panel_routes *panel, int r, struct encoder *e, int64_t length,
                        const struct isa *isa, enum dtype dtype) {
    const int64_t padded = padded_length(length);
    memset(e->row + length, 0, (size_t)(padded - length) * sizeof *e->row);
    isa->encode(dtype, padded, e->row, e->dwords, e->scales, e->corrections);
    uint32_t *values = x->values + panel->first * x->steps + r;
    for (int64_t s = 0; s < x->steps; s++) values[s * panel->rows] = e->dwords[s];
    const int64_t group = panel->first * x->groups + r;
    for (int64_t g = 0; g < x->groups; g++) {
        x->scales[group + g * panel->rows] = e->scales[g];
        x->corrections[group + g * panel->rows] = e->corrections[g];
    }
}

static struct panel operand_panel(const struct operand *x, const struct panel_routes *panel) {
    const int64_t group = panel->first * x->groups;
    return (struct panel){panel->rows, x->steps, x->values + panel->first * x->steps, x->scales + group,
                          x->corrections + group};
}

#endif
