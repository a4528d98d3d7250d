/* _row_groups: groups rows by function, and adds up the functions' outputs, as a Python module.
 *
 * row_groups.py is its public interface. row_groups.h computes; here arguments are checked. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

#include "row_groups.h"

#define LARGEST_SIZE (1 << 24) /* keeps products of two sizes far from overflow */

static int check_size(int64_t size) {
    if (size >= 0 && size <= LARGEST_SIZE) return 0;
    PyErr_SetString(PyExc_ValueError, "a size is out of range");
    return -1;
}

/* A buffer of at least `count` values of `size` bytes, and of no more if it is `exact`. */
static int check_buffer(const char *name, const Py_buffer *buffer, int64_t count, int64_t size, int exact) {
    if (buffer->len < count * size || (exact && buffer->len != count * size)) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, not %lld", name, buffer->len,
                     (long long)(count * size));
        return -1;
    }
    if (count > 0 && (uintptr_t)buffer->buf % (uintptr_t)size != 0) {
        PyErr_Format(PyExc_ValueError, "%s is not aligned to %lld bytes", name, (long long)size);
        return -1;
    }
    return 0;
}

static void release_buffers(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++) PyBuffer_Release(&buffers[i]);
}

static PyObject *written_groups(const struct batch *batch, const struct groups *groups) {
    if (!is_routable(batch)) {
        PyErr_SetString(PyExc_ValueError, "index has an expert that no function has");
        return NULL;
    }
    int32_t *numbers = PyMem_Malloc((size_t)(batch->experts + 1) * sizeof *numbers);
    if (!numbers) return PyErr_NoMemory();
    const int64_t count = needed_functions(batch, numbers);
    PyObject *list = PyList_New(count);
    int64_t start = 0;
    for (int64_t i = 0; list && i < count; i++) {
        const int64_t end = write_group(batch, numbers[i], groups, start);
        PyObject *item = Py_BuildValue("(iLL)", numbers[i], (long long)start, (long long)end);
        if (item)
            PyList_SET_ITEM(list, i, item);
        else
            Py_CLEAR(list);
        start = end;
    }
    PyMem_Free(numbers);
    return list;
}

PyDoc_STRVAR(
    group_doc,
    "group(rows, top_k, row_nbytes, owner, index, weights, hidden, out_rows, out_index, out_weights,\n"
    "      out_hidden) -> list of (function, start, end)\n\n"
    "Writes the rows of each function's group to the outputs, which have rows * top_k places, from\n"
    "place start to end. Of a group of all rows, only the numbers and the index are written.\n"
    "Raises ValueError for an expert without a function, or arguments that do not fit together.");

static PyObject *group_call(PyObject *module, PyObject *args) {
    (void)module;
    enum { OWNER, INDEX, WEIGHTS, HIDDEN, OUT_ROWS, OUT_INDEX, OUT_WEIGHTS, OUT_HIDDEN, COUNT };
    long long rows, top_k, row_nbytes;
    Py_buffer b[COUNT] = {0};
    if (!PyArg_ParseTuple(args, "LLLy*y*y*y*w*w*w*w*:group", &rows, &top_k, &row_nbytes, &b[OWNER], &b[INDEX],
                          &b[WEIGHTS], &b[HIDDEN], &b[OUT_ROWS], &b[OUT_INDEX], &b[OUT_WEIGHTS],
                          &b[OUT_HIDDEN]))
        return NULL;
    PyObject *result = NULL;
    const int64_t experts = b[OWNER].len / 4;
    if (!(check_size(rows) || check_size(top_k) || check_size(row_nbytes) || check_size(rows * top_k) ||
          check_buffer("owner", &b[OWNER], experts, 4, 1) ||
          check_buffer("index", &b[INDEX], rows * top_k, 2, 1) ||
          check_buffer("weights", &b[WEIGHTS], rows * top_k, 4, 1) ||
          check_buffer("hidden", &b[HIDDEN], rows * row_nbytes, 1, 1) ||
          check_buffer("out_rows", &b[OUT_ROWS], rows * top_k, 8, 1) ||
          check_buffer("out_index", &b[OUT_INDEX], rows * top_k * top_k, 2, 1) ||
          check_buffer("out_weights", &b[OUT_WEIGHTS], rows * top_k * top_k, 4, 1) ||
          check_buffer("out_hidden", &b[OUT_HIDDEN], rows * top_k * row_nbytes, 1, 1))) {
        const struct batch batch = {rows,         top_k,        row_nbytes,     experts,
                                    b[OWNER].buf, b[INDEX].buf, b[WEIGHTS].buf, b[HIDDEN].buf};
        const struct groups groups = {b[OUT_ROWS].buf, b[OUT_INDEX].buf, b[OUT_WEIGHTS].buf,
                                      b[OUT_HIDDEN].buf};
        result = written_groups(&batch, &groups);
    }
    release_buffers(b, COUNT);
    return result;
}

