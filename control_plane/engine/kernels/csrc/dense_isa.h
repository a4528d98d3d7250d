/* Attention and normalisation for each instruction set in isa.h: plain C that is compiled once for each. */

#ifndef FAASMOE_DENSE_ISA_H
#define FAASMOE_DENSE_ISA_H

#include "attend.h"
#include "isa/isa.h"
#include "rms_norm.h"

struct dense_isa {
    void (*rotate)(enum dtype dtype, int64_t heads, int64_t size, const void *x, int64_t start,
                   const void *cosine, const void *sine, int64_t angles, float *out);
    void (*attend)(enum dtype dtype, const struct attend *a);
    void (*rms_norm)(enum dtype dtype, int64_t rows, int64_t size, const char *x, const void *weight,
                     float epsilon, char *out);
};

#define DEFINE_DENSE(isa)                                                                                 \
    TARGET_##isa static void isa##_rotate(enum dtype dtype, int64_t heads, int64_t size, const void *x,   \
                                          int64_t start, const void *cosine, const void *sine,            \
                                          int64_t angles, float *out) {                                   \
        rotate(dtype, heads, size, x, start, cosine, sine, angles, out);                                  \
    }                                                                                                     \
    TARGET_##isa static void isa##_attend(enum dtype dtype, const struct attend *a) { attend(dtype, a); } \
    TARGET_##isa static void isa##_rms_norm(enum dtype dtype, int64_t rows, int64_t size, const char *x,  \
                                            const void *weight, float epsilon, char *out) {               \
        rms_norm(dtype, rows, size, x, weight, epsilon, out);                                             \
    }

#define DENSE_ENTRY(isa) {isa##_rotate, isa##_attend, isa##_rms_norm},

FOR_EACH_ISA(DEFINE_DENSE)

/* In the order of ISAS. */
static const struct dense_isa DENSE_ISAS[] = {FOR_EACH_ISA(DENSE_ENTRY)};

static const struct dense_isa *dense_isa(const struct isa *isa) { return &DENSE_ISAS[isa - ISAS]; }

#endif
