"""The packed form of a weight matrix: the bytes that a kernel reads as one sequential stream.

A matrix [N, K] is divided into tiles of 32 rows, and a tile is stored input-major as [steps, 32] dwords: a
step has, for each of the 32 rows, the next 4 bytes of that row (1 float32, 2 bfloat16 or 4 int8 values). That
is the operand shape of the CPU's fma, vdpbf16ps and vpdpbusd instructions, so a kernel loads whole steps in
order.

    tiles | row scales (int8 only)

Sizes that do not fill a step or a tile are padded with zero weights, so each section is a multiple of 128
bytes. int8 is symmetric with one float32 scale for each row, and is stored offset-binary (value + 128)
because vpdpbusd multiplies unsigned by signed bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32, bf16_to_f32, f32_to_bf16

TILE_ROWS = 32
INT8_ZERO = 128
TILES_AT_ONCE = 16
"""The number of tiles that are converted at a time, which bounds temporary memory."""

_STORED: dict[str, type[np.generic]] = {"f32": np.float32, "bf16": np.uint16, "int8": np.uint8}
_VALUES_PER_STEP = {"f32": 1, "bf16": 2, "int8": 4}

_BF16_INF = 0x7F80

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class LinearShape:
    """The sizes of a weight matrix [outputs, inputs], and of the sections of its packed form.

    `dtype` is the dtype of the stored weights: "f32", "bf16" or "int8".
    Raises ValueError for another dtype or a size below one.
    """

    outputs: int
    inputs: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in _STORED:
            raise ValueError(f"weight dtype must be one of {', '.join(_STORED)}, not {self.dtype!r}")
        if self.outputs < 1 or self.inputs < 1:
            raise ValueError(f"sizes of a matrix must be positive: {self.outputs} x {self.inputs}")

    @property
    def tiles(self) -> int:
        return -(-self.outputs // TILE_ROWS)

    @property
    def steps(self) -> int:
        return -(-self.inputs // _VALUES_PER_STEP[self.dtype])

    @property
    def section_nbytes(self) -> tuple[int, int]:
        """Bytes of the tiles and of the row scales."""
        return self.tiles * self.steps * 4 * TILE_ROWS, self.tiles * 4 * TILE_ROWS * (self.dtype == "int8")

    @property
    def nbytes(self) -> int:
        return sum(self.section_nbytes)


@dataclass(frozen=True)
class PackedView:
    """Views of a packed matrix: of whole tiles, or of the same rows of every tile."""

    dtype: str
    tiles: NDArray[np.uint32]
    """[tiles, steps, rows of a tile]"""
    scale: Float32
    """[tiles, rows of a tile]; [0, rows of a tile] unless int8"""

    @classmethod
    def of(cls, shape: LinearShape, packed: Bytes) -> "PackedView":
        """A view of a whole matrix in its bytes [shape.nbytes]."""
        tiles, scale = np.split(packed, [shape.section_nbytes[0]])
        return cls(
            shape.dtype,
            tiles.view(np.uint32).reshape(shape.tiles, shape.steps, TILE_ROWS),
            scale.view(np.float32).reshape(-1, TILE_ROWS),
        )

    def rows(self, start: int, stop: int) -> "PackedView":
        """A view of rows start to stop of every tile."""
        return PackedView(self.dtype, self.tiles[:, :, start:stop], self.scale[:, start:stop])

    def store(self, matrix: NDArray[Any]) -> None:
        """Write a matrix [rows, inputs], a few tiles at a time, since temporary arrays are float32."""
        height = self.tiles.shape[2]
        for tile in range(0, len(self.tiles), TILES_AT_ONCE):
            some = slice(tile, tile + TILES_AT_ONCE)
            rows = matrix[tile * height : (tile + TILES_AT_ONCE) * height]
            PackedView(self.dtype, self.tiles[some], self.scale[some])._store_tiles(rows)

    def load(self, outputs: int, inputs: int) -> Float32:
        """Read the matrix [outputs, inputs] as float32."""
        by_row = np.ascontiguousarray(self.tiles.transpose(0, 2, 1)).reshape(-1, self.tiles.shape[1])
        stored: NDArray[Any] = by_row.view(_STORED[self.dtype])[:outputs, :inputs]
        if self.dtype == "int8":
            scale = self.scale.reshape(-1)[:outputs, None]
            return (stored.astype(np.float32) - np.float32(INT8_ZERO)) * scale
        return bf16_to_f32(stored) if self.dtype == "bf16" else stored

    def _store_tiles(self, matrix: NDArray[Any]) -> None:
        """Convert, pad and transpose rows, and write them to these tiles."""
        count, steps, height = self.tiles.shape
        is_int8 = self.dtype == "int8"
        stored, scale = _quantize(matrix) if is_int8 else (_cast(self.dtype, matrix), None)
        size = (count * height, steps * 4 // stored.itemsize)
        padded = _padded(stored, size, INT8_ZERO if is_int8 else 0)
        self.tiles[...] = padded.view(np.uint32).reshape(count, height, steps).transpose(0, 2, 1)
        if scale is not None:
            self.scale[...] = _padded(scale, size[:1], 0).reshape(count, height)


def pack_matrix(shape: LinearShape, matrix: NDArray[Any]) -> Bytes:
    """Pack a matrix [N, K], float32 or the uint16 bits of bfloat16; returns uint8 [shape.nbytes].

    Raises ValueError for a wrong size or dtype, and for weights that are not finite.
    """
    check_matrix("the matrix", matrix, (shape.outputs, shape.inputs))
    packed = np.empty(shape.nbytes, np.uint8)
    PackedView.of(shape, packed).store(matrix)
    return packed


def unpack_matrix(shape: LinearShape, packed: Bytes) -> Float32:
    """Packed bytes to a float32 matrix [N, K]. Raises ValueError for a wrong number of bytes."""
    if packed.size != shape.nbytes:
        raise ValueError(f"the packed matrix has {shape.nbytes} bytes, not {packed.size}")
    return PackedView.of(shape, packed).load(shape.outputs, shape.inputs)


def check_matrix(name: str, matrix: NDArray[Any], size: tuple[int, int]) -> None:
    """Raise ValueError unless the matrix has this size, a dtype that can be packed, and finite values."""
    if matrix.shape != size:
        raise ValueError(f"{name} must have shape {size}, not {matrix.shape}")
    if matrix.dtype == np.uint16:
        finite = (matrix & _BF16_INF) != _BF16_INF
    elif matrix.dtype == np.float32:
        finite = np.isfinite(matrix)
    else:
        raise ValueError(f"{name} must be float32 or the uint16 bits of bfloat16, not {matrix.dtype}")
    if not finite.all():
        raise ValueError(f"{name} has weights that are not finite")


def _cast(dtype: str, matrix: NDArray[Any]) -> NDArray[Any]:
    """A float32 or bfloat16 matrix in the stored dtype "f32" or "bf16", copied only if necessary."""
    if matrix.dtype == _STORED[dtype]:
        return matrix
    return f32_to_bf16(matrix) if dtype == "bf16" else bf16_to_f32(matrix)


def _quantize(matrix: NDArray[Any]) -> tuple[NDArray[np.uint8], Float32]:
    """Offset-binary int8 rows and their scales, absmax / 127. Rows with a denormal scale become zeros."""
    values: Float32 = _cast("f32", matrix)
    scale: Float32 = np.abs(values).max(axis=1) / np.float32(127)
    scale[scale < np.finfo(np.float32).tiny] = 0
    divisor = scale[:, None]
    quotient = np.divide(values, divisor, out=np.zeros_like(values), where=divisor > 0)
    np.rint(quotient, out=quotient)
    quotient += INT8_ZERO
    return quotient.astype(np.uint8), scale


def _padded(array: NDArray[Any], size: tuple[int, ...], fill: int) -> NDArray[Any]:
    """The array, contiguous and padded at the end of each axis with `fill` to `size`."""
    if array.shape == size:
        return np.ascontiguousarray(array)
    grown = np.full(size, fill, array.dtype)
    grown[tuple(slice(length) for length in array.shape)] = array
    return grown
