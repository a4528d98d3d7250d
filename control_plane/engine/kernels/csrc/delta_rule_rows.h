/* The gated delta rule for rows of several sequences, each with a state of its own.
 *
 * An item of the team's loop is one head of one row. One thread computes it, so the result does not depend on
 * the number of threads or on the other rows. */

#ifndef FAASMOE_DELTA_RULE_ROWS_H
#define FAASMOE_DELTA_RULE_ROWS_H

#include <stdint.h>
#include <stdlib.h>

#include "dense_isa.h"
#include "team.h"

struct delta_rows_arguments {
    const struct dense_isa *isa;
    float *states;  /* [places][heads][key_size][value_size] */
    int64_t stride; /* of places, in floats */
    int64_t rows, heads, key_heads, key_size, value_size, decay_size;
    const float *query, *key;         /* [rows][key_heads][key_size] */
    const float *value;               /* [rows][heads][value_size] */
    const float *decay;               /* [rows][heads][decay_size] */
    const float *beta;                /* [rows][heads] */
    const int64_t *sources, *targets; /* [rows]: the places of states before and after the step */
    float *out;                       /* [rows][heads][value_size] */
    int threads;
};

struct delta_rows_member {
    struct delta_rows *rows;
    float *scratch;
};

struct delta_rows {
    struct delta_rows_arguments args;
    struct team team;
    struct loop done;
    struct delta_rows_member members[TEAM_MAX];
};

static void delta_rows_item(void *member, int64_t item) {
    const struct delta_rows_member *m = member;
    const struct delta_rows_arguments *a = &m->rows->args;
    const int64_t row = item / a->heads, head = item % a->heads, size = a->key_size;
    const int64_t key = (row * a->key_heads + head / (a->heads / a->key_heads)) * size;
    const int64_t start = head * size * a->value_size;
    const struct delta_step step = {
        .key_size = size,
        .value_size = a->value_size,
        .state = a->states + a->sources[row] * a->stride + start,
        .next = a->states + a->targets[row] * a->stride + start,
        .query = a->query + key,
        .key = a->key + key,
        .value = a->value + item * a->value_size,
        .decay = a->decay + item * a->decay_size,
        .decay_size = a->decay_size,
        .beta = a->beta[item],
        .out = a->out + item * a->value_size,
        .factors = m->scratch,
        .keys = m->scratch + size,
        .queries = m->scratch + 2 * size,
        .delta = m->scratch + 3 * size,
    };
    a->isa->delta_rule(&step);
}

static void delta_rows_free(struct delta_rows *t) {
    for (int i = 0; i < TEAM_MAX; i++) free(t->members[i].scratch);
    free(t);
}

static void delta_rows_work(void *member) {
    struct delta_rows *t = ((struct delta_rows_member *)member)->rows;
    team_for(&t->team, &t->done, t->args.rows * t->args.heads, delta_rows_item, member);
    if (team_leave(&t->team)) delta_rows_free(t);
}

/* The arguments must be valid. Returns 0, or -1 when out of memory, with the states unchanged. */
static int delta_rows(const struct delta_rows_arguments *args) {
    struct delta_rows *t = calloc(1, sizeof *t);
    if (!t) return -1;
    t->args = *args;
    const int64_t state = args->heads * args->key_size * args->value_size;
    const int threads = team_size(2 * args->rows * state * (int64_t)sizeof(float), args->threads);
    for (int i = 0; i < threads; i++) {
        const size_t floats = (size_t)(3 * args->key_size + args->value_size);
        t->members[i] = (struct delta_rows_member){t, malloc(floats * sizeof(float))};
        if (t->members[i].scratch) continue;
        delta_rows_free(t);
        return -1;
    }
    team_start(&t->team, threads - 1, delta_rows_work, t->members + 1, sizeof *t->members);
    delta_rows_work(t->members);
    return 0;
}

#endif
