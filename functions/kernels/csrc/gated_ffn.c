/* _gated_ffn: the gated FFN of experts as a Python module.
 *
 * gated_ffn.py is its public interface, and specifies what it computes (NumpyGatedFFN); packed_matrix.py and
 * packed_expert.py specify the layout of weights. This file checks arguments; gated_ffn.h computes. To add an
 * instruction set, see isa/isa.h. */

#include "arguments.h" /* first, since it includes Python.h */

#include "gated_ffn.h"

/* The buffer arguments of a call, in their order. */
enum { BLOCK, OFFSETS, HIDDEN_STATES, EXPERT_INDEX, EXPERT_WEIGHT, CARRY, OUT, BUFFER_COUNT };

static int check_buffers(const struct ffn_arguments *a, const Py_buffer *b) {
    const int64_t values = a->rows * a->shape.hidden_size, routes = a->rows * a->top_k;
    const int64_t hidden = nbytes_of(a->hidden_dtype), out = nbytes_of(a->out_dtype);
    return check_buffer("offsets", &b[OFFSETS], a->experts * 8, 8) ||
           check_buffer("hidden_states", &b[HIDDEN_STATES], values * hidden, hidden) ||
           check_buffer("expert_index", &b[EXPERT_INDEX], routes * 2, 2) ||
           check_buffer("expert_weight", &b[EXPERT_WEIGHT], routes * 4, 4) ||
           check_buffer("carry", &b[CARRY], a->carry ? values * 4 : 0, 4) ||
           check_buffer("out", &b[OUT], values * out, out);
}

static const char *expert_problem(const struct ffn_arguments *a, int expert, int64_t block_nbytes) {
    if (expert >= a->experts) return "out of range";
    if (a->offsets[expert] < 0) return "absent";
    if (a->offsets[expert] > block_nbytes - a->shape.nbytes) return "past the end of the block";
    return NULL;
}

static int check_experts(const struct ffn_arguments *a, int64_t block_nbytes) {
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

static int run_checked(struct ffn_arguments *a, const Py_buffer *buffers) {
    if (check_buffers(a, buffers) || check_experts(a, buffers[BLOCK].len)) return -1;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = gated_ffn(a);
    Py_END_ALLOW_THREADS
    if (result) PyErr_NoMemory();
    return result;
}

PyDoc_STRVAR(gated_ffn_doc,
             "gated_ffn(isa, shape, hidden_dtype, out_dtype, rows, top_k, threads, block, offsets,\n"
             "    hidden_states, expert_index, expert_weight, carry, out)\n\n"
             "Writes the weighted sum of each row's experts, plus carry unless it is None, to out.\n"
             "Buffers must be contiguous and aligned, and must not change during the call, which\n"
             "releases the interpreter lock.\n"
             "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *gated_ffn_call(PyObject *module, PyObject *args) {
    (void)module;
    const char *isa, *hidden_dtype, *out_dtype;
    PyObject *shape;
    long long rows, top_k;
    int threads;
    Py_buffer b[BUFFER_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "sOssLLiy*y*y*y*y*z*w*:gated_ffn", &isa, &shape, &hidden_dtype, &out_dtype,
                          &rows, &top_k, &threads, &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &b[6]))
        return NULL;
    struct ffn_arguments a = {
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
    const int failed = parse_isa(isa, &a.isa) || parse_shape(shape, &a.shape) ||
                       parse_dtype(hidden_dtype, &a.hidden_dtype) || parse_dtype(out_dtype, &a.out_dtype) ||
                       check_dtypes(a.shape.gate_up.dtype, a.hidden_dtype, a.out_dtype) ||
                       check_size(rows, 0) || check_size(top_k, 0) || check_threads(threads) ||
                       run_checked(&a, b);
    release_buffers(b, BUFFER_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"gated_ffn", gated_ffn_call, METH_VARARGS, gated_ffn_doc},
    {"isas", isas_call, METH_NOARGS, isas_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_gated_ffn", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__gated_ffn(void) {
    pool_init();
    return PyModuleDef_Init(&module);
}
