/* _fast_path: a function's own loop for plain calls, without the interpreter lock, as a Python module.
 *
 * connection.h has the loop. A plain call is `POST /` with a body of known length, an invocation without a
 * prefetch and a limit, with a row at least, for experts that are in memory. Everything else goes back to
 * Python with the bytes that have arrived (functions/http/server.py), which answers it, or refuses it: no
 * call is refused here. */

#include "arguments.h" /* first, since it includes Python.h */

#include "condition.h"
#include "connection.h"

/* The buffers that a FastPath holds. */
enum {
    WEIGHTS,
    LAYERS,
    POSITIONS,
    FUNCTION,
    PROOFS,
    CONNECTIONS,
    RESIDENCY,
    READY,
    HELD,
    USES_STATE,
    USES,
    ROUNDS,
    LAST_USED,
    KEPT,
    BOUNDS,
    BUFFERS
};

enum { GUARDS = 4 };

typedef struct {
    PyObject_HEAD struct server server;
    Py_buffer buffers[BUFFERS];
    PyObject *guards[GUARDS];
} FastPath;

static int copy_name(char *target, const char *name) {
    if (strlen(name) >= MAX_NAME_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a name is too long");
        return -1;
    }
    strcpy(target, name);
    return 0;
}

static int check_buffers(const struct server *s, const Py_buffer *b) {
    const struct residency *r = &s->residency;
    const int64_t n = r->positions;
    return check_buffer("positions", &b[POSITIONS], s->layers * s->experts * 8, 8) ||
           check_buffer("function", &b[FUNCTION], sizeof(struct function_state), 8) ||
           check_buffer("proofs", &b[PROOFS], sizeof(struct proofs_state), 1) ||
           check_buffer("connections", &b[CONNECTIONS], sizeof(struct connections_state), 8) ||
           check_buffer("residency", &b[RESIDENCY], sizeof(struct residency_state), 8) ||
           check_buffer("held", &b[HELD], n * 8, 8) ||
           check_buffer("uses_state", &b[USES_STATE], sizeof(struct uses_state), 8) ||
           check_buffer("uses", &b[USES], n * r->half_lives * 8, 8) ||
           check_buffer("rounds", &b[ROUNDS], n * 8, 8) ||
           check_buffer("last_used", &b[LAST_USED], n * 8, 8) ||
           check_buffer("bounds", &b[BOUNDS], (s->layers + 1) * 8, 8);
}

static int check_positions(const struct server *s) {
    int known = 1;
    for (int64_t i = 0; i < s->layers * s->experts; i++)
        known &= s->position_of[i] >= -1 && s->position_of[i] < s->residency.positions;
    for (int64_t i = 0; i <= s->layers; i++)
        known &= s->residency.bounds[i] >= 0 && s->residency.bounds[i] <= s->residency.positions;
    if (!known) PyErr_SetString(PyExc_ValueError, "a position is out of range");
    return known ? 0 : -1;
}

/* Points the server into the buffers. */
static int use_buffers(struct server *s, Py_buffer *b) {
    struct residency *r = &s->residency;
    r->positions = b[READY].len / 8;
    r->half_lives = b[KEPT].len / 8;
    s->layers = b[LAYERS].len / 8;
    s->experts = s->layers ? b[POSITIONS].len / 8 / s->layers : 0;
    s->weights = b[WEIGHTS].buf;
    s->layer_numbers = b[LAYERS].buf;
    s->position_of = b[POSITIONS].buf;
    s->function = b[FUNCTION].buf;
    s->proofs = b[PROOFS].buf;
    s->connections = b[CONNECTIONS].buf;
    r->state = b[RESIDENCY].buf;
    r->ready = b[READY].buf;
    r->held = b[HELD].buf;
    r->uses_state = b[USES_STATE].buf;
    r->uses = b[USES].buf;
    r->rounds = b[ROUNDS].buf;
    r->last_used = b[LAST_USED].buf;
    r->kept = b[KEPT].buf;
    r->bounds = b[BOUNDS].buf;
    return check_buffers(s, b) || check_positions(s) ? -1 : 0;
}

static int use_guards(FastPath *self) {
    for (int i = 0; i < GUARDS; i++) Py_INCREF(self->guards[i]);
    self->server.function_guard = (Condition *)self->guards[0];
    self->server.proofs_guard = (Condition *)self->guards[1];
    self->server.connections_guard = (Condition *)self->guards[2];
    self->server.residency.guard = (Condition *)self->guards[3];
    return 0;
}

PyDoc_STRVAR(
    fast_path_doc,
    "FastPath(isa, shape, activation_dtype, threads, top_k, model, instance, max_body_nbytes,\n"
    "    report_seconds, weights, layers, positions, function, proofs, connections, residency, uses)\n\n"
    "Answers plain calls of one block. functions/expert/fast_calls.py describes the arguments.\n"
    "Raises ValueError for arguments that do not fit together.");

static PyTypeObject *condition_type;

static int parse_kernel(struct server *s, const char *isa, PyObject *shape, const char *dtype) {
    return parse_isa(isa, &s->isa) || parse_shape(shape, &s->shape) || parse_dtype(dtype, &s->hidden_dtype) ||
           check_dtypes(s->shape.gate_up.dtype, s->hidden_dtype, s->hidden_dtype) ||
           check_dtypes(s->shape.down.dtype, s->hidden_dtype, s->hidden_dtype) || check_threads(s->threads);
}

