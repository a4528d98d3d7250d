/* The activation operand of a product: rows are encoded for the weights' dtype and interleaved as panels. */

#ifndef FAASMOE_OPERAND_H
#define FAASMOE_OPERAND_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "isa/isa.h"
#include "layout.h"
#include "routing.h"

/* The activations of all routes. The panel of routes [first, first + rows) begins at dword first * dwords. In
 * a panel, `run` dwords of a row lie together, before those of the next row. */
struct operand {
    const struct routing *routing;
    enum dtype dtype;       /* of the weights */
    int64_t length;         /* values in a row */
    int64_t dwords, groups; /* in a row */
    int64_t step_dwords;    /* in a step of a row */
    int64_t run;
    uint32_t *values;
    float *scales, *sums;
    int32_t *corrections;
};

/* One thread's buffers for one row, padded to whole groups. */
struct encoder {
    const struct isa *isa;
    float *row;
    struct encoded_row encoded;
};

static int64_t whole_groups(int64_t values) { return ceil_div(values, GROUP_VALUES) * GROUP_VALUES; }

/* operand_alloc and encoder_alloc return 0, or -1 when out of memory. Either way the caller must call the
 * matching free function. */
static int operand_alloc(struct operand *x, const struct isa *isa, const struct routing *routing,
                         const struct matrix *m) {
    const int64_t routes = routing->routes;
    x->routing = routing;
    x->dtype = m->dtype;
    x->length = m->inputs;
    x->step_dwords = m->dtype == BF16 && isa->bf16 == BF16_FLOATS ? 2 : 1;
    x->run = is_quantised(m->dtype)                         ? GROUP_STEPS
             : m->dtype == BF16 && isa->bf16 == BF16_GROUPS ? GROUP_PAIRS
                                                            : 1;
    x->dwords = ceil_div(m->steps * x->step_dwords, x->run) * x->run;
    x->groups = is_quantised(m->dtype) ? m->steps / GROUP_STEPS : 0;
    const size_t groups = (size_t)(routes * x->groups + 1);
    x->values = aligned_alloc(64, ((size_t)(routes * x->dwords + 16) * sizeof *x->values + 63) / 64 * 64);
    x->scales = malloc(groups * sizeof *x->scales);
    x->corrections = malloc(groups * sizeof *x->corrections);
    x->sums = malloc(groups * sizeof *x->sums);
    return x->values && x->scales && x->corrections && x->sums ? 0 : -1;
}

static void operand_free(struct operand *x) {
    free(x->values);
    free(x->scales);
    free(x->corrections);
    free(x->sums);
}

static int encoder_alloc(struct encoder *e, const struct isa *isa, int64_t longest_row) {
    const size_t length = (size_t)whole_groups(longest_row), groups = length / GROUP_VALUES;
    struct encoded_row *encoded = &e->encoded;
    e->isa = isa;
    e->row = malloc(length * sizeof *e->row);
    encoded->dwords = malloc(length * sizeof *encoded->dwords);
    encoded->scales = malloc(groups * sizeof *encoded->scales);
    encoded->corrections = malloc(groups * sizeof *encoded->corrections);
    encoded->sums = malloc(groups * sizeof *encoded->sums);
    return e->row && encoded->dwords && encoded->scales && encoded->corrections && encoded->sums ? 0 : -1;
}

static void encoder_free(struct encoder *e) {
    free(e->row);
    free(e->encoded.dwords);
    free(e->encoded.scales);
    free(e->encoded.corrections);
    free(e->encoded.sums);
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
    e->isa->encode(x->dtype, padded, e->row, &e->encoded);
    uint32_t *values = x->values + panel->first * x->dwords + r * x->run;
    for (int64_t i = 0; i < x->dwords; i += x->run, values += panel->rows * x->run)
        for (int64_t j = 0; j < x->run; j++) values[j] = e->encoded.dwords[i + j];
    const int64_t first = panel->first * x->groups + r;
    for (int64_t g = 0; g < x->groups; g++) {
        const int64_t group = first + g * panel->rows;
        x->scales[group] = e->encoded.scales[g];
        x->corrections[group] = e->encoded.corrections[g];
        x->sums[group] = e->encoded.sums[g];
    }
}

/* Panel p from step `step` on. */
static struct panel operand_panel(const struct operand *x, int64_t p, int64_t step) {
    const struct panel_routes *panel = &x->routing->panel[p];
    const int64_t group = panel->first * x->groups + (x->groups ? step / GROUP_STEPS * panel->rows : 0);
    return (struct panel){
        .rows = panel->rows,
        .values = x->values + panel->first * x->dwords + step * x->step_dwords * panel->rows,
        .scales = x->scales + group,
        .corrections = x->corrections + group,
        .sums = x->sums + group,
    };
}

#endif
