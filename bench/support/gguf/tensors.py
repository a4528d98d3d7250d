"""Tensors of a GGUF file, in float32, bf16, Q8_0, Q4_0 or MXFP4."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.bfloat16 import Float32, bf16_to_f32, f32_to_bf16

BLOCK_VALUES = 32
F32, BF16, Q8_0, Q4_0, MXFP4 = "F32", "BF16", "Q8_0", "Q4_0", "MXFP4"
BLOCKS = {
    Q8_0: np.dtype([("scale", "<f2"), ("values", "i1", 32)]),
    Q4_0: np.dtype([("scale", "<f2"), ("values", "u1", 16)]),
    MXFP4: np.dtype([("scale", "u1"), ("values", "u1", 16)]),
}
"""Blocks of 32 values with one scale. If they have four bits, the first 16 are in the low halves of bytes."""
_PLAIN_NBYTES = {F32: 4, BF16: 2}
_LARGEST_E2M1 = np.float32(6)
_BETWEEN_E2M1 = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
"""Half-way between the values of e2m1, which are 0, 0.5, 1, 1.5, 2, 3, 4 and 6."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """F32, BF16, or the name of a type of blocks."""
    pieces: Callable[[], Iterator[NDArray[Any]]]
    """Makes the values in order, as float32 or the bits of bf16, in pieces of whole blocks."""

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        size = math.prod(self.shape)
        if self.kind in BLOCKS:
            return size // BLOCK_VALUES * BLOCKS[self.kind].itemsize
        return _PLAIN_NBYTES[self.kind] * size

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The tensor's contents in the file, in pieces."""
        return (stored(piece.reshape(-1), self.kind) for piece in self.pieces())


def stored(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """Values [n], of float32 or the bits of bf16, as a file has them."""
    is_bf16 = values.dtype == np.uint16
    if kind == BF16:
        return values if is_bf16 else f32_to_bf16(values)
    numbers = bf16_to_f32(values) if is_bf16 else np.ascontiguousarray(values, np.float32)
    return numbers if kind == F32 else quantize(numbers, kind)


def quantize(values: Float32, kind: str) -> NDArray[Any]:
    """Quantize values [n] to blocks [n / 32]. n must be a multiple of 32."""
    rows = values.reshape(-1, BLOCK_VALUES)
    blocks = np.empty(len(rows), BLOCKS[kind])
    scale, blocks["values"] = {Q8_0: _q8_0, Q4_0: _q4_0, MXFP4: _mxfp4}[kind](rows)
    blocks["scale"] = scale
    return blocks


def _q8_0(rows: Float32) -> tuple[NDArray[Any], NDArray[Any]]:
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    return scale, np.rint(rows * _inverse(scale)[:, None])


def _q4_0(rows: Float32) -> tuple[NDArray[Any], NDArray[Any]]:
    """The value that is farthest from 0 becomes -8."""
    farthest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = farthest / np.float32(-8)
    codes = np.minimum(rows * _inverse(scale)[:, None] + np.float32(8.5), 15).astype(np.uint8)
    return scale, _halves(codes)


def _mxfp4(rows: Float32) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scale is the power of two that brings the largest value to between 4 and 8."""
    largest = np.abs(rows).max(axis=1)
    exponents = np.where(largest > 0, np.frexp(largest)[1] - 3, -127)
    scaled = np.ldexp(rows, -exponents[:, None])
    sizes = np.searchsorted(_BETWEEN_E2M1, np.minimum(np.abs(scaled), _LARGEST_E2M1).reshape(-1))
    codes = sizes.astype(np.uint8).reshape(rows.shape) | np.signbit(scaled).astype(np.uint8) << np.uint8(3)
    return (exponents + 127).astype(np.uint8), _halves(codes)


def _inverse(scale: Float32) -> Float32:
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _halves(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return codes[:, :16] | codes[:, 16:] << np.uint8(4)
