/* _scale_search: the search for the scales and minima of quantised weights as a Python module.
 *
 * scale_search.py is its public interface, and specifies what it computes (NumpyScaleSearch), to the last
 * bit: each row is a lane of its own, whose float32 operations happen in one order on every processor. So
 * the compiler must not contract products and sums (-ffp-contract=off). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>

enum { GROUP = 32, LANES = 16 };

/* A function has the instructions of the one that it is inlined in. */
#define INLINE inline __attribute__((always_inline))

/* One group of inputs of several rows. */
struct group {
    float weights[GROUP][LANES];
    const float *importance; /* [GROUP] */
};

/* The lines weight = scale * code + low of the rows. */
struct lines {
    float scale[LANES], low[LANES], error[LANES];
};

/* Sums over a group, each weighted by importance: of codes, their squares, and their products with weights.
 */
struct sums {
    float codes[LANES], squares[LANES], products[LANES];
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_ALL_PROCESSORS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_ALL_PROCESSORS
#endif

/* The nearest integer from first to last, ties to even; adding 1.5 * 2^23 rounds as rint does, in any lane.
 */
static INLINE float nearest(float quotient, float first, float last) {
    quotient = quotient > first ? quotient : first;
    quotient = quotient < last ? quotient : last;
    return (quotient + 12582912.0f) - 12582912.0f;
}

static INLINE float divided(float above, float below) { return below != 0 ? above / below : 0; }

static INLINE void sum_up(const struct group *g, const struct lines *line, float first, float last,
                          struct sums *s) {
    float by[LANES];
    for (int l = 0; l < LANES; l++) by[l] = divided(1, line->scale[l]);
    for (int l = 0; l < LANES; l++) s->codes[l] = s->squares[l] = s->products[l] = 0;
    for (int i = 0; i < GROUP; i++)
        for (int l = 0; l < LANES; l++) {
            const float weight = g->weights[i][l];
            const float code = nearest((weight - line->low[l]) * by[l], first, last);
            const float counted = g->importance[i] * code;
            s->codes[l] += counted;
            s->squares[l] += counted * code;
            s->products[l] += counted * weight;
        }
}

/* What does not depend on codes: the sums of importance, weights and squared weights. */
struct constants {
    float importance, weights[LANES], squares[LANES], least[LANES], largest[LANES];
};

static INLINE void sum_constants(const struct group *g, struct constants *c) {
    c->importance = 0;
    for (int l = 0; l < LANES; l++) c->weights[l] = c->squares[l] = c->least[l] = c->largest[l] = 0;
    for (int i = 0; i < GROUP; i++) {
        c->importance += g->importance[i];
        for (int l = 0; l < LANES; l++) {
            const float weight = g->weights[i][l], counted = g->importance[i] * weight;
            c->weights[l] += counted;
            c->squares[l] += counted * weight;
            c->least[l] = weight < c->least[l] ? weight : c->least[l];
            c->largest[l] = weight > c->largest[l] ? weight : c->largest[l];
        }
    }
}

/* Fit lines through the codes that are nearest on the present ones: with a minimum, or through zero. */
static INLINE void refit(const struct group *g, const struct constants *c, float first, float last,
                         int has_minima, struct lines *line) {
    struct sums s;
    sum_up(g, line, first, last, &s);
    for (int l = 0; l < LANES; l++) {
        const float spread = c->importance * s.squares[l] - s.codes[l] * s.codes[l];
        const float slope = divided(c->importance * s.products[l] - s.codes[l] * c->weights[l], spread);
        const float low = (c->weights[l] - slope * s.codes[l]) / c->importance;
        const int below = has_minima && spread > 0 && low < 0;
        line->scale[l] = below ? slope : divided(s.products[l], s.squares[l]);
        line->low[l] = below ? low : 0;
        line->error[l] = (c->squares[l] - line->scale[l] * s.products[l]) - line->low[l] * c->weights[l];
    }
}

/* The best lines of a group, of those that begin with each share of the range and are fitted again. */
static INLINE void search_group(const struct group *g, float first, float last, int has_minima,
                                const float *shares, int share_count, int rounds, struct lines *best) {
    struct constants c;
    sum_constants(g, &c);
    for (int l = 0; l < LANES; l++) best->scale[l] = best->low[l] = 0, best->error[l] = INFINITY;
    for (int n = 0; n < share_count; n++) {
        struct lines line;
        for (int l = 0; l < LANES; l++) {
            const float end = c.largest[l] > -c.least[l] ? c.largest[l] : c.least[l];
            const float low = has_minima ? c.least[l] * shares[n] : 0;
            const float range = has_minima ? c.largest[l] * shares[n] - low : end * shares[n];
            line.low[l] = low;
            line.scale[l] = range / (has_minima ? last : first);
        }
        for (int r = 0; r < rounds; r++) {
            refit(g, &c, first, last, has_minima, &line);
            for (int l = 0; l < LANES; l++) {
                const int better = line.error[l] < best->error[l];
                best->scale[l] = better ? line.scale[l] : best->scale[l];
                best->low[l] = better ? line.low[l] : best->low[l];
                best->error[l] = better ? line.error[l] : best->error[l];
            }
        }
    }
}

struct matrix {
    int64_t rows, groups;
    const float *weights;    /* [rows, groups, GROUP] */
    const float *importance; /* [groups, GROUP] */
    float *scales, *lows;    /* [rows, groups] */
};

static INLINE int lanes_from(const struct matrix *m, int64_t row) {
    return m->rows - row < LANES ? (int)(m->rows - row) : LANES;
}

static INLINE void read_group(const struct matrix *m, int64_t row, int64_t group, struct group *g) {
    const int lanes = lanes_from(m, row);
    g->importance = m->importance + group * GROUP;
    for (int l = 0; l < LANES; l++) {
        const float *weights = m->weights + ((row + (l < lanes ? l : 0)) * m->groups + group) * GROUP;
        for (int i = 0; i < GROUP; i++) g->weights[i][l] = weights[i];
    }
}

FOR_ALL_PROCESSORS
static void search(const struct matrix *m, float first, float last, int has_minima, const float *shares,
                   int share_count, int rounds) {
    for (int64_t row = 0; row < m->rows; row += LANES)
        for (int64_t group = 0; group < m->groups; group++) {
            struct group g;
            struct lines best;
            read_group(m, row, group, &g);
            search_group(&g, first, last, has_minima, shares, share_count, rounds, &best);
            for (int l = 0; l < lanes_from(m, row); l++) {
                m->scales[(row + l) * m->groups + group] = best.scale[l];
                m->lows[(row + l) * m->groups + group] = best.low[l];
            }
        }
}

FOR_ALL_PROCESSORS
static void encode(const float *weights, const float *scales, const float *lows, int64_t groups, float first,
                   float last, uint8_t *codes) {
    for (int64_t n = 0; n < groups; n++) {
        const float by = divided(1, scales[n]), low = lows[n];
        for (int64_t i = n * GROUP; i < (n + 1) * GROUP; i++)
            codes[i] = (uint8_t)(int)(nearest((weights[i] - low) * by, first, last) - first);
    }
}

enum { ARRAYS = 5 };

/* Release the buffers; returns None, or NULL with an exception if the arrays did not fit together. */
static PyObject *finish(Py_buffer *buffers, int failed) {
    for (int i = 0; i < ARRAYS; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
    if (!failed) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "the arrays do not fit together");
    return NULL;
}

static int matrix_of(const Py_buffer *b, struct matrix *m) {
    const int64_t number = b[2].len / (int64_t)sizeof(float);
    m->groups = b[1].len / (int64_t)(GROUP * sizeof(float));
    m->rows = m->groups ? number / m->groups : 0;
    m->weights = b[0].buf, m->importance = b[1].buf, m->scales = b[2].buf, m->lows = b[3].buf;
    return m->rows * m->groups != number || b[0].len != number * GROUP * (int64_t)sizeof(float) ||
           b[3].len != b[2].len;
}

static PyObject *search_call(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[ARRAYS] = {0};
    float first, last;
    int has_minima, rounds;
    if (!PyArg_ParseTuple(args, "y*y*w*w*y*ffpi:search", &b[0], &b[1], &b[2], &b[3], &b[4], &first, &last,
                          &has_minima, &rounds))
        return NULL;
    struct matrix m;
    const int failed = matrix_of(b, &m), share_count = (int)(b[4].len / (Py_ssize_t)sizeof(float));
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        search(&m, first, last, has_minima, b[4].buf, share_count, rounds);
        Py_END_ALLOW_THREADS
    }
    return finish(b, failed);
}

static PyObject *encode_call(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer b[ARRAYS] = {0};
    float first, last;
    if (!PyArg_ParseTuple(args, "y*y*y*w*ff:encode", &b[0], &b[1], &b[2], &b[3], &first, &last)) return NULL;
    const int64_t groups = b[1].len / (int64_t)sizeof(float), codes = groups * GROUP;
    const int failed =
        b[1].len != b[2].len || b[0].len != codes * (int64_t)sizeof(float) || b[3].len != codes;
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        encode(b[0].buf, b[1].buf, b[2].buf, groups, first, last, b[3].buf);
        Py_END_ALLOW_THREADS
    }
    return finish(b, failed);
}

static PyMethodDef methods[] = {
    {"search", search_call, METH_VARARGS, NULL},
    {"encode", encode_call, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_scale_search", .m_size = 0,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit__scale_search(void) { return PyModuleDef_Init(&module); }
