"""Tensors made of others: their rows in another order, side by side, changed, or transposed.

A view reads what it is asked for, when it is asked, so it takes no memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.tensors.tensor import RowTensor, Tensor, common_type, joined
from functions.kernels.bfloat16 import Float32, as_f32
from functions.kernels.packed_tiles import Quantised

Indices = NDArray[np.int64]
RowMap = Callable[[Indices], tuple[Indices, Indices]]
"""For rows of a view, the numbers of the tensors that have them, and their rows there."""


@dataclass(frozen=True)
class GatheredRows(RowTensor):
    """Rows of other tensors, in any order."""

    sources: tuple[Tensor, ...]
    row_map: RowMap

    @property
    def stored_type(self) -> str | None:
        return common_type(source.stored_type for source in self.sources)

    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        pieces = list(self._pieces(first, count))
        rows = joined(
            [source.rows(low, high - low)[kept] for source, low, high, kept, _ in pieces], self.columns
        )
        return rows[_order(pieces)]

    def read_quantised(self, first: int, count: int) -> Quantised | None:
        if any(source.stored_type != self.stored_type for source in self.sources):
            return None
        pieces = list(self._pieces(first, count))
        parts = []
        for source, low, high, kept, _ in pieces:
            part = source.read_quantised(low, high - low)
            if part is None:
                return None
            parts.append(part.map(lambda field, kept=kept: field[kept]))  # type: ignore[misc]
        order = _order(pieces)
        fields = [np.concatenate(field)[order] for field in zip(*parts, strict=True) if field[0] is not None]
        return Quantised(*fields)

    def _pieces(self, first: int, count: int) -> Iterator[tuple[Tensor, int, int, Indices, Indices]]:
        """Reads of a source: its rows [low, high), those of them that are wanted, and where they go."""
        numbers, rows = self.row_map(np.arange(first, first + count))
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            wanted = rows[places]
            # A read may have some rows too many, but not most of a tensor for a few of its rows.
            ascending = np.argsort(wanted, kind="stable")
            gaps = np.flatnonzero(np.diff(wanted[ascending]) > _MOST_SKIPPED) + 1
            for some in np.split(ascending, gaps):
                low, high = int(wanted[some[0]]), int(wanted[some[-1]]) + 1
                yield self.sources[number], low, high, wanted[some] - low, places[some]


_MOST_SKIPPED = 8
"""The most rows between two wanted ones that are read along."""


def _order(pieces: Sequence[tuple[Any, ...]]) -> Indices:
    """Where in the rows of all pieces each row of the view is."""
    places: Indices = np.concatenate([piece[-1] for piece in pieces]) if pieces else np.empty(0, np.int64)
    return np.argsort(places)


def concatenated(name: str, sources: Sequence[Tensor]) -> Tensor:
    """Tensors [..., N, K] one behind the other along the last dimension but one."""
    lengths = np.array([source.shape[-2] for source in sources])
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def row_map(rows: Indices) -> tuple[Indices, Indices]:
        block, row = np.divmod(rows, starts[-1])
        numbers = np.searchsorted(starts, row, side="right") - 1
        return numbers, block * lengths[numbers] + row - starts[numbers]

    return _gathered(name, sources, int(starts[-1]), row_map)


def interleaved(name: str, sources: Sequence[Tensor]) -> Tensor:
    """Tensors [..., N, K] as one, whose rows are those of each in turn."""
    count = len(sources)
    return _gathered(name, sources, count * sources[0].shape[-2], lambda rows: (rows % count, rows // count))


def reordered(source: Tensor, order: Indices) -> Tensor:
    """A tensor [..., N, K] with its rows in another order, [N]."""

    def row_map(rows: Indices) -> tuple[Indices, Indices]:
        block, row = np.divmod(rows, len(order))
        return np.zeros_like(rows), block * len(order) + order[row]

    return _gathered(source.name, [source], len(order), row_map)


def _gathered(name: str, sources: Sequence[Tensor], rows: int, row_map: RowMap) -> Tensor:
    first = sources[0]
    for source in sources[1:]:
        if source.shape[:-2] != first.shape[:-2] or source.columns != first.columns:
            shapes = f"{source.name} is {list(source.shape)}, {first.name} is {list(first.shape)}"
            raise PartitionError(f"{source.path}: {shapes}")
    dtype = first.dtype if all(source.dtype == first.dtype for source in sources) else "F32"
    shape = (*first.shape[:-2], rows, first.columns)
    return GatheredRows(name, first.path, dtype, shape, tuple(sources), row_map)


@dataclass(frozen=True)
class ChangedRows(RowTensor):
    """Rows that are computed from the same rows of other tensors, with as many values in all."""

    sources: tuple[Tensor, ...]
    change: Callable[..., Float32]
    """Gets float32 rows of each source, and returns as many."""

    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        return self.change(*(as_f32(source.rows(first, count)) for source in self.sources))


def changed(source: Tensor, change: Callable[[Float32], Float32]) -> Tensor:
    """A tensor of the same shape, with its rows changed."""
    return ChangedRows(source.name, source.path, source.dtype, source.shape, (source,), change)


@dataclass(frozen=True)
class TransposedTensor(RowTensor):
    """A tensor [..., N, K] as [..., K, N]. Reading it is slow; `source` has rows that are read fast."""

    source: Tensor

    @property
    def rows_at_once(self) -> int:
        # Some columns of the source cost as much as all of them.
        return self.shape[-2]

    def _read_rows(self, first: int, count: int) -> NDArray[Any]:
        inputs, outputs = self.shape[-2:]
        parts = []
        while count:
            matrix, row = divmod(first, inputs)
            some = min(count, inputs - row)
            parts.append(self.source.rows(matrix * outputs, outputs)[:, row : row + some].T)
            first, count = first + some, count - some
        return joined(parts, self.columns)


def transposed(tensor: Tensor) -> Tensor:
    """A tensor with its last two dimensions exchanged: for a `TransposedTensor`, its source."""
    if isinstance(tensor, TransposedTensor):
        return tensor.source
    shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
    return TransposedTensor(tensor.name, tensor.path, tensor.dtype, shape, tensor)


def renamed(tensor: Tensor, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor by another name, and maybe of another shape with as many values and columns."""
    return replace(tensor, name=name, shape=shape or tensor.shape)
