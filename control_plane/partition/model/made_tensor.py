"""Tensors of a model, made of the rows of a checkpoint's tensors as an `Architecture` says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.tensor_file import Tensor
from control_plane.partition.model.architecture import DenseEntry, MatrixEntry, RowRange
from functions.kernels.bfloat16 import as_f32


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns] of an expert, in a tensor of the checkpoint: see `MatrixEntry`."""

    tensor: Tensor
    entry: MatrixEntry
    rows: int
    columns: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], entry: MatrixEntry, rows: int, columns: int) -> "Matrix":
        """Raises PartitionError for a matrix that reaches past the end of its tensor."""
        tensor = tensors.get(entry.tensor)
        if tensor is None:
            raise PartitionError(f"the checkpoint has no {entry.tensor}")
        matrix = cls(tensor, entry, rows, columns)
        if matrix._end > tensor.size:
            raise PartitionError(f"{tensor.path}: {tensor.name} is too small for its experts")
        return matrix

    def read(self) -> NDArray[Any]:
        """The values [rows, columns], as float32 or as uint16 with the bits of bf16."""
        row, step, column = self.entry.row, self.entry.step, self.entry.column
        if column is None:
            start = row * self.columns
            block = self.tensor.read(start, self._end - start).reshape(-1, self.columns)
            return block[::step]
        width = self.tensor.shape[-1]
        block = self.tensor.read(row * width, self.columns * width).reshape(self.columns, width)
        return np.ascontiguousarray(block[:, column : column + self._span : step].T)

    @property
    def _span(self) -> int:
        return (self.rows - 1) * self.entry.step + 1

    @property
    def _end(self) -> int:
        """The number of the tensor's values up to the last that belongs to the matrix."""
        if self.entry.column is None:
            return (self.entry.row + self._span) * self.columns
        within = self.entry.column + self._span <= self.tensor.shape[-1]
        return (self.entry.row + self.columns) * self.tensor.shape[-1] if within else self.tensor.size + 1


@dataclass(frozen=True)
class MadeTensor(Tensor):
    """A tensor that has ranges of other tensors' rows, one after the other."""

    pieces: tuple[tuple[Tensor, RowRange], ...]
    columns: int
    """Values of a row."""

    def read(self, start: int, count: int) -> NDArray[Any]:
        first, last = start // self.columns, -(-(start + count) // self.columns)
        rows = np.concatenate(list(self._read_rows(first, last)))
        begin = start - first * self.columns
        return rows.reshape(-1)[begin : begin + count]

    def _read_rows(self, first: int, last: int) -> Iterator[NDArray[Any]]:
        start = 0
        for tensor, part in self.pieces:
            begin, end = max(first - start, 0), min(last - start, part.count)
            if begin < end:
                row = part.first + begin * part.step
                count = (end - begin - 1) * part.step + 1
                block = tensor.read(row * self.columns, count * self.columns)
                rows = block.reshape(-1, self.columns)[:: part.step]
                yield rows if self.dtype == "BF16" else as_f32(rows)
            start += part.count


def made_tensor(name: str, entry: DenseEntry, tensors: Mapping[str, Tensor]) -> Tensor:
    """A tensor of the model by this name. Raises PartitionError if it does not fit to the checkpoint."""
    columns = entry.shape[-1] if len(entry.shape) > 1 else 1
    pieces = []
    for part in entry.rows:
        tensor = tensors.get(part.tensor)
        if tensor is None:
            raise PartitionError(f"the checkpoint has no {part.tensor}")
        if (part.first + (part.count - 1) * part.step + 1) * columns > tensor.size:
            raise PartitionError(f"{tensor.path}: {tensor.name} is too small for {name}")
        pieces.append((tensor, part))
    if not pieces:
        raise PartitionError(f"nothing makes {name}")
    (first, part), *others = pieces
    if not others and part.first == 0 and part.step == 1 and part.count * columns == first.size:
        return replace(first, name=name, shape=entry.shape)
    dtypes = {tensor.dtype for tensor, _ in pieces}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    return MadeTensor(name, first.path, dtype, entry.shape, tuple(pieces), columns)
