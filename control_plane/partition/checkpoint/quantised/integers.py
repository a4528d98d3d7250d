"""Matrices of integers of 4 or 8 bits in groups of inputs, however a file packs their codes.

A weight is scale * (code - zero), with a scale and a zero of its row and group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.partition.checkpoint.quantised.carried import as_float16, carried, repeated
from control_plane.partition.checkpoint.tensors.tensor import CHUNK_VALUES, RowTensor
from functions.kernels.bfloat16 import Float32
from functions.kernels.packed_tiles import Quantised

Codes = NDArray[np.uint8]
ReadCodes = Callable[[int, int], Codes]
"""Reads the codes or zeros of some rows."""


@dataclass(frozen=True)
class IntegerTensor(RowTensor):
    """Weights [N, K] that are integers of 4 or 8 bits."""

    bits: int
    codes: ReadCodes
    """[count, K]"""
    scales: Callable[[int, int], Float32]
    """[count, G]"""
    zeros: ReadCodes | None
    """[count, G]; None for half of the codes' range."""
    groups: int
    is_symmetric: bool
    """Whether all zeros should be half of the codes' range."""
    order: Callable[[], NDArray[np.int64] | None]
    """Reads the group of each input; None for groups of inputs that follow each other."""

    @property
    def rows_at_once(self) -> int:
        # The transposed formats read all of a matrix for any of its rows.
        return max(1, 4 * CHUNK_VALUES // self.columns)

    @property
    def stored_type(self) -> str | None:
        if self.bits == 8:
            return "int8"
        return "int4" if self.is_symmetric else "int4_min"

    @property
    def _half(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def _group_size(self) -> int:
        return -(-self.columns // self.groups)

    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        order = self.order()
        values = self.codes(first, count).astype(np.float32)
        values -= self._half if self.zeros is None else self._by_input(self.zeros(first, count), order)
        values *= self._by_input(self.scales(first, count), order)
        return values

    def read_quantised(self, first: int, count: int) -> Quantised | None:
        if not self.is_symmetric or self.order() is not None:
            return None
        if self.zeros is not None and (self.zeros(first, count) != self._half).any():
            return None
        scales = as_float16(self.scales(first, count))
        # Packed codes are as far above their integers as these.
        return None if scales is None else carried(self.codes(first, count), scales, self._group_size)

    def _by_input(self, by_group: NDArray[Any], order: NDArray[np.int64] | None) -> NDArray[Any]:
        """[rows, G] as [rows, K]"""
        if order is not None:
            return by_group[:, order]
        return repeated(by_group, self._group_size, self.columns)
