/* One call: routes rows to experts, and runs the two products of each expert tile by tile.
 *
 * The threads of a team share four loops: encode the hidden states, gate_up tiles, encode the intermediate, down
 * tiles. An item is always computed by one thread, and a down tile adds up its experts in ascending order, so the
 * result depends neither on the number of threads nor on which other rows are in the call. */

#ifndef FAASMOE_FORWARD_H
#define FAASMOE_FORWARD_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "isa.h"
#include "layout.h"
#include "operand.h"
#include "routing.h"
#include "team.h"

#define WORTH_A_TEAM (4 << 20) /* bytes of weights times rows: less is done before a thread has started */

struct arguments {
    const struct isa *isa;
    struct shape shape;
    int64_t rows, top_k, experts;
    const uint8_t *block;
    const int64_t *offsets; /* [experts] */
    enum dtype hidden_dtype;
    const void *hidden_states;   /* [rows][hidden_size] */
    const int16_t *expert_index; /* [rows][top_k] */
    const float *expert_weight;  /* [rows][top_k] */
    void *out;                   /* [rows][hidden_size] */
    int threads;
};

struct forward {
    const struct arguments *args;
    struct routing routing;
    struct operand hidden, intermediate;
    int64_t stride;
    float *activated; /* [routes][stride]: silu(gate) * up */
    struct team team;
};

/* A thread, and its working memory. */
struct member {
    struct forward *forward;
    struct encoder encoder;
    float *sums; /* [rows][TILE_ROWS]: a tile of the output */
};

static void encode_hidden(void *context, int64_t item) {
    struct member *m = context;
    struct forward *f = m->forward;
    const struct arguments *a = f->args;
    const struct panel_routes *panel = &f->routing.panel[item];
    const int64_t size = a->shape.hidden_size;
    for (int r = 0; r < panel->rows; r++) {
        const int64_t first = f->routing.route[panel->first + r].row * size;
        if (a->hidden_dtype == BF16)
            bf16_to_floats(size, (const uint16_t *)a->hidden_states + first, m->encoder.row);
        else
            memcpy(m->encoder.row, (const float *)a->hidden_states + first, (size_t)size * sizeof(float));
        operand_put(&f->hidden, panel, r, &m->encoder, size, a->isa, a->shape.dtype);
    }
}

static void encode_intermediate(void *context, int64_t item) {
    struct member *m = context;
    struct forward *f = m->forward;
    const struct arguments *a = f->args;
    const struct panel_routes *panel = &f->routing.panel[item];
    const int64_t size = a->shape.down.inputs;
    for (int r = 0; r < panel->rows; r++) {
        memcpy(m->encoder.row, f->activated + (panel->first + r) * f->stride, (size_t)size * sizeof(float));
        operand_put(&f->intermediate, panel, r, &m->encoder, size, a->isa, a->shape.dtype);
    }
}

/* product[panel rows][TILE_ROWS] = panel x tile of one of an expert's matrices. */
static void multiply(const struct arguments *a, const struct matrix *matrix, const uint8_t *expert, int64_t tile,
                     const struct operand *x, const struct panel_routes *routes, float *product, int64_t i, int64_t n) {
    struct panel panel = operand_panel(x, routes);
    const uint8_t *weights = expert + matrix->weights + tile * matrix->steps * STEP_BYTES;
    const packed_float *scales = (const packed_float *)(expert + matrix->scales) + tile * TILE_ROWS;
    const int64_t tb = matrix->steps * STEP_BYTES;
    panel.prefetch = n == 1 ? weights + 8192 : weights + tb + i * tb / n; panel.prefetch_stride = STEP_BYTES / n;
    a->isa->product[a->shape.dtype](&panel, weights, scales, product);
}

static void gate_up_tile(void *context, int64_t item) {
    struct forward *f = ((struct member *)context)->forward;
    const struct matrix *matrix = &f->args->shape.gate_up;
    const struct routed_expert *expert = &f->routing.expert[item / matrix->tiles];
    const int64_t tile = item % matrix->tiles;
    float product[MAX_PANEL_ROWS * TILE_ROWS];
    for (int64_t i = 0; i < expert->panels; i++) {
        const struct panel_routes *panel = &f->routing.panel[expert->first_panel + i];
        multiply(f->args, matrix, expert->weights, tile, &f->hidden, panel, product, i, expert->panels);
        float *activated = f->activated + panel->first * f->stride + tile * HALF_TILE;
        f->args->isa->swiglu(panel->rows, product, activated, f->stride);
    }
}

