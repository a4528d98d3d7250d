"""The packed form of one expert's weights: the bytes that a kernel reads as one sequential stream.

An expert is two matrices: gate_up (gate [I, H] and up [I, H] interleaved) and down [H, I]. Each is cut into
tiles of 32 output rows, and a tile is stored input-major as [steps, 32] dwords: a step holds, for each of
the 32 rows, the next 4 bytes of that row (1 float32, 2 bfloat16 or 4 int8 values). That is the operand shape
of the CPU's fma, vdpbf16ps and vpdpbusd instructions, so a kernel loads whole steps in the order they lie.
A tile of gate_up is 16 gate rows followed by the same 16 up rows: SwiGLU needs nothing but its own tile.

    gate_up tiles | gate_up row scales (int8 only) | down tiles | down row scales (int8 only)

Sizes that do not fill a step or a tile are padded with zero weights, so each section is a multiple of 128
bytes. int8 is symmetric with one float32 scale for each output row, and is stored offset-binary
(value + 128) because vpdpbusd multiplies unsigned by signed bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = 32
HALF_TILE = TILE_ROWS // 2
STEP_BYTES = 4 * TILE_ROWS
INT8_ZERO = 128
TILES_AT_ONCE = 16
"""How many tiles `pack_expert` converts at a time, which bounds its temporary memory."""

_STORED: dict[str, type[np.generic]] = {"f32": np.float32, "bf16": np.uint16, "int8": np.uint8}

_BF16_INF = 0x7F80

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ExpertShape:
    """The sizes of one expert, and of the sections of its packed form.

    `dtype` is how the weights are stored: "f32", "bf16" or "int8".
    Raises ValueError for another dtype or a size below one.
    """

    hidden_size: int
    intermediate_size: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in _STORED:
            raise ValueError(f"weight dtype must be one of {', '.join(_STORED)}, not {self.dtype!r}")
        if self.hidden_size < 1 or self.intermediate_size < 1:
            raise ValueError(f"expert sizes must be positive: {self.hidden_size} x {self.intermediate_size}")

    @property
    def values_per_step(self) -> int:
        """How many consecutive inputs of a row one step (4 bytes) holds."""
        return 4 // np.dtype(_STORED[self.dtype]).itemsize

    @property
    def gate_up_tiles(self) -> int:
        return -(-self.intermediate_size // HALF_TILE)

    @property
    def gate_up_steps(self) -> int:
        return -(-self.hidden_size // self.values_per_step)

    @property
    def down_tiles(self) -> int:
        return -(-self.hidden_size // TILE_ROWS)

    @property
    def down_steps(self) -> int:
        return -(-self.intermediate_size // self.values_per_step)

    @property
    def section_nbytes(self) -> tuple[int, int, int, int]:
        """Bytes of the gate_up tiles, the gate_up scales, the down tiles and the down scales."""
        scale_bytes = 4 * TILE_ROWS if self.dtype == "int8" else 0
        return (
            self.gate_up_tiles * self.gate_up_steps * STEP_BYTES,
            self.gate_up_tiles * scale_bytes,
            self.down_tiles * self.down_steps * STEP_BYTES,
            self.down_tiles * scale_bytes,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of one packed expert."""
        return sum(self.section_nbytes)


def pack_expert(shape: ExpertShape, gate: NDArray[Any], up: NDArray[Any], down: NDArray[Any]) -> Bytes:
    """Packs gate and up [I, H] and down [H, I], each float32 or the uint16 bits of bfloat16.

    Returns uint8 [shape.nbytes]. Works on one matrix at a time, to keep temporary memory low.
    Raises ValueError for a wrong size or dtype, and for weights that are not finite.
    """
    packed = np.empty(shape.nbytes, np.uint8)
    gate_place, up_place, down_place = _places(shape, packed)
    _check("gate", gate, (shape.intermediate_size, shape.hidden_size))
    _check("up", up, (shape.intermediate_size, shape.hidden_size))
    _check("down", down, (shape.hidden_size, shape.intermediate_size))
    _store(shape.dtype, gate, gate_place)
    _store(shape.dtype, up, up_place)
    _store(shape.dtype, down, down_place)
    return packed


def unpack_expert(shape: ExpertShape, packed: Bytes) -> tuple[Float32, Float32, Float32]:
    """The weights that a packed expert stands for: gate [I, H], up [I, H] and down [H, I] in float32.

    Raises ValueError if `packed` is shorter than the shape's nbytes.
    """
    if packed.size < shape.nbytes:
        raise ValueError(f"a packed expert has {shape.nbytes} bytes, not {packed.size}")
    gate, up, down = _places(shape, packed[: shape.nbytes])
    inward = (shape.intermediate_size, shape.hidden_size)
    return (
        _load(shape.dtype, gate, inward),
        _load(shape.dtype, up, inward),
        _load(shape.dtype, down, inward[::-1]),
    )


