"""Groups the rows of a batch by the functions that have their experts, and adds up the functions' outputs.

The C extension `_row_groups` does it; without that, NumPy does the same, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16

_extension: ModuleType | None
try:
    from control_plane.engine.experts import _row_groups as _extension
except ImportError:
    _extension = None

Rows = NDArray[np.int64] | None
"""Numbers of rows in a batch, each once and ascending; None for all of them."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The rows of a batch that need experts of one function."""

    function: int
    """The function's number."""
    rows: Rows
    hidden_states: NDArray[Any]
    index: NDArray[np.int16]
    """The rows' experts; -1 stands for none, or for one of another function, which gets the row, too."""
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """The contiguous inputs of a layer's routed experts."""

    hidden_states: NDArray[Any]
    """[T, H], float32 or the bits of bfloat16 as uint16."""
    index: NDArray[np.int16]
    """[T, K]: the experts of each row; -1 for none."""
    weights: NDArray[np.float32]
    """[T, K]"""


def group_rows(owner: NDArray[np.int32], batch: Batch) -> list[RowGroup]:
    """One group for each function that has experts of the batch's rows, by the functions' numbers.

    owner [E] is the number of each expert's function. Raises ValueError for an expert without one.
    """
    return _group_in_numpy(owner, batch) if _extension is None else _group_in_c(_extension, owner, batch)


def add_up(parts: Sequence[tuple[Rows, NDArray[Any]]], like: NDArray[Any]) -> NDArray[Any]:
    """The sum of the outputs of groups, row by row, in the shape [T, H] and dtype of `like`.

    Each part has a group's rows and output. Sums are float32: in bfloat16, each of several outputs would be
    rounded once more.
    """
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    if _extension is None:
        return _add_up_in_numpy(parts, like)
    out = np.empty(like.shape, like.dtype)
    _extension.add_up(*like.shape, like.dtype == np.uint16, tuple(parts), out)
    return out


def _group_in_c(extension: ModuleType, owner: NDArray[np.int32], batch: Batch) -> list[RowGroup]:
    hidden_states, index, weights = batch.hidden_states, batch.index, batch.weights
    count, top_k = index.shape
    places = count * top_k
    # A row needs as many functions as it has experts, at most. What is not written takes no memory.
    out = (
        np.empty(places, np.int64),
        np.empty((places, top_k), np.int16),
        np.empty((places, top_k), np.float32),
        np.empty((places, hidden_states.shape[1]), hidden_states.dtype),
    )
    row_nbytes = hidden_states.shape[1] * hidden_states.itemsize
    groups = []
    for number, start, end in extension.group(
        count, top_k, row_nbytes, owner, index, weights, hidden_states, *out
    ):
        if end - start == count:
            groups.append(RowGroup(number, None, hidden_states, out[1][start:end], weights))
        else:
            rows, own_index, own_weights, own_states = (array[start:end] for array in out)
            groups.append(RowGroup(number, rows, own_states, own_index, own_weights))
    return groups


def _group_in_numpy(owner: NDArray[np.int32], batch: Batch) -> list[RowGroup]:
    hidden_states, index, weights = batch.hidden_states, batch.index, batch.weights
    if index.size and not -1 <= index.min() <= index.max() < len(owner):
        raise ValueError("index has an expert that no function has")
    owners = np.where(index < 0, -1, owner[index])
    if (owners[index >= 0] < 0).any():
        raise ValueError("index has an expert that no function has")
    groups = []
    for number in np.unique(owners[owners >= 0]).tolist():
        mine = owners == number
        rows = mine.any(axis=1).nonzero()[0]
        own_index = np.where(mine, index, np.int16(-1))
        if len(rows) == len(index):
            groups.append(RowGroup(number, None, hidden_states, own_index, weights))
        else:
            groups.append(RowGroup(number, rows, hidden_states[rows], own_index[rows], weights[rows]))
    return groups


def _add_up_in_numpy(parts: Sequence[tuple[Rows, NDArray[Any]]], like: NDArray[Any]) -> NDArray[Any]:
    total = np.zeros(like.shape, np.float32)
    is_bf16 = like.dtype == np.uint16
    for rows, output in parts:
        total[slice(None) if rows is None else rows] += bf16_to_f32(output) if is_bf16 else output
    return f32_to_bf16(total) if is_bf16 else total
