"""Tensors of a GGUF file, in float32, bf16 or Q8_0."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.checkpoint.tensors.tensor import Tensor
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16

BLOCK_VALUES = 32
BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", BLOCK_VALUES)])
"""A block of Q8_0: 32 values with one scale."""
F32, BF16, Q8_0 = "F32", "BF16", "Q8_0"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file, which concatenates one or more tensors of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    sources: Sequence[Tensor]
    kind: str
    """F32, BF16 or Q8_0."""

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        size = math.prod(self.shape)
        if self.kind == Q8_0:
            return size // BLOCK_VALUES * BLOCK.itemsize
        return {F32: 4, BF16: 2}[self.kind] * size

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The tensor's contents in the file, in pieces."""
        for source in self.sources:
            for chunk in source.chunks():
                yield self._stored(chunk)

    def _stored(self, chunk: NDArray[Any]) -> NDArray[Any]:
        is_bf16 = chunk.dtype == np.uint16
        if self.kind == BF16:
            return chunk if is_bf16 else f32_to_bf16(chunk)
        values = bf16_to_f32(chunk) if is_bf16 else chunk
        return quantize(values) if self.kind == Q8_0 else values


def quantize(values: NDArray[np.float32]) -> NDArray[Any]:
    """Quantize values [n] to Q8_0 blocks [n / 32]. n must be a multiple of 32."""
    rows = values.reshape(-1, BLOCK_VALUES)
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    blocks = np.empty(len(rows), BLOCK)
    blocks["scale"] = scale
    blocks["values"] = np.rint(rows * inverse[:, None])
    return blocks
