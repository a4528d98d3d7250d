/* Attention of rows over their sequences' tokens in the KV cache. First the rows' own keys and values are
 * stored in the cache.
 *
 * An item of the team's loop is some heads that share keys, of a block of rows. One thread computes it, and a
 * row's result does not depend on those beside it (attend.h), so it depends neither on the number of threads
 * nor on the other rows. */

#ifndef FAASMOE_ATTENTION_H
#define FAASMOE_ATTENTION_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "dense_isa.h"
#include "layout.h"
#include "row_blocks.h"
#include "team.h"

/* Keys or values of a layer [lanes][heads][tokens][size], with strides in bytes. */
struct kv_states {
    char *memory;
    int64_t lanes, heads, tokens, size;
    int64_t lane_stride, head_stride, token_stride;
};

struct attention_arguments {
    const struct dense_isa *isa;
    enum dtype dtype;
    struct kv_states keys, values; /* the keys of a head's tokens follow each other */
    int64_t rows, heads;
    const char *query;                /* [rows][heads][keys.size] */
    const char *key;                  /* [rows][keys.heads][keys.size] */
    const char *value;                /* [rows][keys.heads][values.size]; NULL: the values are in the keys */
    const float *sinks;               /* [heads], or NULL; see attend.h */
    const int64_t *lanes, *positions; /* [rows], in the row's sequence */
    int64_t window;                   /* the most tokens that a row sees, itself among them */
    float scaling, softcap;           /* see attend.h */
    char *out;                        /* [rows][heads][values.size] */
    int threads;
};

struct attention_member {
    struct attention *attention;
    float *query;  /* [ATTEND_QUERIES][keys.size] */
    float *out;    /* [ATTEND_QUERIES][values.size] */
    float *scores; /* [ATTEND_QUERIES][tokens that a block sees] */
    float *part;   /* [PART_TOKENS][the larger size] */
};

struct attention {
    struct attention_arguments args;
    struct row_block *block; /* [blocks] */
    int64_t blocks;
    struct team team;
    struct loop done;
    struct attention_member members[TEAM_MAX];
};

static char *kv_row(const struct kv_states *s, int64_t lane, int64_t head, int64_t token) {
    return s->memory + lane * s->lane_stride + head * s->head_stride + token * s->token_stride;
}

/* Stores the states [rows][heads][size] of all rows. */
static void kv_store(const struct attention_arguments *a, const struct kv_states *s, const char *states) {
    const int64_t nbytes = s->size * nbytes_of(a->dtype);
    for (int64_t row = 0; row < a->rows; row++)
        for (int64_t h = 0; h < s->heads; h++)
            memcpy(kv_row(s, a->lanes[row], h, a->positions[row]), states + (row * s->heads + h) * nbytes,
                   (size_t)nbytes);
}

/* Heads [head, head + heads) of the rows of a block, which share the keys of head `from`. */
static void attention_heads(struct attention_member *m, const struct row_block *block, int64_t from,
                            int64_t head, int64_t heads) {
    const struct attention_arguments *a = &m->attention->args;
    const int64_t lane = a->lanes[block->first], position = a->positions[block->first];
    const int64_t first = position + 1 - kv_seen(position, a->window);
    const int64_t size = a->keys.size, value_size = a->values.size;
    float sinks[ATTEND_QUERIES];
    struct attend work = {
        .head_dim = size,
        .keys = kv_row(&a->keys, lane, from, first),
        .values = kv_row(&a->values, lane, from, first),
        .value_size = value_size,
        .value_stride = a->values.token_stride / nbytes_of(a->dtype),
        .tokens = position + block->rows - first,
        .softcap = a->softcap,
        .sinks = a->sinks ? sinks : NULL,
        .scores = m->scores,
        .part = m->part,
        .out = m->out,
    };
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t seen = kv_seen(position + r, a->window), begin = position + r + 1 - seen - first;
        const int64_t row = (block->first + r) * a->heads + head;
        for (int64_t h = 0; h < heads; h++) {
            float *query = m->query + work.queries * size;
            for (int64_t i = 0; i < size; i++)
                query[i] = stored_value(a->dtype, a->query, (row + h) * size + i) * a->scaling;
            if (a->sinks) sinks[work.queries] = a->sinks[head + h];
            attend_to(&work, query, begin, begin + seen);
        }
    }
    a->isa->attend(a->dtype, &work);
    for (int64_t r = 0; r < block->rows; r++)
        write_values(a->out, a->dtype, ((block->first + r) * a->heads + head) * value_size,
                     m->out + r * heads * value_size, heads * value_size);
}

