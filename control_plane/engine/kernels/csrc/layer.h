/* The dense half of a layer, from its input to the choice of experts, over a ragged batch: rows of several
 * sequences, each with its own past in the KV cache.
 *
 * A layer program is what a layer is made of; it is built once. A call runs its loops on the threads of a
 * team, without coming back to Python: norm; queries, keys and values; their norms, rotary embedding and
 * place in the cache; attention; output projection and residual; norm; router and choice. One thread
 * computes a whole item of a loop, and an item of a loop over rows needs no other row. Therefore a row's
 * result depends neither on the number of threads nor on the other rows.
 *
 * What a layer does not have, is left out: norms before or behind attention and the experts, a gate of
 * attention, factors. Other kinds of layers fit in here: another attention replaces the loops from PROJECTED
 * to ATTENDED, another router the choice in router.h. */

#ifndef FAASMOE_LAYER_H
#define FAASMOE_LAYER_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dense_isa.h"
#include "kv_cache.h"
#include "linear.h"
#include "row_blocks.h"

/* The matrices of a layer. Those before OUTPUT have the same inputs and dtype. */
enum { QUERY, KEY, VALUE, GATE, OUTPUT, ROUTER, LAYER_MATRICES };
/* The inputs of matrices, each of which has an encoding of its own. */
enum { ATTENTION_INPUT, OUTPUT_INPUT, ROUTER_INPUT, LAYER_OPERANDS };
static const int FIRST_MATRIX[LAYER_OPERANDS] = {QUERY, OUTPUT, ROUTER};

struct layer_matrix {
    struct matrix matrix;
    int64_t outputs; /* 0: the layer has no such matrix */
    const uint8_t *weights;
    const float *bias; /* [outputs], or NULL */
};

struct layer_program {
    const struct isa *isa;
    const struct dense_isa *dense;
    enum dtype dtype; /* of activations and norms */
    int64_t hidden_size, heads, kv_heads, head_dim;
    int64_t window; /* the most tokens that a row sees, itself among them */
    struct rotation rotation;
    float epsilon, scaling, clip;
    float residual;                          /* the factor of what is added to the layer's input */
    const void *input_norm, *attention_norm; /* [hidden_size], before and behind attention; NULL for none */
    const void *ffn_norm, *ffn_output_norm;  /* before and behind the experts, likewise */
    const void *query_norm, *key_norm;       /* NULL for a layer without */
    int norms_heads;                         /* each head has a norm; else one is over all heads */
    int norms_rotated;                       /* the norms of heads come after their rotation */
    enum attention_gate gate_function;
    struct layer_matrix matrix[LAYER_MATRICES];
    struct router router;
};

struct layer_arguments {
    struct layer_program program;
    struct kv_cache cache;
    int64_t layer, rows;
    void *hidden;                     /* [rows][hidden_size], changed to the sum with attention */
    const void *cosine, *sine;        /* [rows][rotation.rotated], of the angles of the rows' positions */
    const int64_t *lanes, *positions; /* [rows] */
    void *normalised;                 /* out [rows][hidden_size]: the input of the experts */
    int64_t *index;                   /* out [rows][top_k] */
    float *weights;                   /* out [rows][top_k] */
    int threads;
};

struct layer_member {
    struct layer_call *call;
    struct encoder encoder;
    float *row;    /* a row's keys, or the output of ATTEND_QUERIES */
    float *scores; /* attention's: [ATTEND_QUERIES][tokens that a block sees] */
    float *part;   /* attention's: [PART_TOKENS][head_dim] */
    struct candidate *candidates;
};

enum { ENCODED, PROJECTED, STORED, ATTENDED, GATHERED, ADDED, NORMED, SCORED, CHOSEN, LAYER_LOOPS };

struct layer_call {
    struct layer_arguments args;
    struct routing routing;
    struct row_block *block; /* [blocks] */
    int64_t blocks;
    struct operand operands[LAYER_OPERANDS];
    char *projected[OUTPUT]; /* queries, keys, values and gates [rows][outputs], in the program's dtype */
    float *query;            /* [rows][heads][head_dim]: rotated and scaled */
    char *attended;          /* [rows][heads][head_dim], in the program's dtype */
    char *output;            /* what attention adds [rows][hidden_size], if there is a norm behind it */
    float *scores;           /* [rows][experts] */
    struct team team;
    struct loop loops[LAYER_LOOPS];
    int threads;
    struct layer_member members[TEAM_MAX]; /* `threads` of them are in use */
};

