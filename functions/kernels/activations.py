"""Activations before and after matrix products, as the NumPy kernels compute them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32, bf16_to_f32, f32_to_bf16

GROUP_VALUES = 128
"""Number of int8 activations that share a scale."""


def as_f32(values: NDArray[Any]) -> Float32:
    """float32 values, or the bits of bfloat16 values, as float32."""
    return bf16_to_f32(values) if values.dtype == np.uint16 else values


def as_operand(weight_dtype: str, activations: Float32) -> Float32:
    """The values of activations [T, K] that a product with weights of this dtype multiplies.

    bf16 rounds them to bfloat16. int8 rounds groups of 128 (the last may be shorter) along K to multiples of
    absmax / 127 of the group, ties to even.
    """
    if weight_dtype == "f32":
        return activations
    if weight_dtype == "bf16":
        return bf16_to_f32(f32_to_bf16(activations))
    starts = np.arange(0, activations.shape[1], GROUP_VALUES)
    absmax: Float32 = np.maximum.reduceat(np.abs(activations), starts, axis=1)
    scale = absmax / np.float32(127)
    scale[scale < np.finfo(np.float32).tiny] = 0
    per_value = np.repeat(scale, GROUP_VALUES, axis=1)[:, : activations.shape[1]]
    quotient = np.divide(activations, per_value, out=np.zeros_like(activations), where=per_value != 0)
    return np.rint(quotient, out=quotient) * per_value


def silu(values: Float32) -> Float32:
    """x / (1 + e^-x) of each value."""
    with np.errstate(over="ignore"):
        denominator: Float32 = 1 + np.exp(-values)
    return values / denominator
