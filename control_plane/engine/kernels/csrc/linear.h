/* Linear layers: the same rows times one packed matrix or several, with the gated FFN's tile products. */

#ifndef FAASMOE_LINEAR_H
#define FAASMOE_LINEAR_H

#include <stdint.h>
#include <stdlib.h>

#include "multiply.h"
#include "operand.h"
#include "routing.h"
#include "team.h"

#define MAX_LAYERS 8

/* One of the layers that are applied to the same rows. */
struct linear_layer {
    struct matrix matrix;
    int64_t outputs;
    const uint8_t *weights;
    const float *bias; /* [outputs], or NULL */
    void *out;         /* [rows][outputs] */
};

struct linear_arguments {
    const struct isa *isa;
    int64_t rows;
    enum dtype dtype; /* of x and out */
    const void *x;    /* [rows][inputs] */
    int layers;
    struct linear_layer layer[MAX_LAYERS]; /* with the same inputs and dtype */
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

/* Divides all rows into panels, in their order. There are no routes and experts. Returns 0, or -1 when out of
 * memory; either way linear_free frees the routing. */
static int route_rows(struct routing *r, int64_t rows, int max_rows) {
    *r = (struct routing){.panel = calloc((size_t)rows + 1, sizeof *r->panel)};
    if (!r->panel) return -1;
    cut_panels(r, 0, rows, max_rows);
    r->routes = rows;
    return 0;
}

static void linear_encode(void *member, int64_t item) {
    struct linear_member *m = member;
    struct linear *l = m->linear;
    const struct panel_routes *panel = &l->routing.panel[item];
    for (int r = 0; r < panel->rows; r++) {
        encoder_read(&m->encoder, l->args.x, l->args.dtype, panel->first + r, l->operand.length);
        operand_put(&l->operand, item, r, &m->encoder);
    }
}

/* Writes the product [rows][TILE_ROWS] of a tile, plus the bias, to rows from `first` on. */
static void linear_write(const struct linear_arguments *a, const struct linear_layer *layer, int64_t tile,
                         int64_t first, int64_t rows, float *product) {
    const int64_t width = tile_width(layer->outputs, tile), column = tile * TILE_ROWS;
    for (int64_t r = 0; r < rows; r++, product += TILE_ROWS) {
        for (int64_t i = 0; layer->bias && i < width; i++) product[i] += layer->bias[column + i];
        write_values(layer->out, a->dtype, (first + r) * layer->outputs + column, product, width);
    }
}

/* Items number the tiles of all layers, one layer after the other. */
static void linear_tile(void *member, int64_t tile) {
    const struct linear *l = ((struct linear_member *)member)->linear;
    const struct linear_arguments *a = &l->args;
    const struct linear_layer *layer = a->layer;
    for (; tile >= layer->matrix.tiles; layer++) tile -= layer->matrix.tiles;
    const struct routed_expert weights = {layer->weights, 0, l->routing.panels};
    _Alignas(64) float product[ROWS_AT_ONCE * TILE_ROWS];
    for (int64_t p = 0, panels; p < l->routing.panels; p += panels) {
        const struct panel_routes *routes = &l->routing.panel[p];
        panels = panels_at_once(a->isa, &weights, p);
        multiply(a->isa, &layer->matrix, &l->operand, &weights, tile, p, panels, product);
        linear_write(a, layer, tile, routes->first, rows_of(routes, panels), product);
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
    int64_t tiles = 0;
    for (int i = 0; i < l->args.layers; i++) tiles += l->args.layer[i].matrix.tiles;
    team_for(&l->team, &l->done, tiles, linear_tile, member);
    if (team_leave(&l->team)) linear_free(l);
}

/* The arguments must be valid. Returns 0, or -1 when out of memory. */
static int linear(const struct linear_arguments *args) {
    struct linear *l = calloc(1, sizeof *l);
    if (!l) return -1;
    l->args = *args;
    const struct matrix *first = &args->layer[0].matrix;
    int failed = route_rows(&l->routing, args->rows, args->isa->max_rows) ||
                 operand_alloc(&l->operand, args->isa, &l->routing, first);
    int64_t nbytes = 0;
    for (int i = 0; i < args->layers; i++) nbytes += args->layer[i].matrix.end;
    const int threads = team_size(args->rows * nbytes, args->threads);
    for (int i = 0; i < threads && !failed; i++) {
        l->members[i].linear = l;
        failed = encoder_alloc(&l->members[i].encoder, args->isa, first->inputs);
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