static char *row_of(const struct layer_program *p, const void *rows, int64_t row, int64_t size) {
    return (char *)rows + row * size * nbytes_of(p->dtype);
}

/* Encodes the rows [rows][size] of a panel as the input of a product. */
static void layer_encode(struct layer_member *m, int operand, int64_t panel, const void *rows) {
    struct layer_call *c = m->call;
    const struct panel_routes *routes = &c->routing.panel[panel];
    for (int r = 0; r < routes->rows; r++) {
        encoder_read(&m->encoder, rows, c->args.program.dtype, routes->first + r,
                     c->operands[operand].length);
        operand_put(&c->operands[operand], panel, r, &m->encoder);
    }
}

/* What some of a call's rows are in the product of a tile: [rows][TILE_ROWS], from row `first` on. */
struct layer_product {
    int64_t first, rows, width;
    float values[ROWS_AT_ONCE * TILE_ROWS];
};

/* The product of a tile of a matrix with panels from `panel` on, plus the bias, rounded to the program's
 * dtype. Returns the number of panels that it took. */
static int64_t layer_multiply(const struct layer_call *c, int matrix, int operand, int64_t tile,
                              int64_t panel, struct layer_product *product) {
    const struct layer_program *p = &c->args.program;
    const struct layer_matrix *m = &p->matrix[matrix];
    const struct routed_expert weights = {m->weights, 0, c->routing.panels};
    const struct panel_routes *routes = &c->routing.panel[panel];
    const int64_t panels = panels_at_once(p->isa, &weights, panel);
    product->first = routes->first;
    product->rows = rows_of(routes, panels);
    product->width = tile_width(m->outputs, tile);
    float *values = product->values;
    multiply(p->isa, &m->matrix, &c->operands[operand], &weights, tile, panel, panels, values);
    for (int64_t r = 0; m->bias && r < product->rows; r++)
        for (int64_t i = 0; i < product->width; i++)
            values[r * TILE_ROWS + i] += m->bias[tile * TILE_ROWS + i];
    /* A router in float32 keeps its values so. */
    if (p->dtype == BF16 && m->matrix.dtype != F32)
        for (int64_t i = 0; i < product->rows * TILE_ROWS; i++) values[i] = rounded(BF16, values[i]);
    return panels;
}

/* Norms the rows of a panel into args.normalised; without a norm, copies them. */
static void layer_norm(struct layer_call *c, int64_t panel, const void *weight) {
    const struct layer_program *p = &c->args.program;
    const struct panel_routes *routes = &c->routing.panel[panel];
    const char *hidden = row_of(p, c->args.hidden, routes->first, p->hidden_size);
    char *normalised = row_of(p, c->args.normalised, routes->first, p->hidden_size);
    if (weight)
        p->dense->rms_norm(p->dtype, routes->rows, p->hidden_size, hidden, weight, p->epsilon, normalised);
    else
        memcpy(normalised, hidden, (size_t)(routes->rows * p->hidden_size * nbytes_of(p->dtype)));
}

static void layer_encode_input(void *member, int64_t panel) {
    struct layer_member *m = member;
    layer_norm(m->call, panel, m->call->args.program.input_norm);
    layer_encode(m, ATTENTION_INPUT, panel, m->call->args.normalised);
}

/* Items number the tiles of queries, keys, values and gates, one matrix after the other. */
static void layer_project(void *member, int64_t tile) {
    const struct layer_call *c = ((struct layer_member *)member)->call;
    const struct layer_program *p = &c->args.program;
    int matrix = QUERY;
    for (; tile >= p->matrix[matrix].matrix.tiles; matrix++) tile -= p->matrix[matrix].matrix.tiles;
    const int64_t outputs = p->matrix[matrix].outputs;
    struct layer_product product;
    for (int64_t panel = 0; panel < c->routing.panels;) {
        panel += layer_multiply(c, matrix, ATTENTION_INPUT, tile, panel, &product);
        for (int64_t r = 0; r < product.rows; r++)
            write_values(c->projected[matrix], p->dtype, (product.first + r) * outputs + tile * TILE_ROWS,
                         product.values + r * TILE_ROWS, product.width);
    }
}

static void layer_clip(const struct layer_program *p, char *row, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        const float value = stored_value(p->dtype, row, i);
        if (value > p->clip) store_value(p->dtype, row, i, p->clip);
        if (value < -p->clip) store_value(p->dtype, row, i, -p->clip);
    }
}

