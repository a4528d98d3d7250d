/* Arguments from Python that several functions share. Functions that return -1 have set an exception. */

#ifndef FAASMOE_ARGUMENTS_H
#define FAASMOE_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "isa/isa.h"
#include "layout.h"
#include "team.h"

#define LARGEST_SIZE (1 << 24) /* keeps products of two sizes far from overflow */

static int parse_dtype(const char *name, enum dtype *dtype) {
    static const char *const names[DTYPES] = {
        [F32] = "f32",         [BF16] = "bf16",   [INT8] = "int8",        [INT4] = "int4",
        [INT4_NL] = "int4_nl", [MXFP4] = "mxfp4", [INT4_MIN] = "int4_min"};
    for (int i = 0; i < DTYPES; i++)
        if (strcmp(name, names[i]) == 0) {
            *dtype = (enum dtype)i;
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "unknown dtype %s", name);
    return -1;
}

static inline int parse_function(const char *name, enum activation_function *function) {
    static const char *const names[ACTIVATION_FUNCTIONS] = {
        [SILU] = "silu", [GELU_TANH] = "gelu_tanh", [GELU] = "gelu", [RELU] = "relu", [RELU2] = "relu2"};
    for (int i = 0; i < ACTIVATION_FUNCTIONS; i++)
        if (strcmp(name, names[i]) == 0) {
            *function = (enum activation_function)i;
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "unknown activation %s", name);
    return -1;
}

static int parse_isa(const char *name, const struct isa **isa) {
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(name, ISAS[i].name) == 0 && ISAS[i].runs_here()) {
            *isa = &ISAS[i];
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "this machine has no instruction set %s", name);
    return -1;
}

static int check_dtypes(enum dtype weights, enum dtype hidden, enum dtype out) {
    if (!is_quantised(hidden) && (is_quantised(weights) || weights == hidden) &&
        (out == F32 || out == hidden))
        return 0;
    PyErr_SetString(PyExc_ValueError,
                    "activations must have the weights' dtype, or be f32 or bf16 for quantised weights; "
                    "the output has theirs, or f32");
    return -1;
}

static int check_size(int64_t size, int64_t least) {
    if (size >= least && size <= LARGEST_SIZE) return 0;
    PyErr_SetString(PyExc_ValueError, "a size is out of range");
    return -1;
}

/* Takes what ExpertShape.as_arguments() returns. */
static inline int parse_shape(PyObject *argument, struct shape *shape) {
    const char *gate_up_name, *down_name, *function;
    long long hidden_size, intermediate_size;
    int has_bias;
    enum dtype gate_up, down;
    struct activation a;
    if (!PyTuple_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "the shape of an expert is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(argument, "ssLLpspfff", &gate_up_name, &down_name, &hidden_size, &intermediate_size,
                          &has_bias, &function, &a.gated, &a.limit, &a.alpha, &a.up_offset) ||
        parse_dtype(gate_up_name, &gate_up) || parse_dtype(down_name, &down) ||
        parse_function(function, &a.function) || check_size(hidden_size, 1) ||
        check_size(intermediate_size, 1))
        return -1;
    *shape = shape_of(gate_up, down, hidden_size, intermediate_size, a, has_bias);
    return 0;
}

static int check_threads(int threads) {
    if (threads >= 1 && threads <= TEAM_MAX) return 0;
    PyErr_Format(PyExc_ValueError, "threads must be from 1 to %d, not %d", TEAM_MAX, threads);
    return -1;
}

/* A buffer of `nbytes` bytes, whose values take `size` bytes each. */
static int check_buffer(const char *name, const Py_buffer *buffer, int64_t nbytes, int64_t size) {
    if (buffer->len != nbytes) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, not %lld", name, buffer->len, (long long)nbytes);
        return -1;
    }
    if (nbytes > 0 && (uintptr_t)buffer->buf % (uintptr_t)size != 0) {
        PyErr_Format(PyExc_ValueError, "%s is not aligned to %lld bytes", name, (long long)size);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(isas_doc, "isas() -> tuple of the instruction sets that this machine runs, best first");

static inline PyObject *isas_call(PyObject *module, PyObject *args) {
    (void)module, (void)args;
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names && i < ISA_COUNT; i++) {
        if (!ISAS[i].runs_here()) continue;
        PyObject *name = PyUnicode_FromString(ISAS[i].name);
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    PyObject *result = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    return result;
}

static void release_buffers(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++) PyBuffer_Release(&buffers[i]);
}

#endif
