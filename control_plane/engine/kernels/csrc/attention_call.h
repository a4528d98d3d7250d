/* The Python function `attention`: checks of arguments. */

#ifndef FAASMOE_ATTENTION_CALL_H
#define FAASMOE_ATTENTION_CALL_H

#include "arguments.h"
#include "attention.h"

/* The buffer arguments of a call, in their order. */
enum {
    A_CACHE,
    A_QUERY,
    A_KEY,
    A_VALUE,
    A_COSINE,
    A_SINE,
    A_LANES,
    A_POSITIONS,
    A_ATTENDING,
    A_OUT,
    A_COUNT
};

/* a * b, or more than the size of any buffer if that overflows. */
static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static int64_t kv_nbytes(const struct kv_cache *c) {
    const int64_t token = 2 * c->layers * c->head_dim * nbytes_of(c->dtype);
    return times(c->lanes, times(times(c->heads, c->tokens), token));
}

static int attention_check_buffers(const struct attention_arguments *a, const Py_buffer *b) {
    const struct kv_cache *c = &a->cache;
    const int64_t size = nbytes_of(c->dtype), row = c->head_dim * size;
    const int64_t own = times(a->rows, times(c->heads, row));
    return check_buffer("cache", &b[A_CACHE], kv_nbytes(c), size) ||
           check_buffer("query", &b[A_QUERY], times(a->rows, times(a->heads, row)), size) ||
           check_buffer("key", &b[A_KEY], own, size) || check_buffer("value", &b[A_VALUE], own, size) ||
           check_buffer("cosine", &b[A_COSINE], a->rows * row, size) ||
           check_buffer("sine", &b[A_SINE], a->rows * row, size) ||
           check_buffer("lanes", &b[A_LANES], a->rows * 8, 8) ||
           check_buffer("positions", &b[A_POSITIONS], a->rows * 8, 8) ||
           check_buffer("attending", &b[A_ATTENDING], a->count * 8, 8) ||
           check_buffer("out", &b[A_OUT], times(a->count, times(a->heads, row)), size);
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

static int attention_run(struct attention_arguments *a, const Py_buffer *buffers) {
    if (attention_check_buffers(a, buffers) || check_indices("lanes", a->lanes, a->rows, a->cache.lanes) ||
        check_indices("positions", a->positions, a->rows, a->cache.tokens) ||
        check_indices("attending", a->attending, a->count, a->rows))
        return -1;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = attention(a);
    Py_END_ALLOW_THREADS
    if (result) PyErr_NoMemory();
    return result;
}

static int kv_check_sizes(const struct kv_cache *c) {
    return check_size(c->lanes, 1) || check_size(c->layers, 1) || check_size(c->heads, 1) ||
           check_size(c->tokens, 1) || check_size(c->head_dim, 1);
}

static int attention_check_sizes(const struct attention_arguments *a) {
    const struct kv_cache *c = &a->cache;
    if (check_size(a->rows, 0) || check_size(a->heads, 1) || kv_check_sizes(c) || check_size(a->window, 1))
        return -1;
    if (c->head_dim % 2) {
        PyErr_SetString(PyExc_ValueError, "a head has two halves, and an even size");
        return -1;
    }
    if (a->heads % c->heads == 0 && a->layer >= 0 && a->layer < c->layers) return 0;
    PyErr_SetString(PyExc_ValueError, "the cache has no such layer, or no heads that these could share");
    return -1;
}

PyDoc_STRVAR(
    attention_doc,
    "attention(isa, dtype, lanes, layers, kv_heads, tokens, head_dim, layer, rows, heads, window,\n"
    "    scaling, threads, cache, query, key, value, cosine, sine, lanes, positions, attending, out)\n\n"
    "Stores the rows' keys and values in the cache, and writes the attention of the rows in\n"
    "`attending` to out. Buffers must be contiguous and aligned, and nothing else may use them\n"
    "during the call, which releases the interpreter lock.\n"
    "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *attention_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa, *dtype;
    long long lanes, layers, kv_heads, tokens, head_dim, layer, rows, heads, window;
    float scaling;
    int threads;
    Py_buffer b[A_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "ssLLLLLLLLLfiw*y*y*y*y*y*y*y*y*w*:attention", &isa, &dtype, &lanes, &layers,
                          &kv_heads, &tokens, &head_dim, &layer, &rows, &heads, &window, &scaling, &threads,
                          &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &b[6], &b[7], &b[8], &b[9]))
        return NULL;
    struct attention_arguments a = {
        .cache = {.lanes = lanes,
                  .layers = layers,
                  .heads = kv_heads,
                  .tokens = tokens,
                  .head_dim = head_dim,
                  .memory = b[A_CACHE].buf},
        .layer = layer,
        .rows = rows,
        .heads = heads,
        .query = b[A_QUERY].buf,
        .key = b[A_KEY].buf,
        .value = b[A_VALUE].buf,
        .cosine = b[A_COSINE].buf,
        .sine = b[A_SINE].buf,
        .lanes = b[A_LANES].buf,
        .positions = b[A_POSITIONS].buf,
        .count = b[A_ATTENDING].len / 8,
        .attending = b[A_ATTENDING].buf,
        .window = window,
        .scaling = scaling,
        .out = b[A_OUT].buf,
        .threads = threads,
    };
    const struct isa *parsed;
    int failed = parse_isa(isa, &parsed) || parse_dtype(dtype, &a.cache.dtype) ||
                 check_dtypes(a.cache.dtype, a.cache.dtype, a.cache.dtype) || attention_check_sizes(&a) ||
                 check_threads(threads);
    if (!failed) {
        a.isa = dense_isa(parsed);
        failed = attention_run(&a, b);
    }
    release_buffers(b, A_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
