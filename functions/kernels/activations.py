"""Activations between matrix products, as the NumPy kernels compute them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32, bf16_to_f32


def as_f32(values: NDArray[Any]) -> Float32:
    """float32 values, or the bits of bfloat16 values, as float32."""
    return bf16_to_f32(values) if values.dtype == np.uint16 else values


def silu(values: Float32) -> Float32:
    """x / (1 + e^-x) of each value."""
    with np.errstate(over="ignore"):
        denominator: Float32 = 1 + np.exp(-values)
    return values / denominator
