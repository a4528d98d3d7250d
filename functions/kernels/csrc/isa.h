/* The instruction sets that this build has, best first. */

#ifndef FAASMOE_ISA_H
#define FAASMOE_ISA_H

#include "activations.h"
#include "attend.h"
#include "layout.h"
#include "normalise.h"
#include "tiles_c.h"
#if defined(__x86_64__)
#include "tiles_avx2.h"
#include "tiles_avx512.h"
#endif

#define MAX_PANEL_ROWS 8 /* the largest max_rows below */

struct isa {
    const char *name;
    int (*runs_here)(void);
    int max_rows;            /* of a panel: as many as leave the registers room for weights */
    tile_product product[3]; /* by enum dtype */
    void (*swiglu)(int rows, const float *product, float *out, int64_t stride);
    void (*encode)(enum dtype dtype, int64_t count, const float *x, struct encoded_row *row);
    void (*rotate)(enum dtype dtype, int64_t heads, int64_t size, const void *x, int64_t start,
                   const void *cosine, const void *sine, int64_t angles, float *out);
    void (*attend)(enum dtype dtype, const struct attend *a);
    void (*rms_norm)(enum dtype dtype, int64_t rows, int64_t size, const char *x, const void *weight,
                     float epsilon, char *out);
};

#define ISA(name, max_rows)                  \
    {#name,                                  \
     name##_runs_here,                       \
     max_rows,                               \
     {name##_f32, name##_bf16, name##_int8}, \
     name##_swiglu,                          \
     name##_encode,                          \
     name##_rotate,                          \
     name##_attend,                          \
     name##_rms_norm}

static const struct isa ISAS[] = {
#if defined(__x86_64__)
    ISA(avx512, AVX512_MAX_ROWS),
    ISA(avx2, AVX2_MAX_ROWS),
#endif
    ISA(c, C_MAX_ROWS),
};

#define ISA_COUNT (sizeof ISAS / sizeof *ISAS)

#endif