/* Norms a row's queries or keys in place. */
static void layer_norm_heads(const struct layer_program *p, int matrix, const void *weight, char *values) {
    const int64_t outputs = p->matrix[matrix].outputs, size = p->norms_heads ? p->head_dim : outputs;
    if (weight) p->dense->rms_norm(p->dtype, outputs / size, size, values, weight, p->epsilon, values);
}

/* Norms, clips and rotates a row's queries or keys, which change, into `out` [heads][head_dim]. */
static void layer_rotate(const struct layer_call *c, int matrix, const void *weight, int64_t row,
                         float *out) {
    const struct layer_arguments *a = &c->args;
    const struct layer_program *p = &a->program;
    const int64_t outputs = p->matrix[matrix].outputs;
    char *values = row_of(p, c->projected[matrix], row, outputs);
    if (!p->norms_rotated) layer_norm_heads(p, matrix, weight, values);
    if (p->clip < INFINITY) layer_clip(p, values, outputs);
    p->dense->rotate(p->dtype, &p->rotation, outputs / p->head_dim, values, 0, a->cosine, a->sine,
                     row * p->rotation.rotated, out);
    if (p->norms_rotated && weight) {
        write_values(values, p->dtype, 0, out, outputs);
        layer_norm_heads(p, matrix, weight, values);
        for (int64_t i = 0; i < outputs; i++) out[i] = stored_value(p->dtype, values, i);
    }
}

static void layer_store(void *member, int64_t row) {
    struct layer_member *m = member;
    const struct layer_call *c = m->call;
    const struct layer_arguments *a = &c->args;
    const struct layer_program *p = &a->program;
    const int64_t queries = p->heads * p->head_dim, keys = p->kv_heads * p->head_dim;
    float *query = c->query + row * queries;
    layer_rotate(c, QUERY, p->query_norm, row, query);
    for (int64_t i = 0; i < queries; i++) query[i] *= p->scaling;
    layer_rotate(c, KEY, p->key_norm, row, m->row);
    char *values = row_of(p, c->projected[VALUE], row, keys);
    if (p->clip < INFINITY) layer_clip(p, values, keys);
    kv_put(&a->cache, a->lanes[row], a->layer, a->positions[row], m->row, values);
}

/* Heads [head, head + heads) of the rows of a block, which share the keys of head `from`. */
static void layer_attend_heads(struct layer_member *m, const struct row_block *block, int64_t from,
                               int64_t head, int64_t heads) {
    const struct layer_call *c = m->call;
    const struct layer_arguments *a = &c->args;
    const struct layer_program *p = &a->program;
    const int64_t lane = a->lanes[block->first], position = a->positions[block->first];
    const int64_t first = position + 1 - kv_seen(position, p->window), size = p->head_dim;
    struct attend work = {
        .head_dim = size,
        .keys = kv_place(&a->cache, lane, a->layer, KEYS, from, first),
        .values = kv_place(&a->cache, lane, a->layer, VALUES, from, first),
        .tokens = position + block->rows - first,
        .scores = m->scores,
        .part = m->part,
        .out = m->row,
    };
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t seen = kv_seen(position + r, p->window), begin = position + r + 1 - seen - first;
        const float *query = c->query + ((block->first + r) * p->heads + head) * size;
        for (int64_t h = 0; h < heads; h++) attend_to(&work, query + h * size, begin, begin + seen);
    }
    p->dense->attend(p->dtype, &work);
    for (int64_t r = 0; r < block->rows; r++)
        write_values(c->attended, p->dtype, ((block->first + r) * p->heads + head) * size,
                     m->row + r * heads * size, heads * size);
}

/* Items number the heads of keys of all blocks. */
static void layer_attend(void *member, int64_t item) {
    struct layer_member *m = member;
    const struct layer_call *c = m->call;
    const struct layer_program *p = &c->args.program;
    const struct row_block *block = &c->block[item / p->kv_heads];
    const int64_t from = item % p->kv_heads, shared = p->heads / p->kv_heads, end = (from + 1) * shared;
    for (int64_t head = from * shared; head < end; head += ATTEND_QUERIES)
        layer_attend_heads(m, block, from, head, end - head < ATTEND_QUERIES ? end - head : ATTEND_QUERIES);
}

static void layer_encode_attended(void *member, int64_t panel) {
    struct layer_member *m = member;
    const struct layer_call *c = m->call;
    const struct layer_program *p = &c->args.program;
    const struct panel_routes *routes = &c->routing.panel[panel];
    const int64_t gates = p->matrix[GATE].outputs;
    for (int64_t row = routes->first; gates && row < routes->first + routes->rows; row++)
        p->dense->gate_heads(p->dtype, p->gate_function, p->heads, p->head_dim, gates, c->projected[GATE],
                             row * gates, c->attended, row * p->heads * p->head_dim);
    layer_encode(m, OUTPUT_INPUT, panel, c->attended);
}

