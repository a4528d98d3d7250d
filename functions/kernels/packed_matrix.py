"""The packed form of a weight matrix: the bytes that a kernel reads as one sequential stream.

A matrix [N, K] is divided into tiles of 32 rows, which follow each other; packed_types.py describes the bytes
of a tile. Sizes that do not fill a group or a tile are padded: rows with zero weights, inputs with weights
that no activation meets. A tile is a multiple of 64 bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32, bf16_to_f32, f32_to_bf16
from .packed_tiles import (
    Bytes,
    Quantised,
    plain_to_tiles,
    quantised_to_tiles,
    tiles_to_plain,
    tiles_to_quantised,
)
from .packed_types import GROUP_VALUES, TILE_ROWS, PackedType, packed_type
from .quantisation import LARGEST_WEIGHT, Quantiser, by_group, quantise

ROWS_AT_ONCE = 4 * TILE_ROWS
"""The number of rows that are converted at a time, which bounds temporary memory."""

_BF16_INF = 0x7F80

Rows = Callable[[int, int], NDArray[Any] | Quantised]
"""Reads rows [start, stop) of a matrix: [stop - start, K], float32 or the bits of bf16.

Rows that are quantised already, to the type in which they will be stored, are packed as they are.
"""


@dataclass(frozen=True)
class LinearShape:
    """The sizes of a weight matrix [outputs, inputs], and of its packed form.

    `dtype` is the name of the stored weights' type: one of `packed_types.PACKED_TYPES`.
    Raises ValueError for another dtype or a size below one.
    """

    outputs: int
    inputs: int
    dtype: str

    def __post_init__(self) -> None:
        packed_type(self.dtype)
        if self.outputs < 1 or self.inputs < 1:
            raise ValueError(f"sizes of a matrix must be positive: {self.outputs} x {self.inputs}")

    @property
    def type(self) -> PackedType:
        return packed_type(self.dtype)

    @property
    def tiles(self) -> int:
        return -(-self.outputs // TILE_ROWS)

    @property
    def tile_nbytes(self) -> int:
        return self.type.tile_nbytes(self.inputs)

    @property
    def nbytes(self) -> int:
        return self.tiles * self.tile_nbytes


class QuantisedMatrix(NamedTuple):
    """A quantised matrix [N, K] in float32: value = scale * code - minimum. K is padded to whole groups."""

    codes: Float32
    """The codes' integers, [N, groups, 32]"""
    scales: Float32
    """[N, groups]"""
    minima: Float32 | None
    """[N, groups]; None for a type without minima"""


def pack_matrix(
    shape: LinearShape,
    matrix: NDArray[Any],
    importance: Float32 | None = None,
    quantiser: Quantiser = quantise,
) -> Bytes:
    """Pack a matrix [N, K], float32 or the uint16 bits of bfloat16; returns uint8 [shape.nbytes].

    `importance` [K] says how much the error of each input's weights counts when they are quantised; by
    default all count alike.
    Raises ValueError for a wrong size or dtype, and for weights that are not finite or too large.
    """
    check_matrix("the matrix", matrix, (shape.outputs, shape.inputs))
    packed = np.empty(shape.nbytes, np.uint8)
    start = 0
    for part in packed_parts(shape, lambda first, end: matrix[first:end], importance, quantiser):
        packed[start : start + part.size] = part
        start += part.size
    return packed


def packed_parts(
    shape: LinearShape, rows: Rows, importance: Float32 | None = None, quantiser: Quantiser = quantise
) -> Iterator[Bytes]:
    """Like `pack_matrix`, for a matrix that is read some tiles at a time: the packed bytes in their order.

    Raises ValueError for weights that are not finite, or too large to quantise.
    """
    for start in range(0, shape.outputs, ROWS_AT_ONCE):
        some = rows(start, min(start + ROWS_AT_ONCE, shape.outputs))
        yield _tiles(shape, some, importance, quantiser)


def unpack_matrix(shape: LinearShape, packed: Bytes) -> Float32:
    """Packed bytes to a float32 matrix [N, K]. Raises ValueError for a wrong number of bytes."""
    if shape.type.is_quantised:
        return _values(shape, quantised_matrix(shape, packed))
    _check_nbytes(shape, packed)
    stored = tiles_to_plain(shape.type, packed, shape.inputs)[: shape.outputs]
    return bf16_to_f32(stored) if shape.dtype == "bf16" else stored


