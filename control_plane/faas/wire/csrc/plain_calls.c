/* _plain_calls: the requests and the plain answers of all calls of a layer, without Python's lock.
 *
 * plain_calls.py is its public interface. exchange.h does the input and output, plain_answer.h reads answers;
 * here are the arguments and results. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>

#include "exchange.h"

/* The items of a sequence as a new tuple or list, each of which has to be a tuple. */
static PyObject *tuples_in(PyObject *sequence) {
    PyObject *items = PySequence_Fast(sequence, "calls must be a sequence");
    for (Py_ssize_t i = 0; items && i < PySequence_Fast_GET_SIZE(items); i++)
        if (!PyTuple_Check(PySequence_Fast_GET_ITEM(items, i))) {
            PyErr_SetString(PyExc_TypeError, "each call must be a tuple");
            Py_CLEAR(items);
        }
    return items;
}

static int socket_in(PyObject *tuple, int *socket) {
    long number = PyTuple_GET_SIZE(tuple) > 0 ? PyLong_AsLong(PyTuple_GET_ITEM(tuple, 0)) : -1;
    if (number == -1 && PyErr_Occurred()) return -1;
    if (number < 0 || number > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a call must begin with the number of a socket");
        return -1;
    }
    *socket = (int)number;
    return 0;
}

static void release(Py_buffer *views, size_t count) {
    for (size_t i = 0; i < count; i++) PyBuffer_Release(&views[i]);
}

/* Reads (socket, part, ...). `views` has MAX_PARTS places; returns how many were filled, or -1. */
static int request_in(PyObject *tuple, struct request *request, Py_buffer *views) {
    Py_ssize_t parts = PyTuple_GET_SIZE(tuple) - 1;
    if (socket_in(tuple, &request->socket) < 0) return -1;
    if (parts > MAX_PARTS) {
        PyErr_Format(PyExc_ValueError, "a request has %zd parts, more than %d", parts, MAX_PARTS);
        return -1;
    }
    for (int i = 0; i < parts; i++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(tuple, i + 1), &views[i], PyBUF_SIMPLE) < 0) {
            release(views, (size_t)i);
            return -1;
        }
        request->part[i] = (struct iovec){views[i].buf, (size_t)views[i].len};
        request->left += views[i].len;
    }
    return request->parts = (int)parts;
}

static PyObject *send_all(struct request *requests, Py_ssize_t count) {
    Py_BEGIN_ALLOW_THREADS;
    send_requests(requests, (size_t)count);
    Py_END_ALLOW_THREADS;
    PyObject *sent = PyList_New(count);
    for (Py_ssize_t i = 0; sent && i < count; i++) {
        PyObject *number = PyLong_FromSsize_t(requests[i].left);
        if (!number)
            Py_CLEAR(sent);
        else
            PyList_SET_ITEM(sent, i, number);
    }
    return sent;
}

PyDoc_STRVAR(
    send_doc,
    "send(calls) -> list of int\n\n"
    "Each call is (socket, part, ...): an idle connection, and the buffers of its request. Sends as\n"
    "much of each as the network takes now. Returns how many bytes of each are left; -1 for a\n"
    "connection that its peer has closed.");

static PyObject *send_call(PyObject *module, PyObject *calls) {
    (void)module;
    PyObject *items = tuples_in(calls), *result = NULL;
    if (!items) return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(items), read = 0;
    struct request *requests = PyMem_Calloc((size_t)count, sizeof *requests);
    Py_buffer(*views)[MAX_PARTS] = PyMem_Calloc((size_t)count, sizeof *views);
    if (requests && views) {
        while (read < count &&
               request_in(PySequence_Fast_GET_ITEM(items, read), &requests[read], views[read]) >= 0)
            read++;
        if (read == count) result = send_all(requests, count);
        for (Py_ssize_t i = 0; i < read; i++) release(views[i], (size_t)requests[i].parts);
    } else {
        PyErr_NoMemory();
    }
    PyMem_Free(views);
    PyMem_Free(requests);
    Py_DECREF(items);
    return result;
}

