"""Products of activations with packed weights in NumPy: the specification of the kernels in C.

Activations are converted for the weights' type. f32 takes them as they are, and bf16 rounds them to bfloat16.
The quantised types round groups of 32 activations to multiples of absmax / 127 of the group, ties to even: a
code from -127 to 127 and a float32 scale. A sum of products of codes is exact, and a row's result is the sum
over the groups, in their order, of the float32 terms

    (code sum) * (scale of the weights * scale of the activations)
    - (sum of the activations' codes) * (minimum of the weights * scale of the activations)
"""

from typing import NamedTuple

import numpy as np

from .bfloat16 import Float32, bf16_to_f32, f32_to_bf16
from .packed_matrix import LinearShape, quantised_matrix, unpack_matrix
from .packed_tiles import Bytes
from .packed_types import GROUP_VALUES


class QuantisedActivations(NamedTuple):
    """Rows of activations in groups of 32; zeros fill the last group."""

    codes: Float32
    """Whole numbers, [groups, T, 32]"""
    scales: Float32
    """[groups, T]"""


def product(shape: LinearShape, packed: Bytes, x: Float32) -> Float32:
    """x W^T for activations x [T, K] and the packed matrix W [N, K]: float32 [T, N]."""
    if not shape.type.is_quantised:
        operand = bf16_to_f32(f32_to_bf16(x)) if shape.dtype == "bf16" else x
        plain: Float32 = operand @ unpack_matrix(shape, packed).T
        return plain
    matrix, operands = quantised_matrix(shape, packed), quantise_activations(x)
    out = np.zeros((len(x), shape.outputs), np.float32)
    for group, (codes, scale) in enumerate(zip(*operands, strict=True)):
        # Sums of whole numbers below 2^24 are exact in float32, in whichever order they are added up.
        sums = codes @ matrix.codes[:, group].T
        out += sums * (matrix.scales[:, group] * scale[:, None])
        if matrix.minima is not None:
            out -= codes.sum(axis=1)[:, None] * (matrix.minima[:, group] * scale[:, None])
    return out


def quantise_activations(x: Float32) -> QuantisedActivations:
    """Activations [T, K] as quantised types multiply them. Groups with a denormal scale become zeros."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP_VALUES)))
    count = padded.shape[1] // GROUP_VALUES
    groups = padded.reshape(len(x), count, GROUP_VALUES).swapaxes(0, 1)
    scales: Float32 = np.abs(groups).max(axis=2) / np.float32(127)
    scales[scales < np.finfo(np.float32).tiny] = 0
    divisor = scales[:, :, None]
    quotients = np.divide(groups, divisor, out=np.zeros_like(groups), where=divisor != 0)
    return QuantisedActivations(np.rint(quotients), scales)
