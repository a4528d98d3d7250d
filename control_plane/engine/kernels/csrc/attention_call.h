/* The Python function `attention`: checks of arguments. */

#ifndef FAASMOE_ATTENTION_CALL_H
#define FAASMOE_ATTENTION_CALL_H

#include "arguments.h"
#include "attention.h"
#include "kv_cache_call.h"

/* The buffer arguments of a call, in their order. */
enum { A_KEYS, A_VALUES, A_QUERY, A_KEY, A_VALUE, A_SINKS, A_LANES, A_POSITIONS, A_OUT, A_COUNT };

/* Keys or values in a buffer [lanes][heads][tokens][size], of which the values of each row follow each other.
 */
static int parse_states(const char *name, const Py_buffer *b, enum dtype dtype, struct kv_states *s) {
    const int64_t nbytes = nbytes_of(dtype);
    if (b->ndim != 4 || b->itemsize != nbytes || b->strides[3] != nbytes) {
        PyErr_Format(PyExc_ValueError, "%s must have four dimensions, and rows of their dtype", name);
        return -1;
    }
    for (int i = 0; i < 4; i++)
        if (check_size(b->shape[i], 1)) return -1;
    for (int i = 0; i < 3; i++)
        if ((uintptr_t)b->buf % (uintptr_t)nbytes || b->strides[i] % nbytes) {
            PyErr_Format(PyExc_ValueError, "%s are not aligned to %lld bytes", name, (long long)nbytes);
            return -1;
        }
    *s = (struct kv_states){b->buf,      b->shape[0],   b->shape[1],   b->shape[2],
                            b->shape[3], b->strides[0], b->strides[1], b->strides[2]};
    return 0;
}

static int attention_check_states(const struct attention_arguments *a) {
    const struct kv_states *keys = &a->keys, *values = &a->values;
    if (keys->lanes != values->lanes || keys->heads != values->heads || keys->tokens != values->tokens ||
        keys->token_stride != keys->size * nbytes_of(a->dtype) ||
        values->token_stride < values->size * nbytes_of(a->dtype) || a->heads % keys->heads) {
        PyErr_SetString(PyExc_ValueError, "keys, values and heads do not fit together");
        return -1;
    }
    return 0;
}

/* A buffer that may be missing: None. */
static int check_optional(const char *name, const Py_buffer *buffer, int64_t nbytes, int64_t size) {
    return buffer->buf ? check_buffer(name, buffer, nbytes, size) : 0;
}

static int attention_check_buffers(const struct attention_arguments *a, const Py_buffer *b) {
    const int64_t size = nbytes_of(a->dtype), rows = times(a->rows, size), own = times(rows, a->keys.heads);
    return check_buffer("query", &b[A_QUERY], times(times(rows, a->heads), a->keys.size), size) ||
           check_buffer("key", &b[A_KEY], times(own, a->keys.size), size) ||
           check_optional("value", &b[A_VALUE], times(own, a->values.size), size) ||
           check_optional("sinks", &b[A_SINKS], a->heads * 4, 4) ||
           check_buffer("lanes", &b[A_LANES], a->rows * 8, 8) ||
           check_buffer("positions", &b[A_POSITIONS], a->rows * 8, 8) ||
           check_buffer("out", &b[A_OUT], times(times(rows, a->heads), a->values.size), size);
}

static int attention_run(struct attention_arguments *a, const Py_buffer *buffers) {
    if (attention_check_states(a) || attention_check_buffers(a, buffers) ||
        check_indices("lanes", a->lanes, a->rows, a->keys.lanes) ||
        check_indices("positions", a->positions, a->rows, a->keys.tokens))
        return -1;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = attention(a);
    Py_END_ALLOW_THREADS
    if (result) PyErr_NoMemory();
    return result;
}

PyDoc_STRVAR(
    attention_doc,
    "attention(isa, dtype, rows, heads, window, scaling, softcap, threads, keys, values, query, key, value,\n"
    "    sinks, lanes, positions, out)\n\n"
    "Stores the rows' keys and values in keys and values [lanes][kv_heads][tokens][size], and writes the\n"
    "rows' attention to out. Without `value`, values are a part of the keys; a softcap of 0 is none, and\n"
    "sinks may be None. Other buffers must be contiguous, and all aligned; nothing else may use them during\n"
    "the call, which releases the interpreter lock.\n"
    "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *attention_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa, *dtype;
    long long rows, heads, window;
    PyObject *keys, *values;
    struct attention_arguments a = {0};
    Py_buffer b[A_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "ssLLLffiOOy*y*z*z*y*y*w*:attention", &isa, &dtype, &rows, &heads, &window,
                          &a.scaling, &a.softcap, &a.threads, &keys, &values, &b[A_QUERY], &b[A_KEY],
                          &b[A_VALUE], &b[A_SINKS], &b[A_LANES], &b[A_POSITIONS], &b[A_OUT]))
        return NULL;
    const struct isa *parsed;
    int failed = PyObject_GetBuffer(keys, &b[A_KEYS], PyBUF_STRIDED) ||
                 PyObject_GetBuffer(values, &b[A_VALUES], PyBUF_STRIDED) || parse_isa(isa, &parsed) ||
                 parse_dtype(dtype, &a.dtype) || check_dtypes(a.dtype, a.dtype, a.dtype) ||
                 check_size(rows, 0) || check_size(heads, 1) || check_size(window, 1) ||
                 check_threads(a.threads) || parse_states("keys", &b[A_KEYS], a.dtype, &a.keys) ||
                 parse_states("values", &b[A_VALUES], a.dtype, &a.values);
    if (!failed) {
        a.isa = dense_isa(parsed);
        a.rows = rows, a.heads = heads, a.window = window;
        a.query = b[A_QUERY].buf, a.key = b[A_KEY].buf, a.value = b[A_VALUE].buf, a.out = b[A_OUT].buf;
        a.sinks = b[A_SINKS].buf, a.lanes = b[A_LANES].buf, a.positions = b[A_POSITIONS].buf;
        failed = attention_run(&a, b);
    }
    release_buffers(b, A_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
