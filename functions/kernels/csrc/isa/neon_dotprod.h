/* Tile products for ARM's NEON with the dot product instructions (Cortex-A55 and A75, Neoverse N1, and
 * later). */

#ifndef FAASMOE_ISA_NEON_DOTPROD_H
#define FAASMOE_ISA_NEON_DOTPROD_H

#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "neon.h"

#define TARGET_neon_dotprod __attribute__((target("arch=armv8.2-a+dotprod")))

enum { neon_dotprod_MAX_ROWS = NEON_MAX_ROWS, neon_dotprod_BF16 = BF16_FLOATS };

/* As neon_dot(), in one instruction. */
TARGET_neon_dotprod ALWAYS_INLINE int32x4_t neon_dotprod_dot(int32x4_t dot, int8x16_t w, int8x16_t v) {
    return vdotq_s32(dot, w, v);
}

NEON_DOTS(neon_dotprod)
NEON_PRODUCTS(neon_dotprod)

static int neon_dotprod_runs_here(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

#endif
