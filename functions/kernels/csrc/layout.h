/* The packed form of an expert, as packed_matrix.py and packed_expert.py define it, and the interface of a
 * tile product. */

#ifndef FAASMOE_LAYOUT_H
#define FAASMOE_LAYOUT_H

#include <stdint.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
/* A loop over a constant count. Fully unrolled, its index is a constant in every copy of the body, so arrays
 * of vectors that it indexes become registers. */
#define UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)

#define TILE_ROWS 32
#define HALF_TILE (TILE_ROWS / 2)
#define STEP_BYTES (4 * TILE_ROWS)
#define GROUP_VALUES 128 /* int8 activations that share a scale */
#define GROUP_STEPS (GROUP_VALUES / 4)

enum dtype { F32, BF16, INT8 };

static inline int64_t nbytes_of(enum dtype dtype) { return dtype == F32 ? 4 : dtype == BF16 ? 2 : 1; }

/* An expert may begin at any byte of the caller's buffer. The same bytes are read as floats or as dwords. */
typedef float __attribute__((aligned(1), may_alias)) packed_float;
typedef uint32_t __attribute__((aligned(1), may_alias)) packed_dword;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A packed matrix: tiles of [steps][TILE_ROWS] dwords. Positions are in bytes from the expert's start. */
struct matrix {
    enum dtype dtype;
    int64_t inputs, tiles, steps;
    int64_t weights, scales, end;
};

struct shape {
    int64_t hidden_size;
    struct matrix gate_up, down;
    int64_t nbytes;
};

static inline struct matrix matrix_at(int64_t start, enum dtype dtype, int64_t inputs, int64_t tiles) {
    const int64_t values_per_step = 4 / nbytes_of(dtype);
    struct matrix m = {.dtype = dtype, .inputs = inputs, .tiles = tiles};
    m.steps = ceil_div(inputs, values_per_step);
    m.weights = start;
    m.scales = start + tiles * m.steps * STEP_BYTES;
    m.end = m.scales + (dtype == INT8 ? tiles * TILE_ROWS * (int64_t)sizeof(float) : 0);
    return m;
}

static inline struct shape shape_of(enum dtype dtype, int64_t hidden_size, int64_t intermediate_size) {
    struct shape s = {.hidden_size = hidden_size};
    s.gate_up = matrix_at(0, dtype, hidden_size, ceil_div(intermediate_size, HALF_TILE));
    s.down = matrix_at(s.gate_up.end, dtype, intermediate_size, ceil_div(hidden_size, TILE_ROWS));
    s.nbytes = s.down.end;
    return s;
}

/* How many rows of a tile belong to a matrix of `outputs` rows: the last tile may be padded. */
static inline int64_t tile_width(int64_t outputs, int64_t tile) {
    const int64_t rest = outputs - tile * TILE_ROWS;
    return rest < TILE_ROWS ? rest : TILE_ROWS;
}

/* The activations of a few rows, interleaved in the order in which a tile product reads them. A dword holds
 * one float32, two bfloat16 (the first in the low half) or four int8 values; a dword of weights holds as
 * many, int8 weights as unsigned bytes, value + 128. int8 values share a scale per group of GROUP_STEPS
 * steps, of which the last may be short; a group's correction is where its integer sum starts, and takes the
 * 128 out again. */
struct panel {
    int rows;
    int64_t steps;
    const uint32_t *values;     /* [steps][rows] */
    const float *scales;        /* [groups][rows], int8 only */
    const int32_t *corrections; /* [groups][rows], int8 only */
    const uint8_t *prefetch;    /* weights to prefetch during the product, prefetch_bytes per step */
    int64_t prefetch_bytes;
};

/* Prefetches into the second-level cache. With six rows, that is a fifth faster than into the first level,
 * which holds the panel. */
ALWAYS_INLINE void panel_prefetch(const struct panel *x, int64_t step) {
    const uint8_t *line = x->prefetch + step * x->prefetch_bytes;
    __builtin_prefetch(line, 0, 2);
    __builtin_prefetch(line + 64, 0, 2);
}

/* product[rows][TILE_ROWS] = panel x one tile of weights. `scales` are the tile's row scales [TILE_ROWS],
 * int8 only. Each sum runs over the steps in order, so the result of a row does not depend on the panel's
 * other rows. An implementation handles every number of rows from 1 to its NAME_MAX_ROWS, writes all
 * TILE_ROWS floats of each row, reads weights unaligned, and calls `panel_prefetch` once per step. */
typedef void (*tile_product)(const struct panel *x, const uint8_t *weights, const packed_float *scales,
                             float *product);

#endif