static int fast_path_parse(FastPath *self, PyObject *args) {
    struct server *s = &self->server;
    Py_buffer *b = self->buffers;
    PyObject **g = self->guards;
    const char *isa, *dtype, *model, *instance;
    PyObject *shape;
    long long top_k, max_body;
    if (!PyArg_ParseTuple(args, "sOsiLssLdy*y*y*(O!w*)(O!w*)(O!w*)(O!w*w*w*)(w*w*w*w*y*y*dd):FastPath", &isa,
                          &shape, &dtype, &s->threads, &top_k, &model, &instance, &max_body,
                          &s->report_seconds, &b[WEIGHTS], &b[LAYERS], &b[POSITIONS], condition_type, &g[0],
                          &b[FUNCTION], condition_type, &g[1], &b[PROOFS], condition_type, &g[2],
                          &b[CONNECTIONS], condition_type, &g[3], &b[RESIDENCY], &b[READY], &b[HELD],
                          &b[USES_STATE], &b[USES], &b[ROUNDS], &b[LAST_USED], &b[KEPT], &b[BOUNDS],
                          &s->residency.scaled_rows, &s->residency.least)) {
        memset(b, 0, sizeof self->buffers);
        memset(g, 0, sizeof self->guards);
        return -1;
    }
    s->top_k = top_k;
    s->max_body_nbytes = max_body;
    return use_guards(self) || parse_kernel(s, isa, shape, dtype) || copy_name(s->model, model) ||
           copy_name(s->instance, instance) || use_buffers(s, b);
}

static PyObject *fast_path_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    FastPath *self = (FastPath *)type->tp_alloc(type, 0);
    if (self && fast_path_parse(self, args)) Py_CLEAR(self);
    return (PyObject *)self;
}

static void fast_path_dealloc(PyObject *object) {
    FastPath *self = (FastPath *)object;
    PyTypeObject *type = Py_TYPE(object);
    release_buffers(self->buffers, BUFFERS);
    for (int i = 0; i < GUARDS; i++) Py_XDECREF(self->guards[i]);
    type->tp_free(object);
    Py_DECREF(type);
}

/* The bytes that have arrived of the call that Python has to answer. */
static PyObject *handed_over(const struct connection *c) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, c->first_nbytes + c->body_nbytes);
    if (!bytes) return NULL;
    memcpy(PyBytes_AS_STRING(bytes), c->first, (size_t)c->first_nbytes);
    if (c->body_nbytes) memcpy(PyBytes_AS_STRING(bytes) + c->first_nbytes, c->body, (size_t)c->body_nbytes);
    return bytes;
}

PyDoc_STRVAR(
    serve_doc,
    "serve(fd, client, address, leaves_client_core, idle_seconds, receive_seconds, send_seconds)\n\n"
    "Answers the plain calls of a connection, whose ClientState is `client`. Returns the first bytes\n"
    "of a call that Python has to answer, or None when the connection has ended.");

static PyObject *fast_path_serve(PyObject *object, PyObject *args) {
    struct connection c = {.server = &((FastPath *)object)->server};
    Py_buffer client;
    if (!PyArg_ParseTuple(args, "iw*spddd:serve", &c.fd, &client, &c.address, &c.leaves_client_core,
                          &c.idle_seconds, &c.receive_seconds, &c.send_seconds))
        return NULL;
    PyObject *result = NULL;
    if (strlen(c.address) >= MAX_NAME_BYTES) {
        PyErr_SetString(PyExc_ValueError, "the address is too long");
    } else if (!check_buffer("client", &client, sizeof(struct client_state), 8)) {
        enum outcome outcome;
        c.client = client.buf;
        Py_BEGIN_ALLOW_THREADS
        outcome = serve(&c);
        Py_END_ALLOW_THREADS
        result = outcome == HANDED_OVER ? handed_over(&c) : Py_NewRef(Py_None);
    }
    free(c.body);
    PyBuffer_Release(&client);
    return result;
}

static PyMethodDef fast_path_methods[] = {
    {"serve", fast_path_serve, METH_VARARGS, serve_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot fast_path_slots[] = {
    {Py_tp_doc, (void *)fast_path_doc},
    {Py_tp_new, fast_path_new},
    {Py_tp_dealloc, fast_path_dealloc},
    {Py_tp_methods, fast_path_methods},
    {0, NULL},
};

static PyType_Spec fast_path_spec = {.name = "functions.fast_path._fast_path.FastPath",
                                     .basicsize = sizeof(FastPath),
                                     .flags = Py_TPFLAGS_DEFAULT,
                                     .slots = fast_path_slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_fast_path", .m_size = -1};

static int add_type(PyObject *into, const char *name, PyType_Spec *spec, PyTypeObject **type) {
    *type = (PyTypeObject *)PyType_FromSpec(spec);
    return *type ? PyModule_AddObjectRef(into, name, (PyObject *)*type) : -1;
}

PyMODINIT_FUNC PyInit__fast_path(void) {
    static PyTypeObject *fast_path_type;
    pool_init();
    PyObject *created = PyModule_Create(&module);
    if (created && (add_type(created, "Condition", &condition_spec, &condition_type) ||
                    add_type(created, "FastPath", &fast_path_spec, &fast_path_type)))
        Py_CLEAR(created);
    return created;
}
