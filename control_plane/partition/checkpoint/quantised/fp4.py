"""Matrices of four-bit floats (E2M1) with a scale for each group of a row: mxfp4 and nvfp4.

Two codes share a byte, the first in its low half. The scales of mxfp4 are powers of two for 32 values, those
of nvfp4 eight-bit floats for 16, which a number for the whole matrix divides.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.checkpoint.quantised.floats import E2M1
from control_plane.partition.checkpoint.quantised.parts import MAX_COLUMNS, check_matrix, misfit, numbers
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor
from control_plane.partition.checkpoint.tensors.tensor import RowTensor
from functions.kernels.bfloat16 import Float32, f32_to_bf16
from functions.kernels.packed_tiles import Quantised
from functions.kernels.packed_types import GROUP_VALUES


@dataclass(frozen=True)
class Fp4Tensor(RowTensor):
    """Weights [..., N, K] of four bits."""

    codes: StoredTensor
    """Bytes, K/2 of each row."""
    scales: StoredTensor
    """One of each group of a row."""
    divisor: StoredTensor | None = None
    """The number by which all scales are divided."""

    @classmethod
    def make(
        cls,
        name: str,
        dtype: str,
        codes: StoredTensor,
        scales: StoredTensor,
        group_size: int,
        divisor: StoredTensor | None = None,
    ) -> "Fp4Tensor":
        """Codes [..., N, K/2], or [..., N, K/32, 16] as in gpt-oss; scales [..., N, K/group_size].

        Raises PartitionError for shapes that do not fit together.
        """
        check_matrix(codes, (2, 3, 4))
        nbytes = codes.size // max(1, math.prod(scales.shape[:-1]))
        shape = (*scales.shape[:-1], 2 * nbytes)
        groups = (*shape[:-1], shape[-1] // group_size)
        layouts = ((*shape[:-1], nbytes), (*groups, group_size // 2))
        fits = len(shape) > 1 and shape[-1] <= MAX_COLUMNS and codes.shape in layouts
        if not fits or scales.shape != groups:
            raise misfit(scales, f"the scales of groups of {group_size} for {codes.name} {list(codes.shape)}")
        return cls(name, codes.path, dtype, shape, codes, scales, divisor)

    @property
    def stored_type(self) -> str | None:
        return "mxfp4" if self._group_size == GROUP_VALUES else None

    @property
    def _group_size(self) -> int:
        return self.columns // self.scales.shape[-1]

    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        values = E2M1[self._codes(first, count)].reshape(count, -1, self._group_size)
        scales = self._scales(first, count)
        if self.divisor is not None:
            scales = scales / numbers(self.divisor, self.divisor.read_stored(0, 1))
        values *= scales[:, :, None]
        return values.reshape(count, self.columns)

    def read_quantised(self, first: int, count: int) -> Quantised | None:
        if self.stored_type is None:
            return None
        # The integers of packed weights are twice these floats.
        scales = self._scales(first, count) / np.float32(2)
        if not np.isfinite(scales).all():
            return None
        codes = self._codes(first, count).reshape(count, -1, GROUP_VALUES)
        return Quantised(codes, f32_to_bf16(scales))

    def _codes(self, first: int, count: int) -> NDArray[np.uint8]:
        """[count, K]"""
        nbytes = self.columns // 2
        stored = self.codes.read_stored(first * nbytes, count * nbytes).view(np.uint8).reshape(count, nbytes)
        return np.stack([stored & 15, stored >> 4], axis=2).reshape(count, -1)

    def _scales(self, first: int, count: int) -> Float32:
        """[count, K / group size]"""
        groups = self.scales.shape[-1]
        stored = self.scales.read_stored(first * groups, count * groups)
        return numbers(self.scales, stored).reshape(count, groups)
