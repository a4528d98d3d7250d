/* _gated_ffn: the kernels as a Python module. `Kernel` in __init__.py is its face, numpy_kernel.py says what
 * they compute, matrix.py and packing.py how weights lie. Here, and in linear_call.h, attention_call.h and
 * normalise_call.h, arguments are checked; forward.h, linear.h, attention.h and normalise.h do the work. */

#include "arguments.h"
#include "attention_call.h"
#include "forward.h"
#include "linear_call.h"
#include "normalise_call.h"

/* The buffers of a call, in the order of Python's arguments. */
enum { BLOCK, OFFSETS, HIDDEN_STATES, EXPERT_INDEX, EXPERT_WEIGHT, CARRY, OUT, BUFFER_COUNT };

static int check_buffers(const struct arguments *a, const Py_buffer *b) {
    const int64_t values = a->rows * a->shape.hidden_size, routes = a->rows * a->top_k;
    return check_buffer("offsets", &b[OFFSETS], a->experts * 8) ||
           check_buffer("hidden_states", &b[HIDDEN_STATES], values * nbytes_of(a->hidden_dtype)) ||
           check_buffer("expert_index", &b[EXPERT_INDEX], routes * 2) ||
           check_buffer("expert_weight", &b[EXPERT_WEIGHT], routes * 4) ||
           check_buffer("carry", &b[CARRY], a->carry ? values * 4 : 0) ||
           check_buffer("out", &b[OUT], values * nbytes_of(a->out_dtype));
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
             "run(isa, weight_dtype, hidden_dtype, out_dtype, rows, top_k, hidden_size, intermediate_size,\n"
             "    threads, block, offsets, hidden_states, expert_index, expert_weight, carry, out)\n\n"
             "Writes the weighted sum of each row's experts, plus carry if that is not None, to out.\n"
             "Buffers are contiguous and aligned, and nobody writes to them during the call, which\n"
             "releases the interpreter lock.\n"
             "Raises ValueError for arguments that do not fit together, MemoryError without working memory.");

static PyObject *run(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa, *weight_dtype, *hidden_dtype, *out_dtype;
    long long rows, top_k, hidden_size, intermediate_size;
    int threads;
    Py_buffer b[BUFFER_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "ssssLLLLiy*y*y*y*y*z*w*:run", &isa, &weight_dtype, &hidden_dtype, &out_dtype,
                          &rows, &top_k, &hidden_size, &intermediate_size, &threads, &b[0], &b[1], &b[2],
                          &b[3], &b[4], &b[5], &b[6]))
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
        .carry = b[CARRY].buf,
        .out = b[OUT].buf,
    };
    enum dtype dtype;
    int failed = parse_isa(isa, &a.isa) || parse_dtype(weight_dtype, &dtype) ||
                 parse_dtype(hidden_dtype, &a.hidden_dtype) || parse_dtype(out_dtype, &a.out_dtype) ||
                 check_dtypes(dtype, a.hidden_dtype, a.out_dtype) ||
                 check_size(rows, 0) || check_size(top_k, 0) || check_size(hidden_size, 1) ||
                 check_size(intermediate_size, 1) || check_threads(threads);
    if (!failed) {
        a.shape = shape_of(dtype, hidden_size, intermediate_size);
        failed = run_checked(&a, b);
    }
    release_buffers(b, BUFFER_COUNT);
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
    {"linear", linear_call, METH_VARARGS, linear_doc},
    {"attention", attention_call, METH_VARARGS, attention_doc},
    {"rms_norm", rms_norm_call, METH_VARARGS, rms_norm_doc},
    {"isas", isas, METH_NOARGS, isas_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_gated_ffn", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__gated_ffn(void) {
    pool_init();
    return PyModuleDef_Init(&module);
}
