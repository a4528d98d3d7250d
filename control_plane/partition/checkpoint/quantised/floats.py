"""The values of floats of eight and four bits, by their code.

E4M3 and E2M1 have four and two bits of exponent, three and one of mantissa; E8M0 is a power of two. They are
those of the OCP's specifications "8-bit Floating Point" (the variant without infinities) and "Microscaling
Formats".
"""

import numpy as np

from functions.kernels.bfloat16 import Float32


def _e4m3() -> Float32:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[codes & 127 == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


def _e8m0() -> Float32:
    return np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan))


E4M3 = _e4m3()
E8M0 = _e8m0()
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
