"""Tensors of a model, made of the rows of a checkpoint's tensors as an `Architecture` says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.tensors.tensor import Tensor, joined
from control_plane.partition.checkpoint.tensors.views import (
    GatheredRows,
    Indices,
    TransposedTensor,
    renamed,
)
from control_plane.partition.model.architecture import DenseEntry, MatrixEntry, RowRange
from functions.kernels.packed_tiles import Quantised


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
        tensor = _source(tensors, entry.tensor)
        if entry.column is not None and isinstance(tensor, TransposedTensor):
            # It is stored as the matrix is wanted.
            stored = tensor.source
            first = entry.row // columns * stored.shape[-2] + entry.column
            tensor, entry = stored, MatrixEntry(entry.tensor, first, entry.step)
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
        block = self.tensor.rows(row, self.columns)
        return np.ascontiguousarray(block[:, column : column + self._span : step].T)

    def packable(self, dtype: str) -> NDArray[Any] | Quantised:
        """What is packed as that type: the values, or codes that the file has in it."""
        if self.entry.column is None and self.tensor.stored_type == dtype:
            found = self.tensor.read_quantised(self.entry.row, self._span)
            if found is not None:
                return found.map(lambda field: field[:: self.entry.step])
        return self.read()

    @property
    def _span(self) -> int:
        return (self.rows - 1) * self.entry.step + 1

    @property
    def _end(self) -> int:
        """The number of the tensor's values up to the last that belongs to the matrix."""
        if self.entry.column is None:
            return (self.entry.row + self._span) * self.columns
        within = self.entry.column + self._span <= self.tensor.columns
        return (self.entry.row + self.columns) * self.tensor.columns if within else self.tensor.size + 1


@dataclass(frozen=True)
class MadeVector(Tensor):
    """A tensor of one dimension that has ranges of others' values, one after the other."""

    pieces: tuple[tuple[Tensor, RowRange], ...]

    def read(self, start: int, count: int) -> NDArray[Any]:
        return joined(list(self._parts(start, start + count)), 1)

    def _parts(self, start: int, end: int) -> Iterator[NDArray[Any]]:
        before = 0
        for tensor, part in self.pieces:
            begin, stop = max(start - before, 0), min(end - before, part.count)
            if begin < stop:
                span = (stop - begin - 1) * part.step + 1
                yield tensor.read(part.first + begin * part.step, span)[:: part.step]
            before += part.count


def made_tensor(name: str, entry: DenseEntry, tensors: Mapping[str, Tensor]) -> Tensor:
    """A tensor of the model by this name. Raises PartitionError if it does not fit to the checkpoint."""
    columns = entry.shape[-1] if len(entry.shape) > 1 else 1
    pieces = [(_source(tensors, part.tensor), part) for part in entry.rows]
    for tensor, part in pieces:
        if (part.first + (part.count - 1) * part.step + 1) * columns > tensor.size:
            raise PartitionError(f"{tensor.path}: {tensor.name} is too small for {name}")
    if not pieces:
        raise PartitionError(f"nothing makes {name}")
    (first, part), *others = pieces
    if not others and part.first == 0 and part.step == 1 and part.count * columns == first.size:
        return renamed(first, name, entry.shape)
    dtype = first.dtype if len({tensor.dtype for tensor, _ in pieces}) == 1 else "F32"
    if len(entry.shape) < 2:
        return MadeVector(name, first.path, dtype, entry.shape, tuple(pieces))
    starts = np.cumsum([0, *(part.count for _, part in pieces)])
    firsts, steps = (np.array([getattr(part, of) for _, part in pieces]) for of in ("first", "step"))

    def row_map(rows: Indices) -> tuple[Indices, Indices]:
        numbers = np.searchsorted(starts, rows, side="right") - 1
        return numbers, firsts[numbers] + (rows - starts[numbers]) * steps[numbers]

    sources = tuple(tensor for tensor, _ in pieces)
    return GatheredRows(name, first.path, dtype, entry.shape, sources, row_map)


def _source(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise PartitionError(f"the checkpoint has no {name}")
    return tensors[name]
