/* The Python functions `layer_program`, `layer_begin`, `layer_shared` and `layer_end`: checks of arguments.
 */

#ifndef FAASMOE_LAYER_CALL_H
#define FAASMOE_LAYER_CALL_H

#include "arguments.h"
#include "gated_ffn.h"
#include "kv_cache_call.h"
#include "layer.h"

#define PROGRAM_NAME "faasmoe.layer_program"

/* The buffers of a program, in their order. Those of a matrix are its weights and its bias. */
enum {
    P_INPUT_NORM,
    P_ATTENTION_NORM,
    P_FFN_NORM,
    P_FFN_OUTPUT_NORM,
    P_QUERY_NORM,
    P_KEY_NORM,
    P_CORRECTION,
    P_MATRICES,
    P_FFN = P_MATRICES + 2 * LAYER_MATRICES,
    P_FFN_GATE,
    P_COUNT
};

/* What a capsule holds: the program, the gated FFN that all rows go through, and what keeps their memory. */
struct held_program {
    struct layer_program program;
    struct shape ffn; /* hidden_size is 0 for a layer without */
    const uint8_t *ffn_weights;
    const void *ffn_gate; /* [hidden_size], or NULL */
    Py_buffer buffers[P_COUNT];
};

static void program_free(PyObject *capsule) {
    struct held_program *held = PyCapsule_GetPointer(capsule, PROGRAM_NAME);
    release_buffers(held->buffers, P_COUNT);
    PyMem_Free(held);
}

static struct held_program *program_of(PyObject *capsule) {
    return PyCapsule_GetPointer(capsule, PROGRAM_NAME);
}

/* Checks a norm, or another vector of the activations' dtype, which a layer may be without. */
static int program_check_norm(struct held_program *h, const char *name, int buffer, int64_t size) {
    const int64_t value = nbytes_of(h->program.dtype);
    const Py_buffer *b = &h->buffers[buffer];
    return check_buffer(name, b, b->buf ? size * value : 0, value);
}

/* Takes (dtype, outputs, inputs, weights, bias or None), or None for a matrix that the layer does not have.
 */
static int program_take_matrix(struct held_program *h, int number, PyObject *argument) {
    if (argument == Py_None) return 0;
    struct layer_matrix *m = &h->program.matrix[number];
    Py_buffer *weights = &h->buffers[P_MATRICES + 2 * number], *bias = weights + 1;
    const char *name;
    long long outputs, inputs;
    enum dtype dtype;
    if (!PyTuple_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "a matrix is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(argument, "sLLy*z*", &name, &outputs, &inputs, weights, bias) ||
        parse_dtype(name, &dtype) || check_size(outputs, 1) || check_size(inputs, 1))
        return -1;
    /* A router may be float32 whatever the activations are. */
    if (!(number == ROUTER && dtype == F32) && check_dtypes(dtype, h->program.dtype, h->program.dtype))
        return -1;
    m->matrix = matrix_at(0, dtype, inputs, ceil_div(outputs, TILE_ROWS));
    m->outputs = outputs;
    m->weights = weights->buf;
    m->bias = bias->buf;
    return check_buffer("weights", weights, m->matrix.end, 1) ||
           check_buffer("bias", bias, m->bias ? outputs * 4 : 0, 4);
}

static int program_check_matrix(const struct layer_program *p, int number, int64_t outputs, int64_t inputs) {
    const struct layer_matrix *m = &p->matrix[number];
    const int alike = number >= OUTPUT || m->matrix.dtype == p->matrix[QUERY].matrix.dtype;
    if (m->outputs == outputs && (!outputs || (m->matrix.inputs == inputs && alike))) return 0;
    PyErr_Format(PyExc_ValueError, "matrix %d does not fit to the layer", number);
    return -1;
}

/* The least experts that a group has: its score is the sum of the two best. */
#define LEAST_OF_GROUP 2

/* Returns -1 for a router whose groups and experts do not fit together. */
static int program_check_router(const struct router *r) {
    if (!r->experts) return 0;
    const int64_t size = r->experts / r->groups;
    if (r->experts % r->groups || r->chosen_groups > r->groups || (r->groups > 1 && size < LEAST_OF_GROUP))
        return -1;
    return r->top_k <= size * r->chosen_groups ? 0 : -1;
}

