/* Attention of rows over their sequences' tokens in the KV cache. First the rows' own keys and values are
 * stored in the cache; queries and keys get their rotary embedding.
 *
 * An item of the team's loop is the heads of one row that share keys. One thread computes it, so the result
 * does not depend on the number of threads or on the other rows. */

#ifndef FAASMOE_ATTENTION_H
#define FAASMOE_ATTENTION_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "dense_isa.h"
#include "layout.h"
#include "team.h"

/* [lanes][layers][keys, values][heads][tokens][head_dim] */
struct kv_cache {
    enum dtype dtype;
    int64_t lanes, layers, heads, tokens, head_dim;
    char *memory;
};

struct attention_arguments {
    const struct dense_isa *isa;
    struct kv_cache cache;
    int64_t layer, rows, heads;
    const void *query;         /* [rows][heads][head_dim] */
    const void *key;           /* [rows][cache.heads][head_dim] */
    const char *value;         /* as key */
    const void *cosine, *sine; /* [rows][head_dim], of the angles of the rows' positions */
    const int64_t *lanes;      /* [rows] */
    const int64_t *positions;  /* [rows], in the row's sequence */
    int64_t count;
    const int64_t *attending; /* [count], the rows that attend */
    int64_t window;           /* the most tokens that a row sees, itself among them */
    float scaling;
    void *out; /* [count][heads][head_dim] */
    int threads;
};

struct attention_member {
    struct attention *attention;
    float *query, *out; /* [heads that share keys][head_dim] */
    float *scores;      /* [ATTEND_QUERIES][longest] */
    float *part;        /* [PART_TOKENS][head_dim] */
};

struct attention {
    struct attention_arguments args;
    struct team team;
    struct loop done;
    struct attention_member members[TEAM_MAX];
};

enum { KEYS, VALUES };

/* The address of a token's keys or values of one head. */
static char *kv_place(const struct kv_cache *c, int64_t lane, int64_t layer, int part, int64_t head,
                      int64_t token) {
    const int64_t index = ((((lane * c->layers + layer) * 2 + part) * c->heads + head) * c->tokens + token);
    return c->memory + index * c->head_dim * nbytes_of(c->dtype);
}

/* Stores a token's keys [heads][head_dim] and its values, which have the cache's dtype. */
static void kv_put(const struct kv_cache *c, int64_t lane, int64_t layer, int64_t token, const float *keys,
                   const char *values) {
    const int64_t nbytes = c->head_dim * nbytes_of(c->dtype);
    for (int64_t h = 0; h < c->heads; h++) {
        write_values(kv_place(c, lane, layer, KEYS, h, token), c->dtype, 0, keys + h * c->head_dim,
                     c->head_dim);
        memcpy(kv_place(c, lane, layer, VALUES, h, token), values + h * nbytes, (size_t)nbytes);
    }
}

/* The number of tokens that a row sees. */
static int64_t kv_seen(int64_t position, int64_t window) {
    return position + 1 < window ? position + 1 : window;
}

/* Stores the rows' rotated keys and their values in the cache. `rotated` is scratch for one row's keys. */
static void kv_store(const struct attention_arguments *a, float *rotated) {
    const struct kv_cache *c = &a->cache;
    const int64_t row_values = c->heads * c->head_dim;
    const struct rotation whole = {c->head_dim, c->head_dim, 0};
    for (int64_t row = 0; row < a->rows; row++) {
        a->isa->rotate(c->dtype, &whole, c->heads, a->key, row * row_values, a->cosine, a->sine,
                       row * c->head_dim, rotated);
        kv_put(c, a->lanes[row], a->layer, a->positions[row], rotated,
               a->value + row * row_values * nbytes_of(c->dtype));
    }
}