def bf16_to_f32(bits: NDArray[np.uint16]) -> Float32:
    """The float32 values of bfloat16 numbers given by their bits. Exact; any shape."""
    widened = bits.astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


def f32_to_bf16(values: Float32) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even. NaN stays NaN; any shape."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits >> 16) & 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    rounded[np.isnan(values)] = 0x7FC0
    return rounded.astype(np.uint16)


@dataclass(frozen=True)
class _Place:
    """Where a matrix, or the gate or up half of gate_up, lies in a packed expert (views)."""

    tiles: NDArray[np.uint32]
    """[tiles, steps, rows of a tile]"""
    scale: Float32
    """[tiles, rows of a tile]; without elements unless int8"""

    def rows(self, start: int, stop: int) -> "_Place":
        """The same rows of every tile."""
        return _Place(self.tiles[:, :, start:stop], self.scale[:, start:stop])


def _places(shape: ExpertShape, packed: Bytes) -> tuple[_Place, _Place, _Place]:
    """The places of gate, up and down."""
    ends = np.cumsum(shape.section_nbytes)[:-1]
    gate_up, gate_up_scale, down, down_scale = np.split(packed, ends)
    first = _Place(
        gate_up.view(np.uint32).reshape(shape.gate_up_tiles, shape.gate_up_steps, TILE_ROWS),
        gate_up_scale.view(np.float32).reshape(-1, TILE_ROWS),
    )
    second = _Place(
        down.view(np.uint32).reshape(shape.down_tiles, shape.down_steps, TILE_ROWS),
        down_scale.view(np.float32).reshape(-1, TILE_ROWS),
    )
    return first.rows(0, HALF_TILE), first.rows(HALF_TILE, TILE_ROWS), second


def _check(name: str, matrix: NDArray[Any], size: tuple[int, int]) -> None:
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


def _store(dtype: str, matrix: NDArray[Any], place: _Place) -> None:
    """Writes a matrix [rows, inputs] to its place, a few tiles at a time: temporaries are float32."""
    height = place.tiles.shape[2]
    for tile in range(0, len(place.tiles), TILES_AT_ONCE):
        some = slice(tile, tile + TILES_AT_ONCE)
        rows = matrix[tile * height : (tile + TILES_AT_ONCE) * height]
        _store_tiles(dtype, rows, _Place(place.tiles[some], place.scale[some]))


def _store_tiles(dtype: str, matrix: NDArray[Any], place: _Place) -> None:
    """Writes rows to their tiles: converted, padded, transposed within each tile."""
    count, steps, height = place.tiles.shape
    stored, scale = _quantize(matrix) if dtype == "int8" else (_cast(dtype, matrix), None)
    size = (count * height, steps * 4 // stored.itemsize)
    padded = _padded(stored, size, INT8_ZERO if dtype == "int8" else 0)
    place.tiles[...] = padded.view(np.uint32).reshape(count, height, steps).transpose(0, 2, 1)
    if scale is not None:
        place.scale[...] = _padded(scale, size[:1], 0).reshape(count, height)


def _load(dtype: str, place: _Place, size: tuple[int, int]) -> Float32:
    """The float32 matrix [rows, inputs] that a place holds."""
    rows, inputs = size
    by_row = np.ascontiguousarray(place.tiles.transpose(0, 2, 1)).reshape(-1, place.tiles.shape[1])
    stored: NDArray[Any] = by_row.view(_STORED[dtype])[:rows, :inputs]
    if dtype == "int8":
        scale = place.scale.reshape(-1)[:rows, None]
        return (stored.astype(np.float32) - np.float32(INT8_ZERO)) * scale
    return bf16_to_f32(stored) if dtype == "bf16" else stored


def _cast(dtype: str, matrix: NDArray[Any]) -> NDArray[Any]:
    """A float32 or bfloat16 matrix as the other of the two, or as it is."""
    if matrix.dtype == _STORED[dtype]:
        return matrix
    return f32_to_bf16(matrix) if dtype == "bf16" else bf16_to_f32(matrix)


def _quantize(matrix: NDArray[Any]) -> tuple[NDArray[np.uint8], Float32]:
    """Offset-binary int8 rows and their scales, absmax / 127; a row without a usable scale becomes zeros."""
    values: Float32 = _cast("f32", matrix)
    scale: Float32 = np.abs(values).max(axis=1) / np.float32(127)
    scale[scale < np.finfo(np.float32).tiny] = 0
    divisor = scale[:, None]
    quotient = np.divide(values, divisor, out=np.zeros_like(values), where=divisor > 0)
    np.rint(quotient, out=quotient)
    quotient += INT8_ZERO
    return quotient.astype(np.uint8), scale


def _padded(array: NDArray[Any], size: tuple[int, ...], fill: int) -> NDArray[Any]:
    """The array itself, contiguous, or a copy grown to `size` with `fill` behind its values."""
    if array.shape == size:
        return np.ascontiguousarray(array)
    grown = np.full(size, fill, array.dtype)
    grown[tuple(slice(length) for length in array.shape)] = array
    return grown