def quantised_matrix(shape: LinearShape, packed: Bytes) -> QuantisedMatrix:
    """The codes and scales of a packed matrix of a quantised type. Raises ValueError for a wrong size."""
    _check_nbytes(shape, packed)
    stored = tiles_to_quantised(shape.type, packed, shape.inputs)
    return _quantised_matrix(shape.type, stored.rows(0, shape.outputs))


def plain_rows(shape: LinearShape, rows: NDArray[Any] | Quantised) -> Float32:
    """Rows that a `Rows` has read, in float32, [rows, K]."""
    if isinstance(rows, Quantised):
        return _values(shape, _quantised_matrix(shape.type, rows))
    return _cast(rows, "f32")


def _quantised_matrix(kind: PackedType, stored: Quantised) -> QuantisedMatrix:
    codes = np.array(kind.values, np.float32)[stored.codes]
    if stored.minima is None or stored.unit_scales is None or stored.unit_minima is None:
        scales = bf16_to_f32(stored.scales) if kind.name == "mxfp4" else stored.scales.astype(np.float32)
        return QuantisedMatrix(codes, scales, None)
    scales = stored.scales * by_group(stored.unit_scales, stored.scales)
    minima = stored.minima * by_group(stored.unit_minima, stored.minima)
    return QuantisedMatrix(codes, scales, minima)


def _values(shape: LinearShape, matrix: QuantisedMatrix) -> Float32:
    values: Float32 = matrix.codes * matrix.scales[:, :, None]
    if matrix.minima is not None:
        values -= matrix.minima[:, :, None]
    return values.reshape(len(values), -1)[:, : shape.inputs]


def check_matrix(name: str, matrix: NDArray[Any], size: tuple[int, ...]) -> None:
    """Raise ValueError unless the matrix has this size and a dtype that can be packed."""
    if matrix.shape != size:
        raise ValueError(f"{name} must have shape {size}, not {matrix.shape}")
    if matrix.dtype not in (np.uint16, np.float32):
        raise ValueError(f"{name} must be float32 or the uint16 bits of bfloat16, not {matrix.dtype}")


def _check_nbytes(shape: LinearShape, packed: Bytes) -> None:
    if packed.size != shape.nbytes:
        raise ValueError(f"the packed matrix has {shape.nbytes} bytes, not {packed.size}")


def _tiles(
    shape: LinearShape, rows: NDArray[Any] | Quantised, importance: Float32 | None, quantiser: Quantiser
) -> Bytes:
    """Rows [N, K] in packed form."""
    kind = shape.type
    numbers = (rows.scales, rows.unit_scales, rows.unit_minima) if isinstance(rows, Quantised) else (rows,)
    if not all(_are_finite(each) for each in numbers if each is not None):
        raise ValueError("weights are not finite")
    if isinstance(rows, Quantised):
        return quantised_to_tiles(kind, rows)
    if not kind.is_quantised:
        return plain_to_tiles(kind, _cast(rows, shape.dtype))
    values = _cast(rows, "f32")
    if np.abs(values).max(initial=0) > LARGEST_WEIGHT:
        raise ValueError(f"weights above {LARGEST_WEIGHT} cannot be quantised")
    weight = np.ones(shape.inputs, np.float32) if importance is None else importance
    return quantised_to_tiles(kind, quantiser(kind, _in_groups(values), _in_groups(weight[None])[0]))


def _are_finite(numbers: NDArray[Any]) -> bool:
    """Whether floats, the bits of bfloat16, or bytes are."""
    if numbers.dtype == np.uint16:
        return bool(((numbers & _BF16_INF) != _BF16_INF).all())
    return bool(np.isfinite(numbers).all())


def _in_groups(rows: Float32) -> Float32:
    """Rows [N, K] as [N, groups, 32]; zeros fill the last group."""
    if missing := -rows.shape[1] % GROUP_VALUES:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return rows.reshape(len(rows), -1, GROUP_VALUES)


def _cast(matrix: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A float32 or bfloat16 matrix in the dtype "f32" or "bf16", copied only if necessary."""
    if dtype == "bf16":
        return f32_to_bf16(matrix) if matrix.dtype == np.float32 else matrix
    return bf16_to_f32(matrix) if matrix.dtype == np.uint16 else matrix