static void attention_item(void *member, int64_t item) {
    struct attention_member *m = member;
    const struct attention_arguments *a = &m->attention->args;
    const struct kv_cache *c = &a->cache;
    const int64_t number = item / c->heads, head = item % c->heads, row = a->attending[number];
    const int64_t shared = a->heads / c->heads, values = shared * c->head_dim;
    const int64_t tokens = kv_seen(a->positions[row], a->window), first = a->positions[row] + 1 - tokens;
    const int64_t start = (row * a->heads + head * shared) * c->head_dim;
    const struct rotation whole = {c->head_dim, c->head_dim, 0};
    a->isa->rotate(c->dtype, &whole, shared, a->query, start, a->cosine, a->sine, row * c->head_dim,
                   m->query);
    for (int64_t i = 0; i < values; i++) m->query[i] *= a->scaling;
    struct attend work = {
        .head_dim = c->head_dim,
        .keys = kv_place(c, a->lanes[row], a->layer, KEYS, head, first),
        .values = kv_place(c, a->lanes[row], a->layer, VALUES, head, first),
        .tokens = tokens,
        .scores = m->scores,
        .part = m->part,
        .out = m->out,
    };
    for (int64_t h = 0; h < shared; h++) {
        attend_to(&work, m->query + h * c->head_dim, 0, tokens);
        if (work.queries < ATTEND_QUERIES && h + 1 < shared) continue;
        a->isa->attend(c->dtype, &work);
        work.out += work.queries * c->head_dim;
        work.queries = 0;
    }
    write_values(a->out, c->dtype, (number * a->heads + head * shared) * c->head_dim, m->out, values);
}

static void attention_free(struct attention *t) {
    for (int i = 0; i < TEAM_MAX; i++) {
        free(t->members[i].query);
        free(t->members[i].out);
        free(t->members[i].scores);
        free(t->members[i].part);
    }
    free(t);
}

static void attention_work(void *member) {
    struct attention *t = ((struct attention_member *)member)->attention;
    team_for(&t->team, &t->done, t->args.count * t->args.cache.heads, attention_item, member);
    if (team_leave(&t->team)) attention_free(t);
}

static int attention_member_alloc(struct attention_member *m, struct attention *t, int64_t longest) {
    const int64_t shared = t->args.heads / t->args.cache.heads, head_dim = t->args.cache.head_dim;
    m->attention = t;
    m->query = malloc((size_t)(shared * head_dim) * sizeof *m->query);
    m->out = malloc((size_t)(shared * head_dim) * sizeof *m->out);
    m->scores = malloc((size_t)(ATTEND_QUERIES * longest) * sizeof *m->scores);
    m->part = malloc((size_t)(PART_TOKENS * head_dim) * sizeof *m->part);
    return m->query && m->out && m->scores && m->part ? 0 : -1;
}

/* The arguments must be valid. Returns 0, or -1 when out of memory, with the cache unchanged. */
static int attention(const struct attention_arguments *args) {
    const struct kv_cache *c = &args->cache;
    struct attention *t = calloc(1, sizeof *t);
    float *rotated = malloc((size_t)(c->heads * c->head_dim) * sizeof *rotated);
    if (!t || !rotated) {
        free(t);
        free(rotated);
        return -1;
    }
    t->args = *args;
    int64_t longest = 1, seen = 0;
    for (int64_t i = 0; i < args->count; i++) {
        const int64_t tokens = kv_seen(args->positions[args->attending[i]], args->window);
        longest = tokens > longest ? tokens : longest;
        seen += tokens;
    }
    const int threads = team_size(2 * seen * c->heads * c->head_dim * nbytes_of(c->dtype), args->threads);
    int failed = 0;
    for (int i = 0; i < threads && !failed; i++) failed = attention_member_alloc(&t->members[i], t, longest);
    if (!failed) kv_store(args, rotated);
    free(rotated);
    if (failed) {
        attention_free(t);
        return -1;
    }
    team_start(&t->team, threads - 1, attention_work, t->members + 1, sizeof *t->members);
    attention_work(t->members);
    return 0;
}

#endif