/* A tile of the output projection, added to the layer's input, or kept for the norm before that. */
static void layer_add(void *member, int64_t tile) {
    const struct layer_call *c = ((struct layer_member *)member)->call;
    const struct layer_program *p = &c->args.program;
    struct layer_product product;
    for (int64_t panel = 0; panel < c->routing.panels;) {
        panel += layer_multiply(c, OUTPUT, OUTPUT_INPUT, tile, panel, &product);
        for (int64_t r = 0; r < product.rows; r++) {
            if (p->attention_norm) {
                write_values(c->output, p->dtype, (product.first + r) * p->hidden_size + tile * TILE_ROWS,
                             product.values + r * TILE_ROWS, product.width);
                continue;
            }
            char *hidden = row_of(p, c->args.hidden, product.first + r, p->hidden_size);
            hidden += tile * TILE_ROWS * nbytes_of(p->dtype);
            for (int64_t i = 0; i < product.width; i++)
                store_value(p->dtype, hidden, i,
                            stored_value(p->dtype, hidden, i) +
                                rounded(p->dtype, p->residual * product.values[r * TILE_ROWS + i]));
        }
    }
}

/* Adds what attention gives for the rows of a panel, behind its norm. */
static void layer_add_normed(struct layer_call *c, int64_t panel) {
    const struct layer_program *p = &c->args.program;
    const struct panel_routes *routes = &c->routing.panel[panel];
    const int64_t size = p->hidden_size;
    char *output = row_of(p, c->output, routes->first, size);
    p->dense->rms_norm(p->dtype, routes->rows, size, output, p->attention_norm, p->epsilon, output);
    p->dense->add_experts(p->dtype, p->dtype, routes->rows * size, p->residual,
                          row_of(p, c->args.hidden, routes->first, size), output, NULL);
}

static void layer_encode_routed(void *member, int64_t panel) {
    struct layer_member *m = member;
    const struct layer_program *p = &m->call->args.program;
    if (p->attention_norm) layer_add_normed(m->call, panel);
    layer_norm(m->call, panel, p->ffn_norm);
    if (p->router.experts) layer_encode(m, ROUTER_INPUT, panel, m->call->args.normalised);
}

static void layer_score(void *member, int64_t tile) {
    const struct layer_call *c = ((struct layer_member *)member)->call;
    const int64_t experts = c->args.program.router.experts;
    struct layer_product product;
    for (int64_t panel = 0; panel < c->routing.panels;) {
        panel += layer_multiply(c, ROUTER, ROUTER_INPUT, tile, panel, &product);
        for (int64_t r = 0; r < product.rows; r++)
            memcpy(c->scores + (product.first + r) * experts + tile * TILE_ROWS,
                   product.values + r * TILE_ROWS, (size_t)product.width * sizeof *product.values);
    }
}

static void layer_choose(void *member, int64_t row) {
    struct layer_member *m = member;
    const struct layer_arguments *a = &m->call->args;
    const struct router *r = &a->program.router;
    a->program.dense->choose_experts(r, m->call->scores + row * r->experts, m->candidates,
                                     a->index + row * r->top_k, a->weights + row * r->top_k);
}

static void layer_free(struct layer_call *c) {
    for (int i = 0; i < c->threads; i++) {
        struct layer_member *m = &c->members[i];
        encoder_free(&m->encoder);
        free(m->row);
        free(m->scores);
        free(m->part);
        free(m->candidates);
    }
    for (int i = 0; i < LAYER_OPERANDS; i++) operand_free(&c->operands[i]);
    for (int i = QUERY; i < OUTPUT; i++) free(c->projected[i]);
    free(c->output);
    routing_free(&c->routing);
    free(c->block);
    free(c->query);
    free(c->attended);
    free(c->scores);
    free(c);
}

