"""The packed form of one expert's weights.

An expert is two matrices, each packed as in packed_matrix.py: gate_up (gate [I, H] and up [I, H] interleaved)
and down [H, I]. A tile of gate_up is 16 gate rows followed by the same 16 up rows, so SwiGLU needs only the
product of one tile.

    gate_up tiles | gate_up row scales (int8 only) | down tiles | down row scales (int8 only)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bfloat16 import Float32
from .packed_matrix import TILE_ROWS, Bytes, LinearShape, PackedView, check_matrix

HALF_TILE = TILE_ROWS // 2


@dataclass(frozen=True)
class ExpertShape:
    """The sizes of one expert, and of the sections of its packed form.

    `dtype` is the dtype of the stored weights: "f32", "bf16" or "int8".
    Raises ValueError for another dtype or a size below one.
    """

    hidden_size: int
    intermediate_size: int
    dtype: str

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.intermediate_size < 1:
            raise ValueError(f"expert sizes must be positive: {self.hidden_size} x {self.intermediate_size}")
        LinearShape(self.hidden_size, self.intermediate_size, self.dtype)

    @property
    def gate_up(self) -> LinearShape:
        return LinearShape(-(-self.intermediate_size // HALF_TILE) * TILE_ROWS, self.hidden_size, self.dtype)

    @property
    def down(self) -> LinearShape:
        return LinearShape(self.hidden_size, self.intermediate_size, self.dtype)

    @property
    def section_nbytes(self) -> tuple[int, int, int, int]:
        """Bytes of the gate_up tiles, the gate_up scales, the down tiles and the down scales."""
        return (*self.gate_up.section_nbytes, *self.down.section_nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of one packed expert."""
        return sum(self.section_nbytes)


def pack_expert(shape: ExpertShape, gate: NDArray[Any], up: NDArray[Any], down: NDArray[Any]) -> Bytes:
    """Pack gate and up [I, H] and down [H, I], each float32 or the uint16 bits of bfloat16.

    Returns uint8 [shape.nbytes]. Converts one matrix at a time, to keep temporary memory low.
    Raises ValueError for a wrong size or dtype, and for weights that are not finite.
    """
    packed = np.empty(shape.nbytes, np.uint8)
    gate_view, up_view, down_view = _views(shape, packed)
    check_matrix("gate", gate, (shape.intermediate_size, shape.hidden_size))
    check_matrix("up", up, (shape.intermediate_size, shape.hidden_size))
    check_matrix("down", down, (shape.hidden_size, shape.intermediate_size))
    gate_view.store(gate)
    up_view.store(up)
    down_view.store(down)
    return packed


def unpack_expert(shape: ExpertShape, packed: Bytes) -> tuple[Float32, Float32, Float32]:
    """The weights of a packed expert: gate [I, H], up [I, H] and down [H, I] in float32.

    Raises ValueError if `packed` is shorter than the shape's nbytes.
    """
    if packed.size < shape.nbytes:
        raise ValueError(f"a packed expert has {shape.nbytes} bytes, not {packed.size}")
    gate, up, down = _views(shape, packed[: shape.nbytes])
    inward = (shape.intermediate_size, shape.hidden_size)
    return gate.load(*inward), up.load(*inward), down.load(*inward[::-1])


def _views(shape: ExpertShape, packed: Bytes) -> tuple[PackedView, PackedView, PackedView]:
    """Views of gate, up and down."""
    gate_up, down = np.split(packed, [shape.gate_up.nbytes])
    both = PackedView.of(shape.gate_up, gate_up)
    return both.rows(0, HALF_TILE), both.rows(HALF_TILE, TILE_ROWS), PackedView.of(shape.down, down)
