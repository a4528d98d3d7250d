/* The instruction sets of this build.
 *
 * To add one, choose a NAME (a C identifier) and write isa/NAME.h, with avx2.h as the example. It defines:
 *
 * - TARGET_NAME: the attribute that makes the compiler use the instruction set,
 * - enum { NAME_MAX_ROWS = ..., NAME_BF16 = ... }: the most rows of a panel, as many as keep their sums in
 *   registers (with narrow vectors, compute a tile in parts), and how a panel has bfloat16 values,
 * - NAME_runs_here(): whether this machine has the instruction set,
 * - NAME_f32(), NAME_bf16() and NAME_TYPE() of FOR_EACH_QUANTISED: the tile products, as `tile_product` in
 *   layout.h requires.
 *
 * Then include it below and put NAME into FOR_EACH_ISA, both in the branch of its architecture, before those
 * that `make bench-kernels` shows to be slower. Nothing else has to change: all other code is plain C, which
 * the macros here (and in control_plane/engine/kernels/csrc/dense_isa.h, for attention and norms) compile
 * once per instruction set. `available_isas()` in Python then lists NAME, and the tests run each kernel in
 * that list against torch and against the NumPy kernel. */

#ifndef FAASMOE_ISA_H
#define FAASMOE_ISA_H

#include "../activations.h"
#include "../layout.h"
#include "c.h"
#if defined(__x86_64__)
#include "amx.h"
#include "avx2.h"
#include "avx512.h"
#include "avx_vnni.h"
#elif defined(__aarch64__)
#include "neon.h"
#include "neon_dotprod.h"
#include "neon_i8mm.h"
#endif

/* DO(NAME) for each instruction set, fastest first. */
#if defined(__x86_64__)
#define FOR_EACH_ISA(DO) DO(amx) DO(avx512) DO(avx_vnni) DO(avx2) DO(c)
#elif defined(__aarch64__)
#define FOR_EACH_ISA(DO) DO(neon_i8mm) DO(neon_dotprod) DO(neon) DO(c)
#else
#define FOR_EACH_ISA(DO) DO(c)
#endif

#define MAX_PANEL_ROWS 16 /* the size of buffers for one product */

struct isa {
    const char *name;
    int (*runs_here)(void);
    int max_rows; /* of a panel */
    enum bf16_panel bf16;
    tile_product product[DTYPES]; /* by enum dtype */
    void (*activate)(const struct activation *a, int rows, const float *product, float *out, int64_t stride);
    void (*encode)(enum dtype dtype, int64_t count, const float *x, struct encoded_row *row);
};

/* Plain C that GCC vectorises for the instruction set of TARGET: always-inlined bodies take the target of the
 * function that they are inlined into. */
#define DEFINE_PLAIN_C(isa)                                                                             \
    _Static_assert(isa##_MAX_ROWS <= MAX_PANEL_ROWS, "raise MAX_PANEL_ROWS");                           \
    TARGET_##isa static void isa##_activate(const struct activation *a, int rows, const float *product, \
                                            float *out, int64_t stride) {                               \
        activate_tile(a, rows, product, out, stride);                                                   \
    }                                                                                                   \
    TARGET_##isa static void isa##_encode(enum dtype dtype, int64_t count, const float *x,              \
                                          struct encoded_row *row) {                                    \
        encode_row(dtype, (enum bf16_panel)isa##_BF16, count, x, row);                                  \
    }

#define ISA_ENTRY(isa)                                                                            \
    {#isa,                                                                                        \
     isa##_runs_here,                                                                             \
     isa##_MAX_ROWS,                                                                              \
     isa##_BF16,                                                                                  \
     {isa##_f32, isa##_bf16, isa##_int8, isa##_int4, isa##_int4_nl, isa##_mxfp4, isa##_int4_min}, \
     isa##_activate,                                                                              \
     isa##_encode},

FOR_EACH_ISA(DEFINE_PLAIN_C)

static const struct isa ISAS[] = {FOR_EACH_ISA(ISA_ENTRY)};

#define ISA_COUNT (sizeof ISAS / sizeof *ISAS)

#endif
