/* The packed form of weights, as packed_types.py, packed_matrix.py and packed_expert.py define it, and the
 * interface of a tile product. This file is the only one that knows the sizes of the types. */

#ifndef FAASMOE_LAYOUT_H
#define FAASMOE_LAYOUT_H

#include <stdint.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
/* A loop over a constant count. Fully unrolled, its index is a constant in every copy of the body, so arrays
 * of vectors that it indexes become registers. */
#define UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)
/* A loop that stays a loop. Unrolled, GCC would load many activations early, and spill them. */
#define ROLLED(i, count) _Pragma("GCC unroll 1") for (int i = 0; i < (count); i++)

#define TILE_ROWS 32
#define HALF_TILE (TILE_ROWS / 2)
#define STEP_BYTES (4 * TILE_ROWS)
/* Quantised weights and the activations that they are multiplied with have scales by groups along the
 * inputs. */
#define GROUP_VALUES 32
#define GROUP_STEPS (GROUP_VALUES / 4)
#define GROUP_PAIRS (GROUP_VALUES / 2) /* of bfloat16 */
#define PAIR_STEPS (GROUP_STEPS / 2)   /* 4-bit codes: a dword of packed weights has those of two steps */
#define SUPER_GROUP 8                  /* groups of int4_min that share float16 factors */
#define CHUNK_STEPS 64 /* of a tile: they stay in the first-level cache, and what they are decoded to */
#define CHUNK_GROUPS (CHUNK_STEPS / GROUP_STEPS)

/* From INT8 on, the types are quantised. */
enum dtype { F32, BF16, INT8, INT4, INT4_NL, MXFP4, INT4_MIN };
#define DTYPES 7
/* DO(NAME, TYPE) for each quantised type. */
#define FOR_EACH_QUANTISED(DO) \
    DO(int8, INT8) DO(int4, INT4) DO(int4_nl, INT4_NL) DO(mxfp4, MXFP4) DO(int4_min, INT4_MIN)

static inline int is_quantised(enum dtype dtype) { return dtype >= INT8; }

/* The size of an activation. */
static inline int64_t nbytes_of(enum dtype dtype) { return dtype == F32 ? 4 : 2; }

/* What makes the signed value of a code an unsigned byte, as small as possible. int4_min has no signed
 * values. */
static inline int32_t zero_of(enum dtype dtype) {
    return dtype == INT4_MIN ? 0 : dtype == INT4 ? 8 : dtype == MXFP4 ? 12 : 128;
}

/* The values of the 4-bit codes that are not linear: those of GGUF's IQ4_NL, and twice those of OCP's e2m1,
 * whose scales are halved in return. */
static const int8_t CODE_VALUES[DTYPES][16] = {
    [INT4_NL] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
    [MXFP4] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
};

/* What an expert computes between its products, as activation.py defines it: f(gate) * (up + up_offset), or
 * f(up) without a gate. */
enum activation_function { SILU, GELU_TANH, GELU, RELU, RELU2 };
#define ACTIVATION_FUNCTIONS 5

struct activation {
    enum activation_function function;
    int gated;
    float limit; /* of gates, and of the absolute values of ups; INFINITY for none */
    float alpha; /* of SILU only */
    float up_offset;
};

/* An expert may begin at any byte of the caller's buffer. The same bytes are read as floats or as dwords. */
typedef float __attribute__((aligned(1), may_alias)) packed_float;
typedef uint32_t __attribute__((aligned(1), may_alias)) packed_dword;
typedef uint16_t __attribute__((aligned(1), may_alias)) packed_half;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A packed matrix: tiles, one after the other. A tile of floats is [steps][TILE_ROWS] dwords. A tile of a
 * quantised type is a sequence of groups, each with its codes and then its scales:
 *
 *     int8                  uint8 [8 steps][32 rows][4], value + 128; float16 scales [32 rows]
 *     int4, int4_nl, mxfp4  uint8 [4 pairs of steps][32 rows][4], the first step in the low halves; scales
 *                           [32 rows], float16 (bfloat16 for mxfp4)
 *     int4_min              as int4, then uint8 scales [32 rows] and uint8 minima [32 rows]. Float16 factors
 *                           of the scales [32 rows] and of the minima [32 rows] come before every 8 groups.
 *
 * Positions are in bytes from the expert's start. */
struct matrix {
    enum dtype dtype;
    int64_t inputs, tiles, steps;
    int64_t weights, tile_bytes, end;
    int64_t biases; /* float [tiles][TILE_ROWS]; 0: none */
};

struct shape {
    int64_t hidden_size;
    struct activation activation;
    struct matrix gate_up, down; /* gate_up of an expert without a gate: up alone */
    int64_t nbytes;
};

static inline int64_t group_bytes(enum dtype dtype) {
    const int64_t codes = (dtype == INT8 ? GROUP_STEPS : PAIR_STEPS) * STEP_BYTES;
    return codes + 2 * TILE_ROWS;
}