/* Reads (socket, proof, output). `views` has two places, which are filled unless it returns -1. */
static int reception_in(PyObject *tuple, struct reception *r, Py_buffer *views) {
    if (PyTuple_GET_SIZE(tuple) != 3) {
        PyErr_SetString(PyExc_TypeError, "expected (socket, proof, output)");
        return -1;
    }
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE;
    if (socket_in(tuple, &r->socket) < 0) return -1;
    if (PyObject_GetBuffer(PyTuple_GET_ITEM(tuple, 1), &views[0], PyBUF_SIMPLE) < 0) return -1;
    if (PyObject_GetBuffer(PyTuple_GET_ITEM(tuple, 2), &views[1], flags) < 0) {
        release(views, 1);
        return -1;
    }
    Py_buffer *output = &views[1];
    r->expected.proof = (struct text){views[0].buf, (size_t)views[0].len};
    r->expected.output = output->buf;
    r->expected.nbytes = (size_t)output->len;
    const char *dtype = output->itemsize == 4 ? "F32" : "BF16";
    if (output->ndim != 2 || (output->itemsize != 2 && output->itemsize != 4) ||
        expect(&r->expected, dtype, output->shape[0], output->shape[1]) < 0) {
        PyErr_SetString(PyExc_ValueError, "an output must be two-dimensional, of float32 or uint16");
        release(views, 2);
        return -1;
    }
    return 0;
}

/* (instance, address, seconds, cold experts, bytes of the body), or the bytes that have arrived. */
static PyObject *outcome(const struct reception *r) {
    const struct plain_answer *a = &r->answer;
    if (r->progress == ANSWERED)
        return Py_BuildValue("(s#s#dln)", a->instance.start, (Py_ssize_t)a->instance.length, a->address.start,
                             (Py_ssize_t)a->address.length, a->seconds, a->cold_experts,
                             (Py_ssize_t)a->body_nbytes);
    size_t head = r->has_head ? a->output_start : r->received;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(head + r->output_got));
    if (!bytes) return NULL;
    memcpy(PyBytes_AS_STRING(bytes), r->head, head);
    memcpy(PyBytes_AS_STRING(bytes) + head, r->expected.output, r->output_got);
    return bytes;
}

static PyObject *receive_all(struct reception *receptions, Py_ssize_t count, double seconds) {
    struct pollfd *polled = PyMem_Calloc((size_t)count, sizeof *polled);
    size_t *which = PyMem_Calloc((size_t)count, sizeof *which);
    PyObject *outcomes = NULL;
    if (polled && which) {
        Py_BEGIN_ALLOW_THREADS;
        receive_answers(receptions, (size_t)count, now_ns() + (int64_t)(seconds * 1e9), polled, which);
        Py_END_ALLOW_THREADS;
        outcomes = PyList_New(count);
    } else {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; outcomes && i < count; i++) {
        PyObject *item = outcome(&receptions[i]);
        if (!item)
            Py_CLEAR(outcomes);
        else
            PyList_SET_ITEM(outcomes, i, item);
    }
    PyMem_Free(which);
    PyMem_Free(polled);
    return outcomes;
}

PyDoc_STRVAR(
    receive_doc,
    "receive(seconds, calls) -> list\n\n"
    "Each call is (socket, proof, output): what the function has to send to prove itself, empty if\n"
    "it has no secret, and a two-dimensional array for its output. Waits until all answers are there,\n"
    "one is not plain, or up to `seconds`. Returns for each call (instance, address, seconds, cold\n"
    "experts, bytes of the body); or the bytes that have arrived, if its answer is not plain or not\n"
    "complete.");

static PyObject *receive_call(PyObject *module, PyObject *args) {
    (void)module;
    double seconds;
    PyObject *calls;
    if (!PyArg_ParseTuple(args, "dO:receive", &seconds, &calls)) return NULL;
    if (!(seconds >= -1e9 && seconds <= 1e9)) {
        PyErr_SetString(PyExc_ValueError, "seconds are out of range");
        return NULL;
    }
    PyObject *items = tuples_in(calls), *result = NULL;
    if (!items) return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(items), read = 0;
    struct reception *receptions = PyMem_Malloc((size_t)count * sizeof *receptions);
    Py_buffer(*views)[2] = PyMem_Calloc((size_t)count, sizeof *views);
    if (receptions && views) {
        while (read < count) {
            struct reception *r = &receptions[read];
            /* All but the buffer, which would take most of the time. */
            memset(r, 0, offsetof(struct reception, head));
            if (reception_in(PySequence_Fast_GET_ITEM(items, read), r, views[read]) < 0) break;
            read++;
        }
        if (read == count) result = receive_all(receptions, count, seconds);
        for (Py_ssize_t i = 0; i < read; i++) release(views[i], 2);
    } else {
        PyErr_NoMemory();
    }
    PyMem_Free(views);
    PyMem_Free(receptions);
    Py_DECREF(items);
    return result;
}

static PyMethodDef methods[] = {
    {"send", send_call, METH_O, send_doc},
    {"receive", receive_call, METH_VARARGS, receive_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_plain_calls", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__plain_calls(void) { return PyModuleDef_Init(&module); }
