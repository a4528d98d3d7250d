/* The packed form of an expert, as packing.py writes it, and the operands of one tile product. */

#ifndef FAASMOE_LAYOUT_H
#define FAASMOE_LAYOUT_H

#include <stdint.h>

#define TILE_ROWS 32
#define HALF_TILE (TILE_ROWS / 2)
#define STEP_BYTES (4 * TILE_ROWS)
#define GROUP_VALUES 128 /* int8 activations that share a scale */
#define GROUP_STEPS (GROUP_VALUES / 4)

enum dtype { F32, BF16, INT8 };

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* One packed matrix: tiles of [steps][TILE_ROWS] dwords. Places are bytes from the expert's start. */
struct matrix {
    int64_t inputs, tiles, steps;
    int64_t weights, scales;
};

struct shape {
    enum dtype dtype;
    int64_t hidden_size;
    struct matrix gate_up, down;
    int64_t nbytes;
};

static inline struct matrix matrix_at(int64_t start, enum dtype dtype, int64_t inputs, int64_t tiles) {
    const int64_t values_per_step = dtype == F32 ? 1 : dtype == BF16 ? 2 : 4;
    const int64_t steps = ceil_div(inputs, values_per_step);
    return (struct matrix){inputs, tiles, steps, start, start + tiles * steps * STEP_BYTES};
}

static inline int64_t matrix_end(const struct matrix *m, enum dtype dtype) {
    return m->scales + (dtype == INT8 ? m->tiles * 4 * TILE_ROWS : 0);
}

static inline struct shape shape_of(enum dtype dtype, int64_t hidden_size, int64_t intermediate_size) {
    struct shape s = {.dtype = dtype, .hidden_size = hidden_size};
    s.gate_up = matrix_at(0, dtype, hidden_size, ceil_div(intermediate_size, HALF_TILE));
    s.down = matrix_at(matrix_end(&s.gate_up, dtype), dtype, intermediate_size, ceil_div(hidden_size, TILE_ROWS));
    s.nbytes = matrix_end(&s.down, dtype);
    return s;
}

/* Weights may lie anywhere in the caller's buffer, and hold any of the three dtypes. */
typedef float __attribute__((aligned(1), may_alias)) packed_float;
typedef uint32_t __attribute__((aligned(1), may_alias)) packed_dword;

/* The activations of a few rows, interleaved as a tile product reads them. */
struct panel {
    int rows;
    int64_t steps;
    const uint32_t *values;     /* [steps][rows] */
    const float *scales;        /* [groups][rows], int8 only */
    const int32_t *corrections; /* [groups][rows], int8 only: -128 * the sum of the group */
    const uint8_t *prefetch;
    int64_t prefetch_stride;
};

/* out[rows][TILE_ROWS] = panel x one tile of weights; int8 has the tile's row scales [TILE_ROWS] besides. */
typedef void (*tile_product)(const struct panel *x, const uint8_t *weights, const packed_float *scales, float *out);

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#endif