/* Reads (rows or None, output). `views` has two places, of which the first stays empty for None. */
static int part_in(PyObject *tuple, int64_t rows, int64_t row_nbytes, int64_t item, struct part *part,
                   Py_buffer *views) {
    PyObject *numbers, *output;
    if (!PyArg_ParseTuple(tuple, "OO", &numbers, &output)) return -1;
    *part = (struct part){.count = rows};
    if (numbers != Py_None) {
        if (PyObject_GetBuffer(numbers, &views[0], PyBUF_SIMPLE) < 0) return -1;
        part->rows = views[0].buf;
        part->count = views[0].len / 8;
        if (check_buffer("rows", &views[0], part->count, 8, 1) < 0) return -1;
        for (int64_t i = 0; i < part->count; i++)
            if (part->rows[i] < 0 || part->rows[i] >= rows) {
                PyErr_SetString(PyExc_ValueError, "a row is out of range");
                return -1;
            }
    }
    if (PyObject_GetBuffer(output, &views[1], PyBUF_SIMPLE) < 0) return -1;
    part->output = views[1].buf;
    return check_size(part->count) ||
                   check_buffer("output", &views[1], part->count * row_nbytes / item, item, 1)
               ? -1
               : 0;
}

/* Adds all parts of the tuple to `total`, one after the other. */
static int add_parts(PyObject *parts, int64_t rows, int64_t size, int is_bf16, float *total) {
    const int64_t item = is_bf16 ? 2 : 4;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(parts); i++) {
        Py_buffer views[2] = {0};
        struct part part;
        const int failed = !PyTuple_Check(PyTuple_GET_ITEM(parts, i)) ||
                           part_in(PyTuple_GET_ITEM(parts, i), rows, size * item, item, &part, views);
        if (!failed) add_part(total, size, &part, is_bf16);
        release_buffers(views, 2);
        if (!failed) continue;
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "each part must be a tuple");
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(
    add_up_doc,
    "add_up(rows, size, is_bf16, parts, out)\n\n"
    "Writes to out the sum of all parts, each of which is (rows or None, output): the rows' numbers\n"
    "[count] as int64, None for all rows, and the values [count, size]. Sums are float32, and are\n"
    "rounded once at the end for bf16. Raises ValueError or TypeError for arguments that do not fit.");

static PyObject *add_up_call(PyObject *module, PyObject *args) {
    (void)module;
    long long rows, size;
    int is_bf16;
    PyObject *parts;
    Py_buffer out = {0};
    if (!PyArg_ParseTuple(args, "LLpO!w*:add_up", &rows, &size, &is_bf16, &PyTuple_Type, &parts, &out))
        return NULL;
    int failed =
        check_size(rows) || check_size(size) || check_buffer("out", &out, rows * size, is_bf16 ? 2 : 4, 1);
    if (!failed) {
        const int64_t count = rows * size;
        float *total = is_bf16 ? PyMem_Calloc((size_t)count, sizeof *total) : out.buf;
        if (total) {
            if (!is_bf16) memset(total, 0, (size_t)count * sizeof *total);
            failed = add_parts(parts, rows, size, is_bf16, total);
            if (is_bf16 && !failed) narrow(total, count, out.buf);
        } else {
            PyErr_NoMemory();
            failed = 1;
        }
        if (is_bf16) PyMem_Free(total);
    }
    PyBuffer_Release(&out);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"group", group_call, METH_VARARGS, group_doc},
    {"add_up", add_up_call, METH_VARARGS, add_up_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_row_groups", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__row_groups(void) { return PyModuleDef_Init(&module); }
