/* The Python function `short_convolution`: checks of arguments. */

#ifndef FAASMOE_SHORT_CONVOLUTION_CALL_H
#define FAASMOE_SHORT_CONVOLUTION_CALL_H

#include "arguments.h"
#include "attention_call.h"
#include "dense_isa.h"

/* The buffer arguments of a call, in their order. */
enum { C_X, C_WEIGHT, C_BIAS, C_SOURCES, C_TARGETS, C_OUT, C_COUNT };

/* A call's step of all rows, of which each has a step of its own. */
struct convolution_rows {
    struct convolution_step step; /* but for the places and the rows */
    enum dtype dtype;
    int64_t rows;
    char *states;
    int64_t stride; /* of places, in bytes */
};

/* Places may lie apart, but what is in one lies side by side. */
static int convolution_check_states(const struct convolution_rows *r, const Py_buffer *states) {
    const int64_t size = nbytes_of(r->dtype), channel = times(r->step.taps, size);
    if (states->ndim == 3 && states->itemsize == size && states->shape[1] == r->step.channels &&
        states->shape[2] == r->step.taps && states->strides[2] == size && states->strides[1] == channel &&
        states->strides[0] >= times(r->step.channels, channel) && states->strides[0] % size == 0 &&
        (uintptr_t)states->buf % (uintptr_t)size == 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "states are not aligned, or have other sizes or gaps");
    return -1;
}

static int convolution_check(const struct convolution_rows *r, const Py_buffer *states, const Py_buffer *b) {
    const int64_t size = nbytes_of(r->dtype), channels = times(r->step.channels, size);
    if (check_dtypes(r->dtype, r->dtype, r->dtype) || check_size(r->rows, 0) ||
        check_size(r->step.channels, 1) || check_size(r->step.taps, 1))
        return -1;
    if (r->step.taps > MOST_TAPS) {
        PyErr_Format(PyExc_ValueError, "a convolution has more than %d taps", MOST_TAPS);
        return -1;
    }
    return convolution_check_states(r, states) ||
           check_buffer("x", &b[C_X], times(r->rows, channels), size) ||
           check_buffer("weight", &b[C_WEIGHT], times(r->step.taps, channels), size) ||
           (b[C_BIAS].buf && check_buffer("bias", &b[C_BIAS], channels, size)) ||
           check_buffer("sources", &b[C_SOURCES], r->rows * 8, 8) ||
           check_buffer("targets", &b[C_TARGETS], r->rows * 8, 8) ||
           check_buffer("out", &b[C_OUT], times(r->rows, channels), size) ||
           check_indices("sources", b[C_SOURCES].buf, r->rows, states->shape[0]) ||
           check_indices("targets", b[C_TARGETS].buf, r->rows, states->shape[0]);
}

/* One thread: what a row reads is small beside the time to wake another. */
static void convolution_run(const struct dense_isa *isa, const struct convolution_rows *r,
                            const Py_buffer *b) {
    const int64_t *sources = b[C_SOURCES].buf, *targets = b[C_TARGETS].buf;
    const int64_t nbytes = r->step.channels * nbytes_of(r->dtype);
    struct convolution_step step = r->step;
    for (int64_t row = 0; row < r->rows; row++) {
        step.state = r->states + sources[row] * r->stride;
        step.next = r->states + targets[row] * r->stride;
        step.x = (const char *)b[C_X].buf + row * nbytes;
        step.out = (char *)b[C_OUT].buf + row * nbytes;
        isa->short_convolution(r->dtype, &step);
    }
}

PyDoc_STRVAR(short_convolution_doc,
             "short_convolution(isa, dtype, rows, channels, taps, silu, states, x, weight, bias,\n"
             "    sources, targets, out)\n\n"
             "Computes a step of a causal convolution for each row: reads the states in `sources`, writes\n"
             "those in `targets`, and out. Buffers must have the dtype (int64 for places), aligned, and all\n"
             "but `states` contiguous; the bias may be None. Nothing else may use them during the call,\n"
             "which releases the interpreter lock.\n"
             "Raises ValueError for arguments that do not fit together.");

static PyObject *short_convolution_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa_name, *dtype_name;
    long long rows, channels, taps;
    int silu;
    PyObject *states_object;
    Py_buffer states = {0}, b[C_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "ssLLLpOy*y*z*y*y*w*:short_convolution", &isa_name, &dtype_name, &rows,
                          &channels, &taps, &silu, &states_object, &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]))
        return NULL;
    const struct isa *isa;
    enum dtype dtype = F32;
    int failed = PyObject_GetBuffer(states_object, &states, PyBUF_STRIDES | PyBUF_WRITABLE) ||
                 parse_isa(isa_name, &isa) || parse_dtype(dtype_name, &dtype);
    if (!failed) {
        const struct convolution_rows r = {
            .step = {.channels = channels,
                     .taps = taps,
                     .weight = b[C_WEIGHT].buf,
                     .bias = b[C_BIAS].buf,
                     .silu = silu},
            .dtype = dtype,
            .rows = rows,
            .states = states.buf,
            .stride = states.ndim == 3 ? states.strides[0] : 0,
        };
        failed = convolution_check(&r, &states, b);
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            convolution_run(dense_isa(isa), &r, b);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&states);
    release_buffers(b, C_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