static void add_weighted(const struct route *routes, int count, const float *product, float *sums) {
    for (int r = 0; r < count; r++)
        for (int i = 0; i < TILE_ROWS; i++)
            sums[routes[r].row * TILE_ROWS + i] += routes[r].weight * product[r * TILE_ROWS + i];
}

/* Columns of the output that a tile covers: the last may stand over. */
static void write_tile(const struct arguments *a, int64_t tile, const float *sums) {
    const int64_t size = a->shape.hidden_size, first = tile * TILE_ROWS;
    const int64_t width = size - first < TILE_ROWS ? size - first : TILE_ROWS;
    for (int64_t row = 0; row < a->rows; row++, sums += TILE_ROWS) {
        if (a->hidden_dtype == BF16)
            for (int64_t i = 0; i < width; i++)
                ((uint16_t *)a->out)[row * size + first + i] = (uint16_t)float_to_bf16(sums[i]);
        else
            memcpy((float *)a->out + row * size + first, sums, (size_t)width * sizeof *sums);
    }
}

static void down_tile(void *context, int64_t tile) {
    struct member *m = context;
    struct forward *f = m->forward;
    float product[MAX_PANEL_ROWS * TILE_ROWS];
    memset(m->sums, 0, (size_t)(f->args->rows * TILE_ROWS) * sizeof *m->sums);
    for (int64_t e = 0; e < f->routing.experts; e++) {
        const struct routed_expert *expert = &f->routing.expert[e];
        for (int64_t i = 0; i < expert->panels; i++) {
            const struct panel_routes *panel = &f->routing.panel[expert->first_panel + i];
            multiply(f->args, &f->args->shape.down, expert->weights, tile, &f->intermediate, panel, product, i, expert->panels);
            add_weighted(f->routing.route + panel->first, panel->rows, product, m->sums);
        }
    }
    write_tile(f->args, tile, m->sums);
}

static void *forward_member(void *context) {
    struct forward *f = ((struct member *)context)->forward;
    team_for(&f->team, f->routing.panels, encode_hidden, context);
    team_for(&f->team, f->routing.experts * f->args->shape.gate_up.tiles, gate_up_tile, context);
    team_for(&f->team, f->routing.panels, encode_intermediate, context);
    team_for(&f->team, f->args->shape.down.tiles, down_tile, context);
    return NULL;
}

static int member_alloc(struct member *m, struct forward *f) {
    const struct shape *s = &f->args->shape;
    m->forward = f;
    m->sums = malloc((size_t)(f->args->rows * TILE_ROWS + 1) * sizeof *m->sums);
    const int encoder = encoder_alloc(&m->encoder, s->hidden_size > s->down.inputs ? s->hidden_size : s->down.inputs);
    return encoder == 0 && m->sums ? 0 : -1;
}

static int forward_alloc(struct forward *f) {
    const struct arguments *a = f->args;
    const int64_t routes = f->routing.routes;
    f->stride = a->shape.gate_up.tiles * HALF_TILE;
    f->activated = malloc((size_t)(routes * f->stride + 1) * sizeof *f->activated);
    const int hidden = operand_alloc(&f->hidden, routes, &a->shape.gate_up, a->shape.dtype);
    const int intermediate = operand_alloc(&f->intermediate, routes, &a->shape.down, a->shape.dtype);
    return hidden == 0 && intermediate == 0 && f->activated ? 0 : -1;
}

static void forward_free(struct forward *f) {
    routing_free(&f->routing);
    operand_free(&f->hidden);
    operand_free(&f->intermediate);
    free(f->activated);
}

static int forward_run(struct forward *f) {
    const int wanted = f->routing.routes * f->args->shape.nbytes < WORTH_A_TEAM ? 1 : f->args->threads;
    struct member members[TEAM_MAX] = {0};
    int result = 0;
    for (int i = 0; i < wanted; i++) result |= member_alloc(&members[i], f);
    if (result == 0) team_run(&f->team, wanted, forward_member, members, sizeof *members);
    for (int i = 0; i < wanted; i++) {
        encoder_free(&members[i].encoder);
        free(members[i].sums);
    }
    return result;
}

/* Needs valid arguments. Returns 0, or -1 without memory. */
static int gated_ffn(const struct arguments *a) {
    struct forward f = {.args = a};
    int result = routing_build(&f.routing, a->expert_index, a->expert_weight, a->rows, a->top_k, a->block, a->offsets,
                               a->experts, a->isa->max_rows);
    if (result == 0) result = forward_alloc(&f);
    if (result == 0) result = forward_run(&f);
    forward_free(&f);
    return result;
}

#endif
