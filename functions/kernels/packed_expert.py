"""The packed form of one expert's weights.

An expert is two matrices, each packed as in packed_matrix.py, which may be of different types: gate_up (gate
[I, H] and up [I, H] interleaved) and down [H, I]. A tile of gate_up is 16 gate rows followed by the same 16
up rows, so that the activation needs only the product of one tile. For an expert without a gate, gate_up is
up alone. Biases are float32, one for each row of each tile, in the order of the rows.

    gate_up tiles | down tiles | biases of gate_up | biases of down
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .activation import SWIGLU, Activation
from .bfloat16 import Float32, as_f32
from .packed_matrix import LinearShape, Rows, check_matrix, packed_parts, plain_rows, unpack_matrix
from .packed_tiles import Bytes, Quantised
from .packed_types import TILE_ROWS
from .quantisation import Quantiser, quantise

HALF_TILE = TILE_ROWS // 2
_BIAS = np.dtype("<f4")


@dataclass(frozen=True)
class ExpertShape:
    """The sizes of one expert, what it computes, and the matrices of its packed form.

    The dtypes are names of `packed_types.PACKED_TYPES`.
    Raises ValueError for another dtype or a size below one.
    """

    hidden_size: int
    intermediate_size: int
    gate_up_dtype: str
    down_dtype: str
    activation: Activation = SWIGLU
    has_bias: bool = False

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
        outputs = self.intermediate_size
        if self.activation.gated:
            outputs = -(-outputs // HALF_TILE) * TILE_ROWS
        return LinearShape(outputs, self.hidden_size, self.gate_up_dtype)

    @property
    def down(self) -> LinearShape:
        return LinearShape(self.hidden_size, self.intermediate_size, self.down_dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one packed expert."""
        biases = (self.gate_up.tiles + self.down.tiles) * TILE_ROWS if self.has_bias else 0
        return self.gate_up.nbytes + self.down.nbytes + biases * _BIAS.itemsize

    def as_arguments(self) -> tuple[str, str, int, int, bool, str, bool, float, float, float]:
        """What the C extensions take in place of a shape. No limit is an infinite one."""
        act = self.activation
        return (
            self.gate_up_dtype,
            self.down_dtype,
            self.hidden_size,
            self.intermediate_size,
            self.has_bias,
            act.function,
            act.gated,
            math.inf if act.limit is None else act.limit,
            act.alpha,
            act.up_offset,
        )


class Biases(NamedTuple):
    """What is added to an expert's products, float32 or the bits of bfloat16.

    Those of gate and up are added before the activation, that of down before the router's weight.
    """

    gate: NDArray[Any] | None
    """[I]; None for an expert without a gate."""
    up: NDArray[Any]
    """[I]"""
    down: NDArray[Any]
    """[H]"""


class ExpertParts(NamedTuple):
    """The parts of a packed expert."""

    gate_up: Bytes
    down: Bytes
    gate_up_bias: Float32 | None
    """[outputs of gate_up]; None for an expert without biases."""
    down_bias: Float32 | None
    """[H]"""


@dataclass(frozen=True)
class Importance:
    """How much the errors of an expert's weights count when they are quantised, by their input."""

    gate_up: Float32
    """[H]"""
    down: Float32
    """[I]"""


def pack_expert(
    shape: ExpertShape,
    gate: NDArray[Any] | Quantised | None,
    up: NDArray[Any] | Quantised,
    down: NDArray[Any] | Quantised,
    importance: Importance | None = None,
    quantiser: Quantiser = quantise,
    *,
    biases: Biases | None = None,
) -> Bytes:
    """Pack gate and up [I, H] and down [H, I], each float32 or the uint16 bits of bfloat16.

    `gate` is None for an expert without one. A matrix that is quantised to its type in `shape` already keeps
    its codes. Without `importance`, all inputs count alike. Returns uint8 [shape.nbytes].
    Raises ValueError for matrices and biases that are not the shape's, and for weights that are not finite
    or too large.
    """
    inward = (shape.intermediate_size, shape.hidden_size)
    for name, matrix, size in (("gate", gate, inward), ("up", up, inward), ("down", down, inward[::-1])):
        if matrix is not None and not isinstance(matrix, Quantised):
            check_matrix(name, matrix, size)
    packed = np.empty(shape.nbytes, np.uint8)
    start = 0
    readers = None if gate is None else _reader(gate), _reader(up), _reader(down)
    for part in packed_expert_parts(shape, *readers, importance, quantiser, biases=biases):
        packed[start : start + part.size] = part
        start += part.size
    return packed


