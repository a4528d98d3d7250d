"""Tensors of a checkpoint that are read piece by piece, whatever form the file has them in."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.bfloat16 import as_f32
from functions.kernels.packed_tiles import Quantised

CHUNK_VALUES = 1 << 20
"""The most values that `Tensor.chunks` yields at a time."""


@dataclass(frozen=True)
class Tensor(ABC):
    """A tensor of a model. `dtype` is F32, F16 or BF16; `path` is its origin, for error messages.

    The dtype of a quantised tensor is that in which its model computes.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """The values of a row, which is along the last dimension."""
        return self.shape[-1] if self.shape else 1

    @abstractmethod
    def read(self, start: int, count: int) -> NDArray[Any]:
        """The `count` values from `start` on, as float32 or as uint16 with the bits of bf16.

        Raises PartitionError if they cannot be read.
        """

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """The `count` rows from `first` on, [count, columns]. The dimensions before the last count as one."""
        return self.read(first * self.columns, count * self.columns).reshape(count, self.columns)

    @property
    def stored_type(self) -> str | None:
        """The type of packed weights that is nearest to the form of the file, by its name.

        None for a tensor that is not quantised, or to which no type is near. See
        `functions.kernels.packed_types`.
        """
        return None

    def read_quantised(self, first: int, count: int) -> Quantised | None:
        """Rows like those of `rows`, in the `stored_type`; None if that type does not hold them without loss.

        Raises PartitionError if they cannot be read.
        """
        return None

    def packable_rows(self, first: int, count: int, dtype: str) -> NDArray[Any] | Quantised:
        """Rows to be packed as that type: what `read_quantised` or else `rows` returns."""
        quantised = self.read_quantised(first, count) if self.stored_type == dtype else None
        return self.rows(first, count) if quantised is None else quantised

    def chunks(self) -> Iterator[NDArray[Any]]:
        """All values in order, a few megabytes at a time, in the dtype that `read` returns."""
        for start in range(0, self.size, CHUNK_VALUES):
            yield self.read(start, min(CHUNK_VALUES, self.size - start))


class RowTensor(Tensor):
    """A tensor that can only be read by whole rows."""

    @property
    def rows_at_once(self) -> int:
        """The most rows that are read at a time, which bounds temporary memory."""
        return max(1, CHUNK_VALUES // self.columns)

    @abstractmethod
    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        """What `rows` returns, for at most `rows_at_once` rows."""

    def rows(self, first: int, count: int) -> NDArray[Any]:
        steps = range(first, first + count, self.rows_at_once)
        parts = [self._read_rows(row, min(self.rows_at_once, first + count - row)) for row in steps]
        return parts[0] if len(parts) == 1 else joined(parts, self.columns)

    def read(self, start: int, count: int) -> NDArray[Any]:
        first = start // self.columns
        last = -(-(start + count) // self.columns)
        skipped = start - first * self.columns
        return self.rows(first, last - first).reshape(-1)[skipped : skipped + count]


def common_type(types: Iterable[str | None]) -> str | None:
    """The type for matrices that are near to these; None if one of them is plain, or there is none."""
    found = set(types)
    if None in found or not found:
        return None
    # Eight bits hold codes of any type with little loss.
    return found.pop() if len(found) == 1 else "int8"


def joined(parts: list[NDArray[Any]], columns: int) -> NDArray[Any]:
    """Rows of several reads as one array; float32 if any of them is."""
    if len({part.dtype for part in parts}) > 1:
        parts = [as_f32(part) for part in parts]
    return np.concatenate(parts) if parts else np.empty((0, columns), np.float32)
