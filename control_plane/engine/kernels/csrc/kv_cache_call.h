/* Checks of a KV cache from Python, and of places in it. */

#ifndef FAASMOE_KV_CACHE_CALL_H
#define FAASMOE_KV_CACHE_CALL_H

#include "arguments.h"
#include "kv_cache.h"

/* a * b, or more than the size of any buffer if that overflows. */
static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static int64_t kv_nbytes(const struct kv_cache *c) {
    const int64_t token = 2 * c->layers * c->head_dim * nbytes_of(c->dtype);
    return times(c->lanes, times(times(c->heads, c->tokens), token));
}

static int kv_check_sizes(const struct kv_cache *c) {
    return check_size(c->lanes, 1) || check_size(c->layers, 1) || check_size(c->heads, 1) ||
           check_size(c->tokens, 1) || check_size(c->head_dim, 1);
}

static int check_indices(const char *name, const int64_t *index, int64_t count, int64_t end) {
    for (int64_t i = 0; i < count; i++)
        if (index[i] < 0 || index[i] >= end) {
            PyErr_Format(PyExc_ValueError, "%s: %lld is not a number below %lld", name, (long long)index[i],
                         (long long)end);
            return -1;
        }
    return 0;
}

#endif
