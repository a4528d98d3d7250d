/* The Python function `delta_rule`: checks of arguments. */

#ifndef FAASMOE_DELTA_RULE_CALL_H
#define FAASMOE_DELTA_RULE_CALL_H

#include "arguments.h"
#include "attention_call.h"
#include "delta_rule_rows.h"

/* The buffer arguments of a call, in their order. */
enum { D_QUERY, D_KEY, D_VALUE, D_DECAY, D_BETA, D_SOURCES, D_TARGETS, D_OUT, D_COUNT };

static int delta_rows_check_sizes(const struct delta_rows_arguments *a) {
    if (check_size(a->rows, 0) || check_size(a->heads, 1) || check_size(a->key_heads, 1) ||
        check_size(a->key_size, 1) || check_size(a->value_size, 1))
        return -1;
    const int shared = a->heads % a->key_heads == 0;
    if (shared && (a->decay_size == 1 || a->decay_size == a->key_size)) return 0;
    PyErr_SetString(PyExc_ValueError, "heads cannot share these keys, or have no such decay");
    return -1;
}

/* Places may lie apart, but what is in one lies side by side. */
static int delta_rows_check_states(struct delta_rows_arguments *a, const Py_buffer *states) {
    const int64_t size = sizeof(float), row = a->value_size * size, head = times(a->key_size, row);
    const int64_t place = times(a->heads, head), stride = states->ndim == 4 ? states->strides[0] : 0;
    a->stride = stride / size;
    if (states->ndim == 4 && states->itemsize == size && states->shape[1] == a->heads &&
        states->shape[2] == a->key_size && states->shape[3] == a->value_size && states->strides[3] == size &&
        states->strides[2] == row && states->strides[1] == head && stride >= place && stride % size == 0 &&
        (uintptr_t)states->buf % (uintptr_t)size == 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "states are not aligned, or have other sizes or gaps");
    return -1;
}

static int delta_rows_check_buffers(const struct delta_rows_arguments *a, const Py_buffer *b) {
    const int64_t size = sizeof(float), heads = times(a->rows, a->heads * size);
    const int64_t keys = times(times(a->rows, a->key_heads * size), a->key_size);
    return check_buffer("query", &b[D_QUERY], keys, size) || check_buffer("key", &b[D_KEY], keys, size) ||
           check_buffer("value", &b[D_VALUE], times(heads, a->value_size), size) ||
           check_buffer("decay", &b[D_DECAY], times(heads, a->decay_size), size) ||
           check_buffer("beta", &b[D_BETA], heads, size) ||
           check_buffer("sources", &b[D_SOURCES], a->rows * 8, 8) ||
           check_buffer("targets", &b[D_TARGETS], a->rows * 8, 8) ||
           check_buffer("out", &b[D_OUT], times(heads, a->value_size), size);
}

static int delta_rows_run(struct delta_rows_arguments *a, const Py_buffer *states, const Py_buffer *buffers) {
    if (delta_rows_check_sizes(a) || delta_rows_check_states(a, states) ||
        delta_rows_check_buffers(a, buffers) ||
        check_indices("sources", a->sources, a->rows, states->shape[0]) ||
        check_indices("targets", a->targets, a->rows, states->shape[0]))
        return -1;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = delta_rows(a);
    Py_END_ALLOW_THREADS
    if (result) PyErr_NoMemory();
    return result;
}

PyDoc_STRVAR(
    delta_rule_doc,
    "delta_rule(isa, rows, heads, key_heads, key_size, value_size, decay_size, threads,\n"
    "    states, query, key, value, decay, beta, sources, targets, out)\n\n"
    "Computes a step of the gated delta rule for each row: reads the states in `sources`, writes\n"
    "those in `targets`, and out. Buffers must be of float32 (of int64 for places), aligned, and all\n"
    "but `states` contiguous. Nothing else may use them during the call, which releases the\n"
    "interpreter lock.\n"
    "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *delta_rule_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa;
    long long rows, heads, key_heads, key_size, value_size, decay_size;
    int threads;
    PyObject *states_object;
    Py_buffer states = {0}, b[D_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "sLLLLLLiOy*y*y*y*y*y*y*w*:delta_rule", &isa, &rows, &heads, &key_heads,
                          &key_size, &value_size, &decay_size, &threads, &states_object, &b[0], &b[1], &b[2],
                          &b[3], &b[4], &b[5], &b[6], &b[7]))
        return NULL;
    const struct isa *parsed;
    int failed = PyObject_GetBuffer(states_object, &states, PyBUF_STRIDES | PyBUF_WRITABLE) ||
                 parse_isa(isa, &parsed) || check_threads(threads);
    if (!failed) {
        struct delta_rows_arguments a = {
            .isa = dense_isa(parsed),
            .states = states.buf,
            .rows = rows,
            .heads = heads,
            .key_heads = key_heads,
            .key_size = key_size,
            .value_size = value_size,
            .decay_size = decay_size,
            .query = b[D_QUERY].buf,
            .key = b[D_KEY].buf,
            .value = b[D_VALUE].buf,
            .decay = b[D_DECAY].buf,
            .beta = b[D_BETA].buf,
            .sources = b[D_SOURCES].buf,
            .targets = b[D_TARGETS].buf,
            .out = b[D_OUT].buf,
            .threads = threads,
        };
        failed = delta_rows_run(&a, &states, b);
    }
    PyBuffer_Release(&states);
    release_buffers(b, D_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
