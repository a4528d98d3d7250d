/* The Python function `linear`: checks of arguments. */

#ifndef FAASMOE_LINEAR_CALL_H
#define FAASMOE_LINEAR_CALL_H

#include "arguments.h"
#include "linear.h"

/* The buffer arguments of a layer, in their order. */
enum { L_WEIGHTS, L_BIAS, L_OUT, L_COUNT };

static int linear_check(const struct linear_arguments *a, const struct linear_layer *layer,
                        const Py_buffer *b) {
    const int64_t size = nbytes_of(a->dtype);
    return check_buffer("weights", &b[L_WEIGHTS], layer->matrix.end, 1) ||
           check_buffer("bias", &b[L_BIAS], layer->bias ? layer->outputs * 4 : 0, 4) ||
           check_buffer("out", &b[L_OUT], a->rows * layer->outputs * size, size);
}

/* Adds one of Python's layers. The caller must release the buffers in `b` in any case. */
static int linear_take(struct linear_arguments *a, enum dtype weights, int64_t inputs, PyObject *arguments,
                       Py_buffer *b) {
    long long outputs;
    if (!PyTuple_Check(arguments)) {
        PyErr_SetString(PyExc_TypeError, "a layer is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(arguments, "Ly*z*w*", &outputs, &b[L_WEIGHTS], &b[L_BIAS], &b[L_OUT]) ||
        check_size(outputs, 1))
        return -1;
    struct linear_layer *layer = &a->layer[a->layers++];
    *layer = (struct linear_layer){
        .matrix = matrix_at(0, weights, inputs, ceil_div(outputs, TILE_ROWS)),
        .outputs = outputs,
        .weights = b[L_WEIGHTS].buf,
        .bias = b[L_BIAS].buf,
        .out = b[L_OUT].buf,
    };
    return linear_check(a, layer, b);
}

static int linear_take_all(struct linear_arguments *a, enum dtype weights, int64_t inputs, PyObject *layers,
                           Py_buffer (*buffers)[L_COUNT]) {
    const Py_ssize_t count = PyTuple_Size(layers);
    if (count < 1 || count > MAX_LAYERS) {
        PyErr_Format(PyExc_ValueError, "from 1 to %d layers, not %zd", MAX_LAYERS, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (linear_take(a, weights, inputs, PyTuple_GetItem(layers, i), buffers[i])) return -1;
    return 0;
}

static int linear_run(const struct linear_arguments *a) {
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = linear(a);
    Py_END_ALLOW_THREADS
    if (result) PyErr_NoMemory();
    return result;
}

PyDoc_STRVAR(linear_doc,
             "linear(isa, weight_dtype, dtype, rows, inputs, threads, x, layers)\n\n"
             "A layer is (outputs, weights, bias, out): writes x times the packed weights, plus bias unless\n"
             "it is None, to out. Buffers must be contiguous and aligned, and must not change during the\n"
             "call, which releases the interpreter lock.\n"
             "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *linear_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa, *weight_dtype, *dtype;
    long long rows, inputs;
    int threads;
    PyObject *layers;
    Py_buffer x, buffers[MAX_LAYERS][L_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "sssLLiy*O!:linear", &isa, &weight_dtype, &dtype, &rows, &inputs, &threads,
                          &x, &PyTuple_Type, &layers))
        return NULL;
    struct linear_arguments a = {.rows = rows, .x = x.buf, .threads = threads};
    enum dtype weights;
    int failed = parse_isa(isa, &a.isa) || parse_dtype(weight_dtype, &weights) ||
                 parse_dtype(dtype, &a.dtype) || check_dtypes(weights, a.dtype, a.dtype) ||
                 check_size(rows, 0) || check_size(inputs, 1) || check_threads(threads) ||
                 check_buffer("x", &x, rows * inputs * nbytes_of(a.dtype), nbytes_of(a.dtype)) ||
                 linear_take_all(&a, weights, inputs, layers, buffers) || linear_run(&a);
    PyBuffer_Release(&x);
    release_buffers(buffers[0], MAX_LAYERS * L_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
