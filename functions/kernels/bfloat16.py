"""Converts bfloat16 numbers. NumPy has no such type, so arrays hold their bits as uint16."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def bf16_to_f32(bits: NDArray[np.uint16]) -> Float32:
    """Convert bfloat16 bits of any shape to float32 values, exactly."""
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def as_f32(values: NDArray[Any]) -> Float32:
    """float32 values, or the bits of bfloat16 values, as float32."""
    return bf16_to_f32(values) if values.dtype == np.uint16 else values


def f32_to_bf16(values: Float32) -> NDArray[np.uint16]:
    """Convert float32 values of any shape to bits of the nearest bfloat16, ties to even. NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    rounded[np.isnan(values)] = 0x7FC0
    return rounded.astype(np.uint16)