static void layer_work(void *member) {
    struct layer_call *c = ((struct layer_member *)member)->call;
    const struct layer_program *p = &c->args.program;
    const int64_t panels = c->routing.panels, rows = c->args.rows;
    int64_t tiles = 0;
    for (int i = QUERY; i < OUTPUT; i++) tiles += p->matrix[i].matrix.tiles;
    const struct {
        int64_t items;
        void (*body)(void *member, int64_t item);
    } loops[LAYER_LOOPS] = {
        [ENCODED] = {panels, layer_encode_input},
        [PROJECTED] = {tiles, layer_project},
        [STORED] = {rows, layer_store},
        [ATTENDED] = {c->blocks * p->kv_heads, layer_attend},
        [GATHERED] = {panels, layer_encode_attended},
        [ADDED] = {p->matrix[OUTPUT].matrix.tiles, layer_add},
        [NORMED] = {panels, layer_encode_routed},
        [SCORED] = {p->matrix[ROUTER].matrix.tiles, layer_score},
        [CHOSEN] = {p->router.experts ? rows : 0, layer_choose},
    };
    for (int i = 0; i < LAYER_LOOPS; i++)
        if (loops[i].items) team_for(&c->team, &c->loops[i], loops[i].items, loops[i].body, member);
    if (team_leave(&c->team)) layer_free(c);
}

static void *floats(int64_t count) { return malloc((size_t)(count + 1) * sizeof(float)); }

/* layer_member_alloc and layer_alloc return 0, or -1 when out of memory; either way layer_free frees what
 * they allocated. `longest` is the most tokens that a row sees. */
static int layer_member_alloc(struct layer_member *m, struct layer_call *c, int64_t longest) {
    const struct layer_program *p = &c->args.program;
    m->call = c;
    m->row = floats((p->kv_heads > ATTEND_QUERIES ? p->kv_heads : ATTEND_QUERIES) * p->head_dim);
    m->scores = floats(ATTEND_QUERIES * (longest + ATTEND_QUERIES));
    m->part = floats(PART_TOKENS * p->head_dim);
    m->candidates = malloc((size_t)(p->router.experts + p->router.groups + 1) * sizeof *m->candidates);
    const int64_t values = p->heads * p->head_dim,
                  longest_row = values > p->hidden_size ? values : p->hidden_size;
    const int failed = encoder_alloc(&m->encoder, p->isa, longest_row);
    return failed || !m->row || !m->scores || !m->part || !m->candidates ? -1 : 0;
}

static int layer_alloc(struct layer_call *c) {
    const struct layer_program *p = &c->args.program;
    const int64_t rows = c->args.rows;
    int failed = route_rows(&c->routing, rows, p->isa->max_rows);
    for (int i = 0; i < LAYER_OPERANDS && !failed; i++) {
        const struct layer_matrix *first = &p->matrix[FIRST_MATRIX[i]];
        if (first->outputs) failed = operand_alloc(&c->operands[i], p->isa, &c->routing, &first->matrix);
    }
    for (int i = QUERY; i < OUTPUT && !failed; i++) {
        c->projected[i] = floats(rows * p->matrix[i].outputs);
        failed = !c->projected[i];
    }
    c->block = malloc((size_t)(rows + 1) * sizeof *c->block);
    c->query = floats(rows * p->heads * p->head_dim);
    c->attended = floats(rows * p->heads * p->head_dim);
    c->output = floats(p->attention_norm ? rows * p->hidden_size : 0);
    c->scores = floats(rows * p->router.experts);
    return failed || !c->block || !c->query || !c->attended || !c->output || !c->scores ? -1 : 0;
}

/* The bytes that rows read, each as often as it is read. */
static int64_t layer_bytes(const struct layer_arguments *a, int64_t seen) {
    const struct layer_program *p = &a->program;
    int64_t matrices = 0;
    for (int i = 0; i < LAYER_MATRICES; i++) matrices += p->matrix[i].matrix.end;
    return a->rows * matrices + 2 * seen * p->kv_heads * p->head_dim * nbytes_of(p->dtype);
}

/* The arguments must be valid. Returns 0, or -1 when out of memory, with nothing changed. */
static int layer_begin(const struct layer_arguments *args) {
    struct layer_call *c = calloc(1, sizeof *c);
    if (!c) return -1;
    c->args = *args;
    int64_t longest = 1, seen = 0;
    for (int64_t row = 0; row < args->rows; row++) {
        const int64_t tokens = kv_seen(args->positions[row], args->program.window);
        longest = tokens > longest ? tokens : longest;
        seen += tokens;
    }
    int failed = layer_alloc(c);
    c->threads = team_size(layer_bytes(args, seen), args->threads);
    for (int i = 0; i < c->threads && !failed; i++) failed = layer_member_alloc(&c->members[i], c, longest);
    if (failed) {
        layer_free(c);
        return -1;
    }
    c->blocks = cut_rows(args->rows, args->lanes, args->positions,
                         args->program.heads / args->program.kv_heads, c->block);
    team_start(&c->team, c->threads - 1, layer_work, c->members + 1, sizeof *c->members);
    layer_work(c->members);
    return 0;
}

#endif
