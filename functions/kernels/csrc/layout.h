/* The packed form of an expert, as packing.py writes it, and the interface of a tile product. */

#ifndef FAASMOE_LAYOUT_H
#define FAASMOE_LAYOUT_H

#include <stdint.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
/* A loop of a constant number of rounds that leaves no loop behind. */
#define UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)

#define TILE_ROWS 32
#define HALF_TILE (TILE_ROWS / 2)
#define STEP_BYTES (4 * TILE_ROWS)
#define GROUP_VALUES 128 /* int8 activations that share a scale */
#define GROUP_STEPS (GROUP_VALUES / 4)

enum dtype { F32, BF16, INT8 };

/* Weights may lie anywhere in the caller's buffer, and be read as floats or as dwords. */
typedef float __attribute__((aligned(1), may_alias)) packed_float;
typedef uint32_t __attribute__((aligned(1), may_alias)) packed_dword;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A packed matrix: tiles of [steps][TILE_ROWS] dwords. Places are in bytes from the expert's start. */
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
    const int64_t values_per_step = dtype == F32 ? 1 : dtype == BF16 ? 2 : 4;
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

/* The activations of a few rows, interleaved in the order in which a tile product reads them. */
struct panel {
    int rows;
    int64_t steps;
    const uint32_t *values;     /* [steps][rows] */
    const float *scales;        /* [groups][rows], int8 only */
    const int32_t *corrections; /* [groups][rows], int8 only */
    const uint8_t *prefetch;    /* weights to fetch meanwhile, so many bytes a step */
    int64_t prefetch_bytes;
};

/* Into the second cache, not the first: six rows are a fifth faster for it. */
ALWAYS_INLINE void panel_prefetch(const struct panel *x, int64_t step) {
    const uint8_t *line = x->prefetch + step * x->prefetch_bytes;
    __builtin_prefetch(line, 0, 2);
    __builtin_prefetch(line + 64, 0, 2);
}

/* product[rows][TILE_ROWS] = panel x one tile of weights; int8 has the tile's row scales [TILE_ROWS] besides.
 * Each sum runs over the steps in order, so a row's result does not depend on the other rows of its panel. */
typedef void (*tile_product)(const struct panel *x, const uint8_t *weights, const packed_float *scales,
                             float *product);

#endif