static int program_check(struct held_program *h) {
    const struct layer_program *p = &h->program;
    const int64_t hidden = p->hidden_size, queries = p->heads * p->head_dim, keys = p->kv_heads * p->head_dim;
    const int64_t experts = p->matrix[ROUTER].outputs, gates = p->matrix[GATE].outputs;
    if (p->heads % p->kv_heads || p->rotation.rotated % 2 || p->rotation.rotated > p->head_dim ||
        (gates && gates != p->heads && gates != queries) || program_check_router(&p->router)) {
        PyErr_SetString(PyExc_ValueError, "the heads or the experts do not fit together");
        return -1;
    }
    return program_check_matrix(p, QUERY, queries, hidden) || program_check_matrix(p, KEY, keys, hidden) ||
           program_check_matrix(p, VALUE, keys, hidden) || program_check_matrix(p, OUTPUT, hidden, queries) ||
           program_check_matrix(p, GATE, gates, hidden) || program_check_matrix(p, ROUTER, experts, hidden) ||
           program_check_norm(h, "input_norm", P_INPUT_NORM, hidden) ||
           program_check_norm(h, "attention_norm", P_ATTENTION_NORM, hidden) ||
           program_check_norm(h, "ffn_norm", P_FFN_NORM, hidden) ||
           program_check_norm(h, "ffn_output_norm", P_FFN_OUTPUT_NORM, hidden) ||
           program_check_norm(h, "query_norm", P_QUERY_NORM, p->norms_heads ? p->head_dim : queries) ||
           program_check_norm(h, "key_norm", P_KEY_NORM, p->norms_heads ? p->head_dim : keys) ||
           check_buffer("correction", &h->buffers[P_CORRECTION], p->router.correction ? experts * 4 : 0, 4);
}

/* Takes (shape, weights, gate or None), or None for a layer without a gated FFN. */
static int program_take_ffn(struct held_program *h, PyObject *argument) {
    if (argument == Py_None) return 0;
    PyObject *shape;
    Py_buffer *weights = &h->buffers[P_FFN], *gate = &h->buffers[P_FFN_GATE];
    if (!PyTuple_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "a gated FFN is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(argument, "Oy*z*", &shape, weights, gate) || parse_shape(shape, &h->ffn) ||
        check_dtypes(h->ffn.gate_up.dtype, h->program.dtype, h->program.dtype))
        return -1;
    if (h->ffn.hidden_size != h->program.hidden_size) {
        PyErr_SetString(PyExc_ValueError, "the gated FFN does not fit to the layer");
        return -1;
    }
    h->ffn_weights = weights->buf;
    h->ffn_gate = gate->buf;
    return check_buffer("weights", weights, h->ffn.nbytes, 1) ||
           program_check_norm(h, "gate", P_FFN_GATE, h->program.hidden_size);
}

/* The number of a name among names[count]; -1 with an exception for another one. */
static int program_number(const char *name, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(name, names[i])) return i;
    PyErr_Format(PyExc_ValueError, "there is no function %.20s", name);
    return -1;
}

/* Takes (top_k, groups, chosen_groups, scores, normalised, scale, correction). */
static int program_take_router(struct held_program *h, PyObject *argument) {
    static const char *const names[] = {"softmax", "sigmoid", "sigmoid_of_chosen"};
    struct router *r = &h->program.router;
    const char *scores;
    long long top_k, groups, chosen_groups;
    if (!PyTuple_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "a router is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(argument, "LLLspfz*", &top_k, &groups, &chosen_groups, &scores, &r->normalised,
                          &r->scale, &h->buffers[P_CORRECTION]) ||
        check_size(top_k, 1) || check_size(groups, 1) || check_size(chosen_groups, 1))
        return -1;
    const int number = program_number(scores, names, 3);
    if (number < 0) return -1;
    r->scores = (enum scores)number;
    r->top_k = top_k, r->groups = groups, r->chosen_groups = chosen_groups;
    r->correction = h->buffers[P_CORRECTION].buf;
    return 0;
}

