"""Matrices of eight-bit codes with a scale for each block of them: fp8 and int8.

The blocks of a matrix [N, K] are a grid [R, C]: 1 x 1 for one scale, N x 1 for one of each row, N/128 x K/128
for those of DeepSeek's models. Blocks at the ends may be smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.checkpoint.quantised.carried import as_float16, carried, repeated
from control_plane.partition.checkpoint.quantised.floats import E4M3
from control_plane.partition.checkpoint.quantised.parts import check_matrix, misfit, numbers, stored_rows
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor
from control_plane.partition.checkpoint.tensors.tensor import RowTensor
from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_tiles import Quantised

_INT8_OFFSET = 128
"""What is added to an int8 for its code in packed weights."""


@dataclass(frozen=True)
class ScaledTensor(RowTensor):
    """Weights [..., N, K] that are codes of F8_E4M3 or I8, times the scale of their block."""

    codes: StoredTensor
    scales: StoredTensor
    grid: tuple[int, int]
    """Rows and columns of scales of a matrix."""
    block: tuple[int, int]
    """Rows and columns of codes that share a scale."""

    @classmethod
    def make(
        cls, name: str, dtype: str, codes: StoredTensor, scales: StoredTensor, stated: Sequence[int]
    ) -> "ScaledTensor":
        """`stated` is the size of a block that config.json states; a grid of another size is divided evenly.

        Raises PartitionError for scales that do not fit the codes.
        """
        check_matrix(codes, (2, 3))
        grid = _grid(codes, scales)
        sizes = zip(codes.shape[-2:], grid, stated, strict=True)
        block = tuple(_block(length, count, size) for length, count, size in sizes)
        if 0 in block:
            raise misfit(scales, f"a grid of scales for {list(codes.shape)}")
        return cls(name, codes.path, dtype, codes.shape, codes, scales, grid, (block[0], block[1]))

    @property
    def stored_type(self) -> str | None:
        return "int8" if self.codes.dtype == "I8" else None

    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        stored = stored_rows(self.codes, first, count)
        values = E4M3[stored] if self.codes.dtype == "F8_E4M3" else stored.astype(np.float32)
        values *= repeated(self._scales(first, count), self.block[1], self.columns)
        return values

    def read_quantised(self, first: int, count: int) -> Quantised | None:
        scales = as_float16(self._scales(first, count))
        if self.codes.dtype != "I8" or scales is None:
            return None
        codes = stored_rows(self.codes, first, count).view(np.uint8) + np.uint8(_INT8_OFFSET)
        return carried(codes, scales, self.block[1] if self.grid[1] > 1 else self.columns)

    def _scales(self, first: int, count: int) -> Float32:
        """The scales of rows, [count, C]."""
        matrix, row = np.divmod(np.arange(first, first + count), self.shape[-2])
        grid_rows, columns = self.grid
        places = matrix * grid_rows + row // self.block[0]
        if self.scales.size == 1:
            places[:] = 0
        low, high = int(places[0]), int(places[-1]) + 1
        stored = self.scales.read_stored(low * columns, (high - low) * columns)
        scales: Float32 = numbers(self.scales, stored).reshape(-1, columns)[places - low]
        return scales


def _grid(codes: StoredTensor, scales: StoredTensor) -> tuple[int, int]:
    """The rows and columns of scales for a matrix of codes."""
    *leading, rows, _ = codes.shape
    if scales.size == 1:
        return 1, 1
    if scales.shape == tuple(leading):
        return 1, 1
    if scales.shape == (*leading, rows):
        return rows, 1
    if len(scales.shape) == len(codes.shape) and scales.shape[:-2] == tuple(leading):
        return scales.shape[-2], scales.shape[-1]
    raise misfit(scales, f"a grid of scales for {list(codes.shape)}")


def _block(length: int, count: int, stated: int) -> int:
    """The size of `count` blocks of that length together; 0 if there is none."""
    if count and math.ceil(length / stated) == count:
        return stated
    return length // count if count and length % count == 0 else 0