def packed_expert_parts(
    shape: ExpertShape,
    gate: Rows | None,
    up: Rows,
    down: Rows,
    importance: Importance | None = None,
    quantiser: Quantiser = quantise,
    *,
    biases: Biases | None = None,
) -> Iterator[Bytes]:
    """Like `pack_expert`, for matrices that are read some tiles at a time: the packed bytes in their order.

    Raises ValueError for a gate or biases that the shape does not have or lacks, and for weights that are not
    finite or too large to quantise.
    """
    if (gate is not None) != shape.activation.gated or (biases is not None) != shape.has_bias:
        raise ValueError("an expert has a gate and biases if its shape says so")
    rows = up if gate is None else _interleaved_rows(shape, gate, up)
    inward, outward = (importance.gate_up, importance.down) if importance else (None, None)
    yield from packed_parts(shape.gate_up, rows, inward, quantiser)
    yield from packed_parts(shape.down, down, outward, quantiser)
    if biases is not None:
        yield from _packed_biases(shape, biases)


def split_expert(shape: ExpertShape, packed: Bytes) -> ExpertParts:
    """The parts of a packed expert. Raises ValueError for fewer bytes than the shape's."""
    if packed.size < shape.nbytes:
        raise ValueError(f"a packed expert has {shape.nbytes} bytes, not {packed.size}")
    ends = np.cumsum([shape.gate_up.nbytes, shape.down.nbytes])
    gate_up, down, rest = np.split(packed[: shape.nbytes], ends)
    if not shape.has_bias:
        return ExpertParts(gate_up, down, None, None)
    inward, outward = np.split(rest.view(_BIAS), [shape.gate_up.tiles * TILE_ROWS])
    return ExpertParts(gate_up, down, inward[: shape.gate_up.outputs], outward[: shape.hidden_size])


def split_gate_up(shape: ExpertShape, gate_up: Float32) -> tuple[Float32 | None, Float32]:
    """Columns [T, outputs of gate_up] as those of gate and of up, each [T, I]; gate may be None."""
    if not shape.activation.gated:
        return None, gate_up
    halves = gate_up.reshape(len(gate_up), -1, 2, HALF_TILE).swapaxes(1, 2)
    gate, up = halves.reshape(len(gate_up), 2, -1)[:, :, : shape.intermediate_size].swapaxes(0, 1)
    return gate, up


def unpack_expert(shape: ExpertShape, packed: Bytes) -> tuple[Float32, ...]:
    """The matrices of a packed expert in float32: gate [I, H] if it has one, up [I, H] and down [H, I].

    Raises ValueError if `packed` is shorter than the shape's nbytes.
    """
    parts = split_expert(shape, packed)
    columns = split_gate_up(shape, unpack_matrix(shape.gate_up, parts.gate_up).T)
    return (*(each.T for each in columns if each is not None), unpack_matrix(shape.down, parts.down))


def _reader(matrix: NDArray[Any] | Quantised) -> Rows:
    if isinstance(matrix, Quantised):
        return matrix.rows
    return lambda start, stop: matrix[start:stop]


def _interleaved_rows(shape: ExpertShape, gate: Rows, up: Rows) -> Rows:
    """Reads the rows of gate_up, in whole tiles."""

    def read(start: int, stop: int) -> NDArray[Any] | Quantised:
        first, end = start // 2, min(stop // 2, shape.intermediate_size)
        one, other = gate(first, end), up(first, end)
        if isinstance(one, Quantised) and isinstance(other, Quantised):
            fields = zip(one, other, strict=True)
            return Quantised(*(_interleaved(a, b) for a, b in fields if a is not None and b is not None))
        if isinstance(one, Quantised) or isinstance(other, Quantised) or one.dtype != other.dtype:
            one, other = plain_rows(shape.gate_up, one), plain_rows(shape.gate_up, other)
        return _interleaved(one, other)

    return read


def _interleaved(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[Any]:
    """Rows of gate and up in alternating half tiles, as the kernel reads them; zeros fill the last one.

    (Of quantised rows, one of their fields.)
    """
    padding = ((0, -len(gate) % HALF_TILE), *((0, 0) for _ in gate.shape[1:]))
    halves = [np.pad(half, padding).reshape(-1, 1, HALF_TILE, *half.shape[1:]) for half in (gate, up)]
    return np.concatenate(halves, axis=1).reshape(-1, *gate.shape[1:])


def _packed_biases(shape: ExpertShape, biases: Biases) -> Iterator[Bytes]:
    """The biases of gate_up, then those of down; zeros fill the last tile of each."""
    if (biases.gate is not None) != shape.activation.gated:
        raise ValueError("an expert has a bias of gate if it has a gate")
    sizes = (shape.intermediate_size, shape.intermediate_size, shape.hidden_size)
    for name, bias, size in zip(biases._fields, biases, sizes, strict=True):
        if bias is not None:
            check_matrix(f"the bias of {name}", bias, (size,))
    up, down = as_f32(biases.up)[:, None], as_f32(biases.down)[:, None]
    inward = up if biases.gate is None else _interleaved(as_f32(biases.gate)[:, None], up)
    for column in (inward, down):
        if not np.isfinite(column).all():
            raise ValueError("biases are not finite")
        yield np.pad(column[:, 0], (0, -len(column) % TILE_ROWS)).astype(_BIAS).view(np.uint8)
