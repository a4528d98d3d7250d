/* One step of a causal convolution along a sequence, each channel by itself. Plain C that dense_isa.h
 * compiles for each instruction set.
 *
 * A channel's state are its last inputs, as many as there are taps, the newest last. A step adds the new
 * input to them, of which the oldest goes, and sums them weighted. */

#ifndef FAASMOE_SHORT_CONVOLUTION_H
#define FAASMOE_SHORT_CONVOLUTION_H

#include <stdint.h>
#include <string.h>

#include "activations.h"
#include "elementwise.h"
#include "layout.h"

#define MOST_TAPS 256 /* and the products that are computed before they are summed */

struct convolution_step {
    int64_t channels, taps; /* 1 <= taps <= MOST_TAPS */
    const void *state;      /* [channels][taps], before the step */
    void *next;             /* the state after it; may be the same memory */
    const void *x;          /* [channels] */
    const void *weight;     /* [channels][taps] */
    const void *bias;       /* [channels] or NULL */
    int silu;               /* whether outputs are x * sigmoid(x) of the sums */
    void *out;              /* [channels] */
};

/* Writes the outputs of `count` channels from `start` on, of which the new state is known. Products first and
 * sums of them after, since loops over neighbours become vectors. */
ALWAYS_INLINE void convolve_channels(const enum dtype dtype, const int64_t taps,
                                     const struct convolution_step *s, int64_t start, int64_t count) {
    float products[MOST_TAPS], sums[MOST_TAPS];
    for (int64_t i = 0; i < count * taps; i++)
        products[i] =
            stored_value(dtype, s->weight, start * taps + i) * stored_value(dtype, s->next, start * taps + i);
    for (int64_t c = 0; c < count; c++) {
        float sum = s->bias ? stored_value(dtype, s->bias, start + c) : 0;
        for (int64_t t = 0; t < taps; t++) sum += products[c * taps + t];
        sums[c] = rounded(dtype, sum);
    }
    if (s->silu)
        for (int64_t c = 0; c < count; c++) sums[c] *= sigmoid(sums[c]);
    for (int64_t c = 0; c < count; c++) store_value(dtype, s->out, start + c, sums[c]);
}

ALWAYS_INLINE void convolve(const enum dtype dtype, const int64_t taps, const struct convolution_step *s) {
    const int64_t size = nbytes_of(dtype), values = s->channels * taps;
    memmove(s->next, (const char *)s->state + size, (size_t)((values - 1) * size));
    for (int64_t c = 0; c < s->channels; c++)
        store_value(dtype, s->next, (c + 1) * taps - 1, stored_value(dtype, s->x, c));
    const int64_t at_once = MOST_TAPS / taps;
    int64_t c = 0;
    for (; c + at_once <= s->channels; c += at_once) convolve_channels(dtype, taps, s, c, at_once);
    convolve_channels(dtype, taps, s, c, s->channels - c);
}

/* Constants let the compiler unroll the usual sizes. */
ALWAYS_INLINE void convolve_typed(const enum dtype dtype, const struct convolution_step *s) {
    if (s->taps == 4)
        convolve(dtype, 4, s);
    else if (s->taps == 3)
        convolve(dtype, 3, s);
    else
        convolve(dtype, s->taps, s);
}

ALWAYS_INLINE void short_convolution(enum dtype dtype, const struct convolution_step *s) {
    if (dtype == BF16)
        convolve_typed(BF16, s);
    else
        convolve_typed(F32, s);
}

#endif
