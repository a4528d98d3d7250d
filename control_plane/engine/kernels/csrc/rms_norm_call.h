/* The Python function `rms_norm`: checks of arguments. */

#ifndef FAASMOE_RMS_NORM_CALL_H
#define FAASMOE_RMS_NORM_CALL_H

#include "arguments.h"
#include "dense_isa.h"

PyDoc_STRVAR(rms_norm_doc,
             "rms_norm(isa, dtype, rows, size, epsilon, x, weight, out)\n\n"
             "Writes weight * (x / sqrt(mean(x^2) + epsilon)) of each row to out. Buffers must be\n"
             "contiguous and aligned.\n"
             "Raises ValueError for arguments that do not fit together.");

static PyObject *rms_norm_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa_name, *dtype_name;
    long long rows, size;
    float epsilon;
    enum { X, WEIGHT, OUT, COUNT };
    Py_buffer b[COUNT] = {0};
    if (!PyArg_ParseTuple(args, "ssLLfy*y*w*:rms_norm", &isa_name, &dtype_name, &rows, &size, &epsilon, &b[X],
                          &b[WEIGHT], &b[OUT]))
        return NULL;
    const struct isa *isa;
    enum dtype dtype;
    int failed = parse_isa(isa_name, &isa) || parse_dtype(dtype_name, &dtype) ||
                 check_dtypes(dtype, dtype, dtype) || check_size(rows, 0) || check_size(size, 1) ||
                 check_buffer("x", &b[X], rows * size * nbytes_of(dtype), nbytes_of(dtype)) ||
                 check_buffer("weight", &b[WEIGHT], size * nbytes_of(dtype), nbytes_of(dtype)) ||
                 check_buffer("out", &b[OUT], rows * size * nbytes_of(dtype), nbytes_of(dtype));
    if (!failed) dense_isa(isa)->rms_norm(dtype, rows, size, b[X].buf, b[WEIGHT].buf, epsilon, b[OUT].buf);
    release_buffers(b, COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
