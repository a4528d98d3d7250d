/* The gated FFN of a call: routes rows to experts, and computes the two products of each expert tile by tile.
 *
 * The threads of a team share four loops: encode the hidden states, gate_up tiles, encode the intermediate
 * activations, down tiles. One thread computes a whole item, and a down tile adds up its experts in ascending
 * order. Therefore the result does not depend on the number of threads or on the other rows in the call, and
 * several calls with ascending experts, each of which carries the sums of the one before, give the same bits
 * as one call with all experts. */

#ifndef FAASMOE_GATED_FFN_H
#define FAASMOE_GATED_FFN_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "isa/isa.h"
#include "layout.h"
#include "multiply.h"
#include "operand.h"
#include "routing.h"
#include "team.h"

struct ffn_arguments {
    const struct isa *isa;
    struct shape shape;
    int64_t rows, top_k, experts;
    const uint8_t *block;
    const int64_t *offsets; /* [experts] */
    enum dtype hidden_dtype;
    const void *hidden_states;   /* [rows][hidden_size] */
    const int16_t *expert_index; /* [rows][top_k] */
    const float *expert_weight;  /* [rows][top_k] */
    const float *carry;          /* [rows][hidden_size], initial values of the sums; NULL for zeros */
    enum dtype out_dtype;
    void *out; /* [rows][hidden_size] */
    int threads;
};

/* A thread's working memory. */
struct ffn_member {
    struct ffn *ffn;
    struct encoder encoder;
    float *sums; /* [rows][TILE_ROWS]: a tile of the output */
};

struct ffn {
    struct ffn_arguments args;
    struct routing routing;
    struct operand hidden, intermediate;
    int64_t stride;
    float *activated; /* [routes][stride]: the inputs of down */
    struct team team;
    struct loop encoded_hidden, gate_up_done, encoded_intermediate, down_done;
    struct ffn_member members[TEAM_MAX];
};

static void encode_hidden(void *member, int64_t item) {
    struct ffn_member *m = member;
    struct ffn *f = m->ffn;
    const struct panel_routes *panel = &f->routing.panel[item];
    for (int r = 0; r < panel->rows; r++) {
        encoder_read(&m->encoder, f->args.hidden_states, f->args.hidden_dtype,
                     f->routing.route[panel->first + r].row, f->args.shape.hidden_size);
        operand_put(&f->hidden, item, r, &m->encoder);
    }
}

static void encode_intermediate(void *member, int64_t item) {
    struct ffn_member *m = member;
    struct ffn *f = m->ffn;
    const struct panel_routes *panel = &f->routing.panel[item];
    for (int r = 0; r < panel->rows; r++) {
        const float *activated = f->activated + (panel->first + r) * f->stride;
        memcpy(m->encoder.row, activated, (size_t)f->intermediate.length * sizeof *activated);
        operand_put(&f->intermediate, item, r, &m->encoder);
    }
}

/* product[rows][TILE_ROWS] += the biases of a tile, if the matrix has some. */
static void add_biases(const struct matrix *matrix, const struct routed_expert *expert, int64_t tile,
                       int64_t rows, float *product) {
    if (!matrix->biases) return;
    const packed_float *biases = (const packed_float *)(expert->weights + matrix->biases) + tile * TILE_ROWS;
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < TILE_ROWS; i++) product[r * TILE_ROWS + i] += biases[i];
}

static void gate_up_tile(void *member, int64_t item) {
    const struct ffn *f = ((struct ffn_member *)member)->ffn;
    const struct isa *isa = f->args.isa;
    const struct activation *activation = &f->args.shape.activation;
    const struct matrix *matrix = &f->args.shape.gate_up;
    const struct routed_expert *expert = &f->routing.expert[item / matrix->tiles];
    const int64_t tile = item % matrix->tiles;
    _Alignas(64) float product[ROWS_AT_ONCE * TILE_ROWS];
    for (int64_t i = 0, panels; i < expert->panels; i += panels) {
        const struct panel_routes *routes = &f->routing.panel[expert->first_panel + i];
        panels = panels_at_once(isa, expert, i);
        multiply(isa, matrix, &f->hidden, expert, tile, i, panels, product);
        add_biases(matrix, expert, tile, rows_of(routes, panels), product);
        float *out = f->activated + routes->first * f->stride + tile * activated_width(activation);
        isa->activate(activation, (int)rows_of(routes, panels), product, out, f->stride);
    }
}

static void add_weighted(const struct route *routes, int64_t count, const float *product, float *sums) {
    for (int64_t r = 0; r < count; r++)
        for (int i = 0; i < TILE_ROWS; i++)
            sums[routes[r].row * TILE_ROWS + i] += routes[r].weight * product[r * TILE_ROWS + i];
}

