/* _dense: linear layers, attention, normalisation, recurrent states and layer programs as a Python module,
 * for the engine.
 *
 * dense.py is its public interface, and numpy_dense.py specifies what it computes. The *_call.h files check
 * arguments; linear.h, attention.h, rms_norm.h, delta_rule_rows.h, short_convolution.h and layer.h compute.
 * Products, the table of instruction sets and the thread pool come from functions/kernels/csrc. */

#include "attention_call.h"
#include "delta_rule_call.h"
#include "layer_call.h"
#include "linear_call.h"
#include "rms_norm_call.h"
#include "short_convolution_call.h"

static PyMethodDef methods[] = {
    {"linear", linear_call, METH_VARARGS, linear_doc},
    {"attention", attention_call, METH_VARARGS, attention_doc},
    {"rms_norm", rms_norm_call, METH_VARARGS, rms_norm_doc},
    {"delta_rule", delta_rule_call, METH_VARARGS, delta_rule_doc},
    {"short_convolution", short_convolution_call, METH_VARARGS, short_convolution_doc},
    {"layer_program", layer_program_call, METH_VARARGS, layer_program_doc},
    {"layer_begin", layer_begin_call, METH_VARARGS, layer_begin_doc},
    {"layer_shared", layer_shared_call, METH_VARARGS, layer_shared_doc},
    {"layer_end", layer_end_call, METH_VARARGS, layer_end_doc},
    {"isas", isas_call, METH_NOARGS, isas_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_dense", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__dense(void) {
    pool_init();
    return PyModuleDef_Init(&module);
}
