/* Attention, normalisation, recurrent states and routing for each instruction set in isa.h: plain C that is
 * compiled once for each. */

#ifndef FAASMOE_DENSE_ISA_H
#define FAASMOE_DENSE_ISA_H

#include "attend.h"
#include "delta_rule.h"
#include "elementwise.h"
#include "isa/isa.h"
#include "rms_norm.h"
#include "rotate.h"
#include "router.h"
#include "short_convolution.h"

/* The floats in a vector register. */
#define LANES_amx 16
#define LANES_avx512 16
#define LANES_avx_vnni 8
#define LANES_avx2 8
#define LANES_neon_i8mm 4
#define LANES_neon_dotprod 4
#define LANES_neon 4
#define LANES_c 4

struct dense_isa {
    void (*rotate)(enum dtype dtype, const struct rotation *r, int64_t heads, const void *x, int64_t start,
                   const void *cosine, const void *sine, int64_t angles, float *out);
    void (*attend)(enum dtype dtype, const struct attend *a);
    void (*rms_norm)(enum dtype dtype, int64_t rows, int64_t size, const char *x, const void *weight,
                     float epsilon, char *out);
    void (*choose_experts)(const struct router *r, float *scores, struct candidate *candidates,
                           int64_t *index, float *weights);
    void (*gate_rows)(enum dtype dtype, int64_t rows, int64_t size, const void *gate, const void *x,
                      void *out);
    void (*gate_heads)(enum dtype dtype, enum attention_gate function, int64_t heads, int64_t size,
                       int64_t gates, const void *gate, int64_t first_gate, void *values, int64_t first);
    void (*add_experts)(enum dtype dtype, enum dtype routed_dtype, int64_t count, float factor, void *hidden,
                        const void *routed, const void *shared);
    void (*delta_rule)(const struct delta_step *s);
    void (*short_convolution)(enum dtype dtype, const struct convolution_step *s);
};

#define DEFINE_DENSE(isa)                                                                                    \
    TARGET_##isa static void isa##_rotate(enum dtype dtype, const struct rotation *r, int64_t heads,         \
                                          const void *x, int64_t start, const void *cosine,                  \
                                          const void *sine, int64_t angles, float *out) {                    \
        rotate(dtype, r, heads, x, start, cosine, sine, angles, out);                                        \
    }                                                                                                        \
    TARGET_##isa static void isa##_attend(enum dtype dtype, const struct attend *a) {                        \
        if (dtype == BF16)                                                                                   \
            ATTEND_NAME(all, LANES_##isa)(BF16, a);                                                          \
        else                                                                                                 \
            ATTEND_NAME(all, LANES_##isa)(F32, a);                                                           \
    }                                                                                                        \
    TARGET_##isa static void isa##_rms_norm(enum dtype dtype, int64_t rows, int64_t size, const char *x,     \
                                            const void *weight, float epsilon, char *out) {                  \
        rms_norm(dtype, rows, size, x, weight, epsilon, out);                                                \
    }                                                                                                        \
    TARGET_##isa static void isa##_choose_experts(const struct router *r, float *scores,                     \
                                                  struct candidate *candidates, int64_t *index,              \
                                                  float *weights) {                                          \
        choose_experts(r, scores, candidates, index, weights);                                               \
    }                                                                                                        \
    TARGET_##isa static void isa##_gate_rows(enum dtype dtype, int64_t rows, int64_t size, const void *gate, \
                                             const void *x, void *out) {                                     \
        gate_rows(dtype, rows, size, gate, x, out);                                                          \
    }                                                                                                        \
    TARGET_##isa static void isa##_gate_heads(enum dtype dtype, enum attention_gate function, int64_t heads, \
                                              int64_t size, int64_t gates, const void *gate,                 \
                                              int64_t first_gate, void *values, int64_t first) {             \
        gate_heads(dtype, function, heads, size, gates, gate, first_gate, values, first);                    \
    }                                                                                                        \
    TARGET_##isa static void isa##_add_experts(enum dtype dtype, enum dtype routed_dtype, int64_t count,     \
                                               float factor, void *hidden, const void *routed,               \
                                               const void *shared) {                                         \
        add_experts(dtype, routed_dtype, count, factor, hidden, routed, shared);                             \
    }                                                                                                        \
    TARGET_##isa static void isa##_delta_rule(const struct delta_step *s) { delta_rule(s); }                 \
    TARGET_##isa static void isa##_short_convolution(enum dtype dtype, const struct convolution_step *s) {   \
        short_convolution(dtype, s);                                                                         \
    }

#define DENSE_ENTRY(isa)                                                                             \
    {isa##_rotate,     isa##_attend,      isa##_rms_norm,   isa##_choose_experts,   isa##_gate_rows, \
     isa##_gate_heads, isa##_add_experts, isa##_delta_rule, isa##_short_convolution},

FOR_EACH_ISA(DEFINE_DENSE)

/* In the order of ISAS. */
static const struct dense_isa DENSE_ISAS[] = {FOR_EACH_ISA(DENSE_ENTRY)};

static const struct dense_isa *dense_isa(const struct isa *isa) { return &DENSE_ISAS[isa - ISAS]; }

#endif