/* Sets the sums of a tile's columns to the carried sums of earlier calls, or to zeros. */
static void begin_tile(const struct ffn_arguments *a, int64_t tile, float *sums) {
    const int64_t width = tile_width(a->shape.hidden_size, tile);
    memset(sums, 0, (size_t)(a->rows * TILE_ROWS) * sizeof *sums);
    for (int64_t row = 0; a->carry && row < a->rows; row++)
        memcpy(sums + row * TILE_ROWS, a->carry + row * a->shape.hidden_size + tile * TILE_ROWS,
               (size_t)width * sizeof *sums);
}

static void write_tile(const struct ffn_arguments *a, int64_t tile, const float *sums) {
    const int64_t size = a->shape.hidden_size, first = tile * TILE_ROWS, width = tile_width(size, tile);
    for (int64_t row = 0; row < a->rows; row++)
        write_values(a->out, a->out_dtype, row * size + first, sums + row * TILE_ROWS, width);
}

static void down_tile(void *member, int64_t tile) {
    struct ffn_member *m = member;
    const struct ffn *f = m->ffn;
    const struct isa *isa = f->args.isa;
    const struct matrix *matrix = &f->args.shape.down;
    _Alignas(64) float product[ROWS_AT_ONCE * TILE_ROWS];
    begin_tile(&f->args, tile, m->sums);
    for (int64_t e = 0; e < f->routing.experts; e++) {
        const struct routed_expert *expert = &f->routing.expert[e];
        for (int64_t i = 0, panels; i < expert->panels; i += panels) {
            const struct panel_routes *routes = &f->routing.panel[expert->first_panel + i];
            panels = panels_at_once(isa, expert, i);
            multiply(isa, matrix, &f->intermediate, expert, tile, i, panels, product);
            add_biases(matrix, expert, tile, rows_of(routes, panels), product);
            add_weighted(f->routing.route + routes->first, rows_of(routes, panels), product, m->sums);
        }
    }
    write_tile(&f->args, tile, m->sums);
}

static void ffn_free(struct ffn *f) {
    for (int i = 0; i < TEAM_MAX; i++) {
        encoder_free(&f->members[i].encoder);
        free(f->members[i].sums);
    }
    routing_free(&f->routing);
    operand_free(&f->hidden);
    operand_free(&f->intermediate);
    free(f->activated);
    free(f);
}

static void ffn_work(void *member) {
    struct ffn *f = ((struct ffn_member *)member)->ffn;
    const int64_t gate_up_tiles = f->routing.experts * f->args.shape.gate_up.tiles;
    team_for(&f->team, &f->encoded_hidden, f->routing.panels, encode_hidden, member);
    team_for(&f->team, &f->gate_up_done, gate_up_tiles, gate_up_tile, member);
    team_for(&f->team, &f->encoded_intermediate, f->routing.panels, encode_intermediate, member);
    team_for(&f->team, &f->down_done, f->args.shape.down.tiles, down_tile, member);
    if (team_leave(&f->team)) ffn_free(f);
}

/* ffn_member_alloc and ffn_alloc return 0, or -1 when out of memory; either way ffn_free frees what they
 * allocated. */
static int ffn_member_alloc(struct ffn_member *m, struct ffn *f) {
    const struct ffn_arguments *a = &f->args;
    const int64_t hidden = a->shape.gate_up.inputs, intermediate = a->shape.down.inputs;
    const int64_t longest = hidden > intermediate ? hidden : intermediate;
    m->ffn = f;
    m->sums = malloc((size_t)(a->rows * TILE_ROWS + 1) * sizeof *m->sums);
    return encoder_alloc(&m->encoder, a->isa, longest) || !m->sums ? -1 : 0;
}

static int ffn_alloc(struct ffn *f) {
    const struct ffn_arguments *a = &f->args;
    if (routing_build(&f->routing, a->expert_index, a->expert_weight, a->rows, a->top_k, a->block, a->offsets,
                      a->experts, a->isa->max_rows))
        return -1;
    const int64_t routes = f->routing.routes;
    f->stride = a->shape.gate_up.tiles * activated_width(&a->shape.activation);
    f->activated = malloc((size_t)(routes * f->stride + 1) * sizeof *f->activated);
    const int failed = operand_alloc(&f->hidden, a->isa, &f->routing, &a->shape.gate_up) ||
                       operand_alloc(&f->intermediate, a->isa, &f->routing, &a->shape.down);
    return failed || !f->activated ? -1 : 0;
}

/* The arguments must be valid. Returns 0, or -1 when out of memory. */
static int gated_ffn(const struct ffn_arguments *args) {
    struct ffn *f = calloc(1, sizeof *f);
    if (!f) return -1;
    f->args = *args;
    int failed = ffn_alloc(f);
    const int threads = team_size(f->routing.routes * args->shape.nbytes, args->threads);
    for (int i = 0; i < threads && !failed; i++) failed = ffn_member_alloc(&f->members[i], f);
    if (failed) {
        ffn_free(f);
        return -1;
    }
    team_start(&f->team, threads - 1, ffn_work, f->members + 1, sizeof *f->members);
    ffn_work(f->members);
    return 0;
}

#endif