static int program_take(struct held_program *h, PyObject *args) {
    static const char *const gates[] = {"sigmoid", "softplus"};
    struct layer_program *p = &h->program;
    const char *isa, *dtype, *gate;
    long long hidden_size, heads, kv_heads, head_dim, window, rotated;
    PyObject *matrices[LAYER_MATRICES], *router, *ffn;
    Py_buffer *b = h->buffers;
    if (!PyArg_ParseTuple(args, "ss(LLLLLL)(ffff)(ppps)O(z*z*z*z*z*z*)(OOOOOO)O:layer_program", &isa, &dtype,
                          &hidden_size, &heads, &kv_heads, &head_dim, &window, &rotated, &p->epsilon,
                          &p->scaling, &p->clip, &p->residual, &p->norms_heads, &p->norms_rotated,
                          &p->rotation.interleaved, &gate, &router, &b[P_INPUT_NORM], &b[P_ATTENTION_NORM],
                          &b[P_FFN_NORM], &b[P_FFN_OUTPUT_NORM], &b[P_QUERY_NORM], &b[P_KEY_NORM],
                          &matrices[QUERY], &matrices[KEY], &matrices[VALUE], &matrices[GATE],
                          &matrices[OUTPUT], &matrices[ROUTER], &ffn))
        return -1;
    if (parse_isa(isa, &p->isa) || parse_dtype(dtype, &p->dtype) ||
        check_dtypes(p->dtype, p->dtype, p->dtype) || check_size(hidden_size, 1) || check_size(heads, 1) ||
        check_size(kv_heads, 1) || check_size(head_dim, 1) || check_size(window, 1) ||
        check_size(rotated, 0) || program_take_router(h, router))
        return -1;
    const int function = program_number(gate, gates, 2);
    if (function < 0) return -1;
    p->gate_function = (enum attention_gate)function;
    p->dense = dense_isa(p->isa);
    p->hidden_size = hidden_size, p->heads = heads, p->kv_heads = kv_heads, p->head_dim = head_dim;
    p->window = window;
    p->rotation.head_dim = head_dim, p->rotation.rotated = rotated;
    p->input_norm = b[P_INPUT_NORM].buf, p->attention_norm = b[P_ATTENTION_NORM].buf;
    p->ffn_norm = b[P_FFN_NORM].buf, p->ffn_output_norm = b[P_FFN_OUTPUT_NORM].buf;
    p->query_norm = b[P_QUERY_NORM].buf, p->key_norm = b[P_KEY_NORM].buf;
    for (int i = 0; i < LAYER_MATRICES; i++)
        if (program_take_matrix(h, i, matrices[i])) return -1;
    p->router.experts = p->matrix[ROUTER].outputs;
    p->router.dtype = p->matrix[ROUTER].matrix.dtype == F32 ? F32 : p->dtype;
    return program_check(h) || program_take_ffn(h, ffn) ? -1 : 0;
}

PyDoc_STRVAR(
    layer_program_doc,
    "layer_program(isa, dtype, (hidden_size, heads, kv_heads, head_dim, window, rotated), (epsilon,\n"
    "    scaling, clip, residual), (norms_heads, norms_rotated, interleaved, gate_function), (top_k,\n"
    "    groups, chosen_groups, scores, normalised, scale, correction), norms, matrices, ffn) -> capsule\n\n"
    "norms are those before and behind attention, before and behind the experts, of queries and of\n"
    "keys; matrices those of queries, keys, values, gate, output and router, each (dtype, outputs,\n"
    "inputs, weights, bias); ffn is (shape, weights, gate). What a layer does not have is None. The\n"
    "capsule keeps the buffers.\n"
    "Raises ValueError for arguments that do not fit together.");

static PyObject *layer_program_call(PyObject *module, PyObject *args) {
    (void)module;
    struct held_program *held = PyMem_Calloc(1, sizeof *held);
    if (!held) return PyErr_NoMemory();
    PyObject *capsule = program_take(held, args) ? NULL : PyCapsule_New(held, PROGRAM_NAME, program_free);
    if (!capsule) {
        release_buffers(held->buffers, P_COUNT);
        PyMem_Free(held);
    }
    return capsule;
}

/* The buffer arguments of layer_begin, in their order. */
enum { B_CACHE, B_HIDDEN, B_COSINE, B_SINE, B_LANES, B_POSITIONS, B_NORMALISED, B_INDEX, B_WEIGHTS, B_COUNT };

