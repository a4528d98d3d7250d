/* The activation operand of a product: rows are encoded for the weights' dtype and interleaved as panels. */

#ifndef FAASMOE_OPERAND_H
#define FAASMOE_OPERAND_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "isa/isa.h"
#include "layout.h"
#include "routing.h"

/* The activations of all routes. The panel of routes [first, first + rows) begins at dword first * steps. */
struct operand {
    const struct routing *routing;
    int64_t length; /* values in a row */
    int64_t steps, groups;
    uint32_t *values;
    float *scales;
    int32_t *corrections;
};

/* One thread's buffers for one row, padded to whole groups. */
struct encoder {
    const struct isa *isa;
    enum dtype dtype;
    float *row;
    struct encoded_row encoded;
};

static int64_t whole_groups(int64_t values) { return ceil_div(values, GROUP_VALUES) * GROUP_VALUES; }

/* operand_alloc and encoder_alloc return 0, or -1 when out of memory. Either way the caller must call the
 * matching free function. */
static int operand_alloc(struct operand *x, const struct routing *routing, const struct matrix *m) {
    const int64_t routes = routing->routes;
    x->routing = routing;
    x->length = m->inputs;
    x->steps = m->steps;
    x->groups = m->dtype == INT8 ? ceil_div(m->steps, GROUP_STEPS) : 0;
    x->values = malloc((size_t)(routes * x->steps + 1) * sizeof *x->values);
    x->scales = malloc((size_t)(routes * x->groups + 1) * sizeof *x->scales);
    x->corrections = malloc((size_t)(routes * x->groups + 1) * sizeof *x->corrections);
    return x->values && x->scales && x->corrections ? 0 : -1;
}

static void operand_free(struct operand *x) {
    free(x->values);
    free(x->scales);
    free(x->corrections);
}

static int encoder_alloc(struct encoder *e, const struct isa *isa, enum dtype dtype, int64_t longest_row) {
    const size_t length = (size_t)whole_groups(longest_row);
    e->isa = isa;
    e->dtype = dtype;
    e->row = malloc(length * sizeof *e->row);
    e->encoded.dwords = malloc(length * sizeof *e->encoded.dwords);
    e->encoded.scales = malloc(length / GROUP_VALUES * sizeof *e->encoded.scales);
    e->encoded.corrections = malloc(length / GROUP_VALUES * sizeof *e->encoded.corrections);
    return e->row && e->encoded.dwords && e->encoded.scales && e->encoded.corrections ? 0 : -1;
}

static void encoder_free(struct encoder *e) {
    free(e->row);
    free(e->encoded.dwords);
    free(e->encoded.scales);
    free(e->encoded.corrections);
}

/* Copies row `row` of x [rows][length], float32 or bfloat16, to the encoder. */
static void encoder_read(struct encoder *e, const void *x, enum dtype dtype, int64_t row, int64_t length) {
    if (dtype == BF16)
        for (int64_t i = 0; i < length; i++)
            e->row[i] = bf16_to_float(((const uint16_t *)x)[row * length + i]);
    else
        memcpy(e->row, (const float *)x + row * length, (size_t)length * sizeof *e->row);
}

/* Encodes the encoder's row, and stores it as row r of panel p. */
static void operand_put(struct operand *x, int64_t p, int r, struct encoder *e) {
    const struct panel_routes *panel = &x->routing->panel[p];
    const int64_t padded = whole_groups(x->length);
    memset(e->row + x->length, 0, (size_t)(padded - x->length) * sizeof *e->row);
    e->isa->encode(e->dtype, padded, e->row, &e->encoded);
    uint32_t *values = x->values + panel->first * x->steps + r;
    for (int64_t s = 0; s < x->steps; s++) values[s * panel->rows] = e->encoded.dwords[s];
    const int64_t group = panel->first * x->groups + r;
    for (int64_t g = 0; g < x->groups; g++) {
        x->scales[group + g * panel->rows] = e->encoded.scales[g];
        x->corrections[group + g * panel->rows] = e->encoded.corrections[g];
    }
}

static struct panel operand_panel(const struct operand *x, int64_t p) {
    const struct panel_routes *panel = &x->routing->panel[p];
    const int64_t group = panel->first * x->groups;
    return (struct panel){
        .rows = panel->rows,
        .steps = x->steps,
        .values = x->values + panel->first * x->steps,
        .scales = x->scales + group,
        .corrections = x->corrections + group,
    };
}

#endif
