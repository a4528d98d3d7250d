/* A linear layer: rows times a packed matrix, by the same products as the experts. */

#ifndef FAASMOE_LINEAR_H
#define FAASMOE_LINEAR_H

#include <stdint.h>
#include <stdlib.h>

#include "multiply.h"
#include "operand.h"
#include "routing.h"
#include "team.h"

struct linear_arguments {
    const struct isa *isa;
    struct matrix matrix;
    int64_t rows, outputs;
    const uint8_t *weights;
    enum dtype dtype;  /* of x and out */
    const void *x;     /* [rows][matrix.inputs] */
    const float *bias; /* [outputs], or NULL */
    void *out;         /* [rows][outputs] */
    int threads;
};

struct linear_member {
    struct linear *linear;
    struct encoder encoder;
};

struct linear {
    struct linear_arguments args;
    struct routing routing;
    struct operand operand;
    struct team team;
    struct loop encoded, done;
    struct linear_member members[TEAM_MAX];
};

static void linear_encode(void *member, int64_t item) {
    struct linear_member *m = member;
    struct linear *l = m->linear;
    const struct panel_routes *panel = &l->routing.panel[item];
    for (int r = 0; r < panel->rows; r++) {
        encoder_read(&m->encoder, l->args.x, l->args.dtype, panel->first + r, l->args.matrix.inputs);
        operand_put(&l->operand, item, r, &m->encoder);
    }
}

static void linear_tile(void *member, int64_t tile) {
    const struct linear *l = ((struct linear_member *)member)->linear;
    const struct linear_arguments *a = &l->args;
    const int64_t width = tile_width(a->outputs, tile), column = tile * TILE_ROWS;
    float product[MAX_PANEL_ROWS * TILE_ROWS];
    for (int64_t p = 0; p < l->routing.panels; p++) {
        const struct panel_routes *panel = &l->routing.panel[p];
        multiply(a->isa, &a->matrix, &l->operand, l->routing.expert, tile, p, product);
        for (int r = 0; r < panel->rows; r++) {
            float *values = product + r * TILE_ROWS;
            for (int64_t i = 0; a->bias && i < width; i++) values[i] += a->bias[column + i];
            write_values(a->out, a->dtype, (panel->first + r) * a->outputs + column, values, width);
        }
    }
}

static void linear_free(struct linear *l) {
    for (int i = 0; i < TEAM_MAX; i++) encoder_free(&l->members[i].encoder);
    routing_free(&l->routing);
    operand_free(&l->operand);
    free(l);
}

static void linear_work(void *member) {
    struct linear *l = ((struct linear_member *)member)->linear;
    team_for(&l->team, &l->encoded, l->routing.panels, linear_encode, member);
    team_for(&l->team, &l->done, l->args.matrix.tiles, linear_tile, member);
    if (team_leave(&l->team)) linear_free(l);
}

/* For valid arguments. Returns 0, or -1 without memory. */
static int linear(const struct linear_arguments *args) {
    struct linear *l = calloc(1, sizeof *l);
    if (!l) return -1;
    l->args = *args;
    int failed = routing_of_rows(&l->routing, args->rows, args->weights, args->isa->max_rows) ||
                 operand_alloc(&l->operand, &l->routing, &args->matrix);
    const int threads = team_size(args->rows * args->matrix.end, args->threads);
    for (int i = 0; i < threads && !failed; i++) {
        l->members[i].linear = l;
        failed = encoder_alloc(&l->members[i].encoder, args->isa, args->matrix.dtype, args->matrix.inputs);
    }
    if (failed) {
        linear_free(l);
        return -1;
    }
    team_start(&l->team, threads - 1, linear_work, l->members + 1, sizeof *l->members);
    linear_work(l->members);
    return 0;
}

#endif
