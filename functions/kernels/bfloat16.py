"""bfloat16 numbers as NumPy holds them, which has no such type: by their bits."""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def bf16_to_f32(bits: NDArray[np.uint16]) -> Float32:
    """The float32 values of bfloat16 numbers given by their bits. Exact; any shape."""
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def f32_to_bf16(values: Float32) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even. NaN stays NaN; any shape."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    rounded[np.isnan(values)] = 0x7FC0
    return rounded.astype(np.uint16)