static int layer_check_buffers(const struct layer_arguments *a, const Py_buffer *b) {
    const struct layer_program *p = &a->program;
    const struct kv_cache *c = &a->cache;
    const int64_t size = nbytes_of(p->dtype), hidden = a->rows * p->hidden_size * size;
    const int64_t angles = a->rows * p->rotation.rotated * size;
    const int64_t routes = p->router.experts ? a->rows * p->router.top_k : 0;
    return check_buffer("cache", &b[B_CACHE], kv_nbytes(c), size) ||
           check_buffer("hidden", &b[B_HIDDEN], hidden, size) ||
           check_buffer("cosine", &b[B_COSINE], angles, size) ||
           check_buffer("sine", &b[B_SINE], angles, size) ||
           check_buffer("lanes", &b[B_LANES], a->rows * 8, 8) ||
           check_buffer("positions", &b[B_POSITIONS], a->rows * 8, 8) ||
           check_buffer("normalised", &b[B_NORMALISED], hidden, size) ||
           check_buffer("index", &b[B_INDEX], routes * 8, 8) ||
           check_buffer("weights", &b[B_WEIGHTS], routes * 4, 4) ||
           check_indices("lanes", a->lanes, a->rows, c->lanes) ||
           check_indices("positions", a->positions, a->rows, c->tokens);
}

static int layer_check(const struct layer_arguments *a, const Py_buffer *buffers) {
    const struct kv_cache *c = &a->cache;
    if (kv_check_sizes(c) || check_size(a->rows, 1)) return -1;
    if (c->heads != a->program.kv_heads || c->head_dim != a->program.head_dim || a->layer < 0 ||
        a->layer >= c->layers) {
        PyErr_SetString(PyExc_ValueError, "the cache is not one of this layer");
        return -1;
    }
    return layer_check_buffers(a, buffers);
}

PyDoc_STRVAR(
    layer_begin_doc,
    "layer_begin(program, layer, threads, (lanes, layers, kv_heads, tokens, head_dim), cache, hidden,\n"
    "    cosine, sine, lanes, positions, normalised, index, weights)\n\n"
    "Adds attention to the rows in `hidden`, and writes the experts' input, the chosen experts and\n"
    "their weights to the last three, of which `index` and `weights` are empty without a router.\n"
    "Buffers must be contiguous and aligned, and nothing else may use them during the call, which\n"
    "releases the interpreter lock.\n"
    "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *layer_begin_call(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *capsule;
    long long layer, lanes, layers, kv_heads, tokens, head_dim;
    int threads;
    Py_buffer b[B_COUNT] = {0};
    if (!PyArg_ParseTuple(args, "OLi(LLLLL)w*w*y*y*y*y*w*w*w*:layer_begin", &capsule, &layer, &threads,
                          &lanes, &layers, &kv_heads, &tokens, &head_dim, &b[0], &b[1], &b[2], &b[3], &b[4],
                          &b[5], &b[6], &b[7], &b[8]))
        return NULL;
    const struct held_program *held = program_of(capsule);
    int failed = !held || check_threads(threads);
    if (!failed) {
        const struct layer_arguments a = {
            .program = held->program,
            .cache = {held->program.dtype, lanes, layers, kv_heads, tokens, head_dim, b[B_CACHE].buf},
            .layer = layer,
            .rows = b[B_LANES].len / 8,
            .hidden = b[B_HIDDEN].buf,
            .cosine = b[B_COSINE].buf,
            .sine = b[B_SINE].buf,
            .lanes = b[B_LANES].buf,
            .positions = b[B_POSITIONS].buf,
            .normalised = b[B_NORMALISED].buf,
            .index = b[B_INDEX].buf,
            .weights = b[B_WEIGHTS].buf,
            .threads = threads,
        };
        failed = layer_check(&a, b);
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            failed = layer_begin(&a);
            Py_END_ALLOW_THREADS
            if (failed) PyErr_NoMemory();
        }
    }
    release_buffers(b, B_COUNT);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* The gated FFN of all rows: an expert that all of them are routed to. Returns 0, or -1 when out of memory.
 */
static int layer_shared(const struct held_program *h, int64_t rows, const void *x, void *out, int threads) {
    const struct layer_program *p = &h->program;
    const int64_t offset = 0;
    int16_t *index = calloc((size_t)rows, sizeof *index);
    float *weights = malloc((size_t)rows * sizeof *weights);
    int failed = !index || !weights;
    for (int64_t row = 0; row < rows && !failed; row++) weights[row] = 1;
    const struct ffn_arguments a = {
        .isa = p->isa,
        .shape = h->ffn,
        .rows = rows,
        .top_k = 1,
        .experts = 1,
        .block = h->ffn_weights,
        .offsets = &offset,
        .hidden_dtype = p->dtype,
        .hidden_states = x,
        .expert_index = index,
        .expert_weight = weights,
        .out_dtype = p->dtype,
        .out = out,
        .threads = threads,
    };
    failed = failed || gated_ffn(&a);
    if (!failed && h->ffn_gate) p->dense->gate_rows(p->dtype, rows, p->hidden_size, h->ffn_gate, x, out);
    free(index);
    free(weights);
    return failed ? -1 : 0;
}

