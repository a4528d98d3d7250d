/* The linear layer as Python calls it. */

#ifndef FAASMOE_LINEAR_CALL_H
#define FAASMOE_LINEAR_CALL_H

#include "arguments.h"
#include "linear.h"

/* The buffers of a call, in the order of Python's arguments. */
enum { L_WEIGHTS, L_X, L_BIAS, L_OUT, L_COUNT };

static int linear_check(const struct linear_arguments *a, const Py_buffer *b) {
    const int64_t item = nbytes_of(a->dtype);
    return check_buffer("weights", &b[L_WEIGHTS], a->matrix.end) ||
           check_buffer("x", &b[L_X], a->rows * a->matrix.inputs * item) ||
           check_buffer("bias", &b[L_BIAS], a->bias ? a->outputs * 4 : 0) ||
           check_buffer("out", &b[L_OUT], a->rows * a->outputs * item);
}

static int linear_run(struct linear_arguments *a, const Py_buffer *buffers) {
    if (linear_check(a, buffers)) return -1;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = linear(a);
    Py_END_ALLOW_THREADS
    if (result) PyErr_NoMemory();
    return result;
}

PyDoc_STRVAR(linear_doc,
             "linear(isa, weight_dtype, dtype, rows, inputs, outputs, threads, weights, x, bias, out)\n\n"
             "Writes x times the packed weights, plus bias if that is not None, to out. Buffers are\n"
             "contiguous and aligned, and nobody writes to them during the call, which releases the\n"
             "interpreter lock.\n"
             "Raises ValueError for arguments that do not fit together, MemoryError without working memory.");

static PyObject *linear_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa, *weight_dtype, *dtype;
    long long rows, inputs, outputs;
    int threads;
    Py_buffer b[L_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "sssLLLiy*y*z*w*:linear", &isa, &weight_dtype, &dtype, &rows, &inputs,
                          &outputs, &threads, &b[0], &b[1], &b[2], &b[3]))
        return NULL;
    struct linear_arguments a = {
        .rows = rows,
        .outputs = outputs,
        .weights = b[L_WEIGHTS].buf,
        .x = b[L_X].buf,
        .bias = b[L_BIAS].buf,
        .out = b[L_OUT].buf,
        .threads = threads,
    };
    enum dtype weights;
    int failed = parse_isa(isa, &a.isa) || parse_dtype(weight_dtype, &weights) ||
                 parse_dtype(dtype, &a.dtype) || check_dtypes(weights, a.dtype, a.dtype) ||
                 check_size(rows, 0) || check_size(inputs, 1) || check_size(outputs, 1) ||
                 check_threads(threads);
    if (!failed) {
        a.matrix = matrix_at(0, weights, inputs, ceil_div(outputs, TILE_ROWS));
        failed = linear_run(&a, b);
    }
    release_buffers(b, L_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
