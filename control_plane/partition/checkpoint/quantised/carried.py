"""Brings codes and scales of quantised checkpoints into the form of packed weights, without loss."""

import numpy as np
from numpy.typing import NDArray

from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_tiles import Quantised
from functions.kernels.packed_types import GROUP_VALUES


def as_float16(scales: Float32) -> NDArray[np.float16] | None:
    """The scales as float16; None if that would round one of them."""
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16)
    return rounded if np.array_equal(rounded, scales) else None


def carried(codes: NDArray[np.uint8], scales: NDArray[np.float16], group_size: int) -> Quantised | None:
    """Codes [rows, K] with the scales [rows, G] of groups of that size.

    None if the groups cut those of packed weights.
    """
    rows, columns = codes.shape
    if group_size % GROUP_VALUES and group_size < columns:
        return None
    padding = -columns % GROUP_VALUES
    grouped = np.pad(codes, ((0, 0), (0, padding))).reshape(rows, -1, GROUP_VALUES)
    groups = grouped.shape[1]
    return Quantised(grouped, repeated(scales, -(-group_size // GROUP_VALUES), groups))


def repeated(scales: NDArray[np.floating], times: int, length: int) -> NDArray[np.floating]:
    """Each scale of [rows, G] as often as it is used, [rows, length]."""
    if scales.shape[1] == 1:
        return np.broadcast_to(scales, (len(scales), length))
    return np.repeat(scales, times, axis=1)[:, :length]
