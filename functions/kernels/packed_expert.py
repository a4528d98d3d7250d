"""The packed form of one expert's weights.

An expert is two matrices, each packed as in packed_matrix.py, which may be of different types: gate_up (gate
[I, H] and up [I, H] interleaved) and down [H, I]. A tile of gate_up is 16 gate rows followed by the same 16
up rows, so SwiGLU needs only the product of one tile.

    gate_up tiles | down tiles
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32
from .packed_matrix import LinearShape, Rows, check_matrix, packed_parts, plain_rows, unpack_matrix
from .packed_tiles import Bytes, Quantised
from .packed_types import TILE_ROWS
from .quantisation import Quantiser, quantise

HALF_TILE = TILE_ROWS // 2


@dataclass(frozen=True)
class ExpertShape:
    """The sizes of one expert, and of the matrices of its packed form.

    The dtypes are names of `packed_types.PACKED_TYPES`.
    Raises ValueError for another dtype or a size below one.
    """

    hidden_size: int
    intermediate_size: int
    gate_up_dtype: str
    down_dtype: str

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.intermediate_size < 1:
            raise ValueError(f"expert sizes must be positive: {self.hidden_size} x {self.intermediate_size}")
        LinearShape(self.intermediate_size, self.hidden_size, self.gate_up_dtype)
        LinearShape(self.hidden_size, self.intermediate_size, self.down_dtype)

    @property
    def is_quantised(self) -> bool:
        """Whether either matrix is."""
        return self.gate_up.type.is_quantised or self.down.type.is_quantised

    @property
    def gate_up(self) -> LinearShape:
        outputs = -(-self.intermediate_size // HALF_TILE) * TILE_ROWS
        return LinearShape(outputs, self.hidden_size, self.gate_up_dtype)

    @property
    def down(self) -> LinearShape:
        return LinearShape(self.hidden_size, self.intermediate_size, self.down_dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one packed expert."""
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(frozen=True)
class Importance:
    """How much the errors of an expert's weights count when they are quantised, by their input."""

    gate_up: Float32
    """[H]"""
    down: Float32
    """[I]"""


def pack_expert(
    shape: ExpertShape,
    gate: NDArray[Any] | Quantised,
    up: NDArray[Any] | Quantised,
    down: NDArray[Any] | Quantised,
    importance: Importance | None = None,
    quantiser: Quantiser = quantise,
) -> Bytes:
    """Pack gate and up [I, H] and down [H, I], each float32 or the uint16 bits of bfloat16.

    A matrix that is quantised to its type in `shape` already keeps its codes. Without `importance`, all
    inputs count alike. Returns uint8 [shape.nbytes].
    Raises ValueError for a wrong size or dtype, and for weights that are not finite or too large.
    """
    inward = (shape.intermediate_size, shape.hidden_size)
    for name, matrix, size in (("gate", gate, inward), ("up", up, inward), ("down", down, inward[::-1])):
        if not isinstance(matrix, Quantised):
            check_matrix(name, matrix, size)
    packed = np.empty(shape.nbytes, np.uint8)
    start = 0
    parts = packed_expert_parts(
        shape, _reader(gate), _reader(up), _reader(down), importance=importance, quantiser=quantiser
    )
    for part in parts:
        packed[start : start + part.size] = part
        start += part.size
    return packed


def packed_expert_parts(
    shape: ExpertShape,
    gate: Rows,
    up: Rows,
    down: Rows,
    importance: Importance | None = None,
    quantiser: Quantiser = quantise,
) -> Iterator[Bytes]:
    """Like `pack_expert`, for matrices that are read some tiles at a time: the packed bytes in their order.

    Raises ValueError for weights that are not finite, or too large to quantise.
    """

    def gate_up(start: int, stop: int) -> NDArray[Any] | Quantised:
        first, end = start // 2, min(stop // 2, shape.intermediate_size)
        one, other = gate(first, end), up(first, end)
        if isinstance(one, Quantised) and isinstance(other, Quantised):
            fields = zip(one, other, strict=True)
            return Quantised(*(_interleaved(a, b) for a, b in fields if a is not None and b is not None))
        if isinstance(one, Quantised) or isinstance(other, Quantised) or one.dtype != other.dtype:
            one, other = plain_rows(shape.gate_up, one), plain_rows(shape.gate_up, other)
        return _interleaved(one, other)

    inward, outward = (importance.gate_up, importance.down) if importance else (None, None)
    yield from packed_parts(shape.gate_up, gate_up, inward, quantiser)
    yield from packed_parts(shape.down, down, outward, quantiser)


def split_expert(shape: ExpertShape, packed: Bytes) -> tuple[Bytes, Bytes]:
    """The packed matrices gate_up and down. Raises ValueError for fewer bytes than the shape's."""
    if packed.size < shape.nbytes:
        raise ValueError(f"a packed expert has {shape.nbytes} bytes, not {packed.size}")
    gate_up, down = np.split(packed[: shape.nbytes], [shape.gate_up.nbytes])
    return gate_up, down


def split_gate_up(shape: ExpertShape, gate_up: Float32) -> tuple[Float32, Float32]:
    """Columns [T, outputs of gate_up] as those of gate and of up, each [T, I]."""
    halves = gate_up.reshape(len(gate_up), -1, 2, HALF_TILE).swapaxes(1, 2)
    gate, up = halves.reshape(len(gate_up), 2, -1)[:, :, : shape.intermediate_size].swapaxes(0, 1)
    return gate, up


def unpack_expert(shape: ExpertShape, packed: Bytes) -> tuple[Float32, Float32, Float32]:
    """The weights of a packed expert: gate [I, H], up [I, H] and down [H, I] in float32.

    Raises ValueError if `packed` is shorter than the shape's nbytes.
    """
    gate_up, down = split_expert(shape, packed)
    gate, up = split_gate_up(shape, unpack_matrix(shape.gate_up, gate_up).T)
    return gate.T, up.T, unpack_matrix(shape.down, down)


def _reader(matrix: NDArray[Any] | Quantised) -> Rows:
    if isinstance(matrix, Quantised):
        return matrix.rows
    return lambda start, stop: matrix[start:stop]


def _interleaved(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[Any]:
    """Rows of gate and up in alternating half tiles, as the kernel reads them; zeros fill the last one.

    (Of quantised rows, one of their fields.)
    """
    padding = ((0, -len(gate) % HALF_TILE), *((0, 0) for _ in gate.shape[1:]))
    halves = [np.pad(half, padding).reshape(-1, 1, HALF_TILE, *half.shape[1:]) for half in (gate, up)]
    return np.concatenate(halves, axis=1).reshape(-1, *gate.shape[1:])