/* The bytes of the first `steps` steps of a tile. Those of a quantised type must be whole groups. */
static inline int64_t bytes_of_steps(enum dtype dtype, int64_t steps) {
    if (!is_quantised(dtype)) return steps * STEP_BYTES;
    const int64_t groups = steps / GROUP_STEPS;
    const int64_t factors = dtype == INT4_MIN ? ceil_div(groups, SUPER_GROUP) * 4 * TILE_ROWS : 0;
    return groups * group_bytes(dtype) + factors;
}

static inline struct matrix matrix_at(int64_t start, enum dtype dtype, int64_t inputs, int64_t tiles) {
    struct matrix m = {.dtype = dtype, .inputs = inputs, .tiles = tiles};
    if (is_quantised(dtype))
        m.steps = ceil_div(inputs, GROUP_VALUES) * GROUP_STEPS;
    else
        m.steps = dtype == F32 ? inputs : ceil_div(inputs, 2);
    m.weights = start;
    m.tile_bytes = bytes_of_steps(dtype, m.steps);
    m.end = start + tiles * m.tile_bytes;
    return m;
}

/* How many inputs of down a tile of gate_up gives. */
static inline int64_t activated_width(const struct activation *a) { return a->gated ? HALF_TILE : TILE_ROWS; }

static inline struct shape shape_of(enum dtype gate_up, enum dtype down, int64_t hidden_size,
                                    int64_t intermediate_size, struct activation activation, int has_bias) {
    struct shape s = {.hidden_size = hidden_size, .activation = activation};
    const int64_t tiles = ceil_div(intermediate_size, activated_width(&activation));
    s.gate_up = matrix_at(0, gate_up, hidden_size, tiles);
    s.down = matrix_at(s.gate_up.end, down, intermediate_size, ceil_div(hidden_size, TILE_ROWS));
    s.nbytes = s.down.end;
    if (has_bias) {
        const int64_t tile_bytes = TILE_ROWS * sizeof(float);
        s.gate_up.biases = s.down.end;
        s.down.biases = s.gate_up.biases + s.gate_up.tiles * tile_bytes;
        s.nbytes = s.down.biases + s.down.tiles * tile_bytes;
    }
    return s;
}

/* How many rows of a tile belong to a matrix of `outputs` rows: the last tile may be padded. */
static inline int64_t tile_width(int64_t outputs, int64_t tile) {
    const int64_t rest = outputs - tile * TILE_ROWS;
    return rest < TILE_ROWS ? rest : TILE_ROWS;
}

/* How panels have the activations of bfloat16 weights. */
enum bf16_panel { BF16_FLOATS, BF16_PAIRS, BF16_GROUPS };

/* A group of a quantised tile, decoded. */
struct decoded_group {
    _Alignas(64) int8_t values[GROUP_STEPS][TILE_ROWS][4];
    float scales[TILE_ROWS], minima[TILE_ROWS];
};

/* What the products of a tile share: chunk by chunk, each with one panel after the other. */
struct tile_work {
    int rows;              /* of the first panel; no other has more */
    int is_first, is_last; /* whether a product is the first or the last of all */
    int is_decoded;        /* whether another panel has decoded the chunk */
    struct decoded_group decoded[CHUNK_GROUPS];
};

/* The activations of a few rows, interleaved in the order in which a tile product reads them. A dword holds
 * as many values as one of weights: one float32, two bfloat16 (the first in the low half) or four int8
 * values. Those of quantised weights are [groups][rows][GROUP_STEPS]; int8 values have a scale for each
 * group. Those of float weights are [steps][rows]; of bfloat16, an instruction set without products has two
 * dwords of float32 for a step, and one with products of matrices has [groups][rows][GROUP_PAIRS]. */
struct panel {
    int rows;
    const uint32_t *values;
    const float *scales;        /* [groups][rows], quantised weights only */
    const int32_t *corrections; /* [groups][rows]: what takes zero_of(dtype) out of the sum of a group */
    const float *sums; /* [groups][rows]: the group's sum times its scale, for the minima of int4_min */
    struct tile_work *work;
    const uint8_t *prefetch; /* weights to prefetch during the product, prefetch_bytes per 8 steps */
    int64_t prefetch_bytes;
};

/* Prefetches into the second-level cache. With six rows, that is a fifth faster than into the first level,
 * which holds the panel. */
ALWAYS_INLINE void panel_prefetch(const struct panel *x, int64_t group) {
    const uint8_t *lines = x->prefetch + group * x->prefetch_bytes;
    for (int64_t i = 0; i < x->prefetch_bytes; i += 64) __builtin_prefetch(lines + i, 0, 2);
}

/* product[rows][TILE_ROWS] += panel x a chunk of one tile of weights, which begins at `weights`: CHUNK_STEPS
 * steps, or the last of the tile. Each sum runs over the steps or groups in order, so the result of a row
 * depends neither on the panel's other rows nor on the cuts of a tile. An implementation handles every number
 * of rows from 1 to its NAME_MAX_ROWS, reads weights unaligned, and calls `panel_prefetch` for every 8 steps.
 */
typedef void (*tile_product)(const struct panel *x, const uint8_t *weights, int64_t steps, float *product);

#endif