PyDoc_STRVAR(layer_shared_doc,
             "layer_shared(program, threads, rows, normalised, out)\n\n"
             "Writes the gated FFN of the rows, times its gate if there is one, to out.\n"
             "Buffers must be contiguous and aligned, and must not change during the call, which releases\n"
             "the interpreter lock.\n"
             "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *layer_shared_call(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *capsule;
    int threads;
    long long rows;
    Py_buffer b[2] = {0};
    if (!PyArg_ParseTuple(args, "OiLy*w*:layer_shared", &capsule, &threads, &rows, &b[0], &b[1])) return NULL;
    const struct held_program *held = program_of(capsule);
    int failed =
        !held || check_threads(threads) || check_size(rows, 1) || check_size(held->ffn.hidden_size, 1);
    if (!failed) {
        const int64_t size = nbytes_of(held->program.dtype), nbytes = rows * held->ffn.hidden_size * size;
        failed = check_buffer("normalised", &b[0], nbytes, size) || check_buffer("out", &b[1], nbytes, size);
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            failed = layer_shared(held, rows, b[0].buf, b[1].buf, threads);
            Py_END_ALLOW_THREADS
            if (failed) PyErr_NoMemory();
        }
    }
    release_buffers(b, 2);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* hidden += residual * norm(routed + shared). Returns 0, or -1 when out of memory. */
static int layer_add_experts(const struct layer_program *p, enum dtype routed_dtype, int64_t values,
                             void *hidden, const void *routed, const void *shared) {
    if (!p->ffn_output_norm) {
        p->dense->add_experts(p->dtype, routed_dtype, values, p->residual, hidden, routed, shared);
        return 0;
    }
    char *sum = calloc((size_t)values + 1, (size_t)nbytes_of(p->dtype));
    if (!sum) return -1;
    p->dense->add_experts(p->dtype, routed_dtype, values, 1, sum, routed, shared);
    p->dense->rms_norm(p->dtype, values / p->hidden_size, p->hidden_size, sum, p->ffn_output_norm, p->epsilon,
                       sum);
    p->dense->add_experts(p->dtype, p->dtype, values, p->residual, hidden, sum, NULL);
    free(sum);
    return 0;
}

PyDoc_STRVAR(
    layer_end_doc,
    "layer_end(program, hidden, routed_dtype, routed, shared)\n\n"
    "Adds the outputs of the routed experts, f32 or in the program's dtype, and of the gated FFN to\n"
    "the rows in `hidden`. Each may be None. Buffers must be contiguous and aligned.\n"
    "Raises ValueError for arguments that do not fit together, MemoryError when out of memory.");

static PyObject *layer_end_call(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *capsule;
    const char *name;
    enum dtype routed;
    Py_buffer b[3] = {0};
    if (!PyArg_ParseTuple(args, "Ow*sz*z*:layer_end", &capsule, &b[0], &name, &b[1], &b[2])) return NULL;
    const struct held_program *held = program_of(capsule);
    int failed = !held || parse_dtype(name, &routed);
    if (!failed) {
        const struct layer_program *p = &held->program;
        const int64_t size = nbytes_of(p->dtype), values = b[0].len / size;
        failed =
            check_dtypes(p->dtype, p->dtype, routed) || check_buffer("hidden", &b[0], values * size, size) ||
            check_buffer("routed", &b[1], b[1].buf ? values * nbytes_of(routed) : 0, nbytes_of(routed)) ||
            check_buffer("shared", &b[2], b[2].buf ? values * size : 0, size);
        failed = failed || check_size(values % p->hidden_size ? 0 : 1, 1);
        if (!failed && layer_add_experts(p, routed, values, b[0].buf, b[1].buf, b[2].buf)) {
            PyErr_NoMemory();
            failed = 1;
        }
    }
    release_buffers(b, 3);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

#endif
