/* _gated_ffn: the expert kernel as a Python module. `Kernel` in __init__.py is its face, numpy_kernel.py says
 * what it computes, and packing.py how weights lie. Here arguments are checked; forward.h does the work. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "forward.h"

#define LARGEST_SIZE (1 << 24) /* keeps products of sizes far from overflow */

/* The buffers of a call, in the order of Python's arguments. */
enum { BLOCK, OFFSETS, HIDDEN_STATES, EXPERT_INDEX, EXPERT_WEIGHT, OUT, BUFFER_COUNT };

static int parse_dtype(const char *name, enum dtype *dtype) {
    static const char *const names[] = {[F32] = "f32", [BF16] = "bf16", [INT8] = "int8"};
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *dtype = (enum dtype)i;
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "unknown dtype %s", name);
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

static int check_dtypes(enum dtype weights, enum dtype hidden) {
    if (hidden != INT8 && (weights == INT8 || weights == hidden)) return 0;
    PyErr_SetString(PyExc_ValueError,
                    "hidden states must have the weights' dtype, or be f32 or bf16 for int8 weights");
    return -1;
}

static int check_sizes(int64_t rows, int64_t top_k, int64_t hidden_size, int64_t intermediate_size,
                       int threads) {
    const int64_t sizes[] = {rows + 1, top_k + 1, hidden_size, intermediate_size};
    for (int i = 0; i < 4; i++)
        if (sizes[i] < 1 || sizes[i] > LARGEST_SIZE) {
            PyErr_SetString(PyExc_ValueError, "a size is out of range");
            return -1;
        }
    if (threads >= 1 && threads <= TEAM_MAX) return 0;
    PyErr_Format(PyExc_ValueError, "threads must be from 1 to %d, not %d", TEAM_MAX, threads);
    return -1;
}

static int check_buffers(const struct arguments *a, const Py_buffer *buffers) {
    static const char *const names[] = {"block",        "offsets",       "hidden_states",
                                        "expert_index", "expert_weight", "out"};
    const int64_t hidden = a->rows * a->shape.hidden_size * (a->hidden_dtype == BF16 ? 2 : 4);
    const int64_t routes = a->rows * a->top_k;
    const int64_t expected[BUFFER_COUNT] = {
        buffers[BLOCK].len, a->experts * 8, hidden, routes * 2, routes * 4, hidden,
    };
    for (int i = 0; i < BUFFER_COUNT; i++)
        if (buffers[i].len != expected[i]) {
            PyErr_Format(PyExc_ValueError, "%s has %zd bytes, not %lld", names[i], buffers[i].len,
                         (long long)expected[i]);
            return -1;
        }
    return 0;
}

static const char *expert_problem(const struct arguments *a, int expert, int64_t block_nbytes) {
    if (expert >= a->experts) return "out of range";
    if (a->offsets[expert] < 0) return "absent";
    if (a->offsets[expert] > block_nbytes - a->shape.nbytes) return "past the end of the block";
    return NULL;
}

static int check_experts(const struct arguments *a, int64_t block_nbytes) {
    for (int64_t i = 0; i < a->rows * a->top_k; i++) {
        const int expert = a->expert_index[i];
        const char *problem = expert < 0 ? NULL : expert_problem(a, expert, block_nbytes);
        if (problem) {
            PyErr_Format(PyExc_ValueError, "expert %d is %s", expert, problem);
            return -1;
        }
    }
    return 0;
}

static int run_checked(struct arguments *a, const Py_buffer *buffers) {
    if (check_buffers(a, buffers) || check_experts(a, buffers[BLOCK].len)) return -1;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = gated_ffn(a);
    Py_END_ALLOW_THREADS
    if (result) PyErr_NoMemory();
    return result;
}

PyDoc_STRVAR(run_doc,
             "run(isa, weight_dtype, hidden_dtype, rows, top_k, hidden_size, intermediate_size, threads,\n"
             "    block, offsets, hidden_states, expert_index, expert_weight, out)\n\n"
             "Writes the weighted sum of each row's experts to out. Buffers are contiguous and aligned, and\n"
             "nobody writes to them during the call, which releases the interpreter lock.\n"
             "Raises ValueError for arguments that do not fit together, MemoryError without working memory.");

static PyObject *run(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa, *weight_dtype, *hidden_dtype;
    long long rows, top_k, hidden_size, intermediate_size;
    int threads;
    Py_buffer b[BUFFER_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "sssLLLLiy*y*y*y*y*w*:run", &isa, &weight_dtype, &hidden_dtype, &rows, &top_k,
                          &hidden_size, &intermediate_size, &threads, &b[0], &b[1], &b[2], &b[3], &b[4],
                          &b[5]))
        return NULL;
    struct arguments a = {
        .rows = rows,
        .top_k = top_k,
        .experts = b[OFFSETS].len / 8,
        .threads = threads,
        .block = b[BLOCK].buf,
        .offsets = b[OFFSETS].buf,
        .hidden_states = b[HIDDEN_STATES].buf,
        .expert_index = b[EXPERT_INDEX].buf,
        .expert_weight = b[EXPERT_WEIGHT].buf,
        .out = b[OUT].buf,
    };
    enum dtype dtype;
    int failed = parse_isa(isa, &a.isa) || parse_dtype(weight_dtype, &dtype) ||
                 parse_dtype(hidden_dtype, &a.hidden_dtype) || check_dtypes(dtype, a.hidden_dtype) ||
                 check_sizes(rows, top_k, hidden_size, intermediate_size, threads);
    if (!failed) {
        a.shape = shape_of(dtype, hidden_size, intermediate_size);
        failed = run_checked(&a, b);
    }
    for (int i = 0; i < BUFFER_COUNT; i++) PyBuffer_Release(&b[i]);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(isas_doc, "isas() -> tuple of the instruction sets that this machine runs, best first");

static PyObject *isas(PyObject *module, PyObject *args) {
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

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS, run_doc},
    {"isas", isas, METH_NOARGS, isas_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_gated_ffn", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__gated_ffn(void) { return PyModuleDef_Init(&module); }