/* Groups of heads that share keys and attend together. */
static int64_t attention_groups(const struct attention_arguments *a) {
    const int64_t shared = a->heads / a->keys.heads;
    return (shared + ATTEND_QUERIES - 1) / ATTEND_QUERIES;
}

/* Items number the groups of heads of all blocks. */
static void attention_item(void *member, int64_t item) {
    struct attention_member *m = member;
    const struct attention_arguments *a = &m->attention->args;
    const int64_t shared = a->heads / a->keys.heads, groups = attention_groups(a);
    const int64_t from = item / groups % a->keys.heads, start = item % groups * ATTEND_QUERIES;
    attention_heads(m, &m->attention->block[item / groups / a->keys.heads], from, from * shared + start,
                    shared - start < ATTEND_QUERIES ? shared - start : ATTEND_QUERIES);
}

static void attention_free(struct attention *t) {
    for (int i = 0; i < TEAM_MAX; i++) {
        free(t->members[i].query);
        free(t->members[i].out);
        free(t->members[i].scores);
        free(t->members[i].part);
    }
    free(t->block);
    free(t);
}

static void attention_work(void *member) {
    struct attention *t = ((struct attention_member *)member)->attention;
    const int64_t items = t->blocks * t->args.keys.heads * attention_groups(&t->args);
    team_for(&t->team, &t->done, items, attention_item, member);
    if (team_leave(&t->team)) attention_free(t);
}

static int attention_member_alloc(struct attention_member *m, struct attention *t, int64_t longest) {
    const int64_t size = t->args.keys.size, value_size = t->args.values.size;
    m->attention = t;
    m->query = malloc((size_t)(ATTEND_QUERIES * size) * sizeof *m->query);
    m->out = malloc((size_t)(ATTEND_QUERIES * value_size) * sizeof *m->out);
    m->scores = malloc((size_t)(ATTEND_QUERIES * (longest + ATTEND_QUERIES)) * sizeof *m->scores);
    m->part = malloc((size_t)(PART_TOKENS * (size > value_size ? size : value_size)) * sizeof *m->part);
    return m->query && m->out && m->scores && m->part ? 0 : -1;
}

/* The arguments must be valid. Returns 0, or -1 when out of memory, with the cache unchanged. */
static int attention(const struct attention_arguments *a) {
    struct attention *t = calloc(1, sizeof *t);
    if (!t) return -1;
    t->args = *a;
    t->block = malloc((size_t)(a->rows + 1) * sizeof *t->block);
    int failed = t->block ? 0 : -1;
    int64_t longest = 1, seen = 0;
    for (int64_t row = 0; row < a->rows; row++) {
        const int64_t tokens = kv_seen(a->positions[row], a->window);
        longest = tokens > longest ? tokens : longest;
        seen += tokens;
    }
    const int64_t read = seen * a->keys.heads * (a->keys.size + a->values.size) * nbytes_of(a->dtype);
    const int threads = team_size(read, a->threads);
    for (int i = 0; i < threads && !failed; i++) failed = attention_member_alloc(&t->members[i], t, longest);
    if (failed) {
        attention_free(t);
        return -1;
    }
    kv_store(a, &a->keys, a->key);
    if (a->value) kv_store(a, &a->values, a->value);
    t->blocks = cut_rows(a->rows, a->lanes, a->positions, a->heads / a->keys.heads, t->block);
    team_start(&t->team, threads - 1, attention_work, t->members + 1, sizeof *t->members);
    attention_work(t->members);
    return 0;
}

#endif
