/* The keys and values of all layers in one array, of layers that are alike. */

#ifndef FAASMOE_KV_CACHE_H
#define FAASMOE_KV_CACHE_H

#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "layout.h"

/* [lanes][layers][keys, values][heads][tokens][head_dim] */
struct kv_cache {
    enum dtype dtype;
    int64_t lanes, layers, heads, tokens, head_dim;
    char *memory;
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

#endif
