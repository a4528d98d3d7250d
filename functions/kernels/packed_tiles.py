"""The bytes of tiles: brings codes and scales by row into the order of packed_types.py, and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .packed_types import GROUP_VALUES, HEADER_GROUPS, TILE_ROWS, PackedType

Bytes = NDArray[np.uint8]


class Quantised(NamedTuple):
    """Rows of quantised weights, with scales and minima as they are stored."""

    codes: NDArray[np.uint8]
    """[rows, groups, 32]"""
    scales: NDArray[Any]
    """[rows, groups]: float16, the bits of bfloat16 for mxfp4, or uint8 with a header"""
    minima: NDArray[Any] | None = None
    """uint8 [rows, groups], with a header"""
    unit_scales: NDArray[Any] | None = None
    """The header's unit of scales: float16 [rows, headers]"""
    unit_minima: NDArray[Any] | None = None
    """The header's unit of minima: float16 [rows, headers]"""

    def rows(self, start: int, stop: int) -> "Quantised":
        """The rows [start, stop)."""
        return self.map(lambda numbers: numbers[start:stop])

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "Quantised":
        """These rows in another order, or others: `change` gets and returns each field that there is."""
        return Quantised(*(None if field is None else change(field) for field in self))  # type: ignore[arg-type]


def plain_to_tiles(kind: PackedType, values: NDArray[Any]) -> Bytes:
    """Rows [N, K] in the dtype of the type's codes, which is not quantised, as tiles."""
    rows, width = -(-len(values) // TILE_ROWS) * TILE_ROWS, kind.groups(values.shape[1])
    padded = np.zeros((rows, width * kind.group_values), values.dtype)
    padded[: len(values), : values.shape[1]] = values
    # Dwords, since NumPy moves four bytes as fast as one.
    steps = padded.view(np.uint32).reshape(-1, TILE_ROWS, width).swapaxes(1, 2)
    return np.ascontiguousarray(steps).reshape(-1).view(np.uint8)


def tiles_to_plain(kind: PackedType, packed: Bytes, inputs: int) -> NDArray[Any]:
    """Tiles as rows [tiles * 32, K]: the inverse of `plain_to_tiles`."""
    codes = packed.view(kind.group)["codes"].reshape(-1, kind.groups(inputs), TILE_ROWS, kind.group_values)
    return codes.transpose(0, 2, 1, 3).reshape(len(codes) * TILE_ROWS, -1)[:, :inputs]


def quantised_to_tiles(kind: PackedType, rows: Quantised) -> Bytes:
    """Quantised rows as tiles. Rows that fill the last tile get scales of zero."""
    tiles, groups = -(-len(rows.codes) // TILE_ROWS), rows.codes.shape[1]
    stored = np.zeros((tiles, -(-groups // _groups_of_block(kind)) * _groups_of_block(kind)), kind.group)
    dwords = stored["codes"].view(np.uint32)[..., 0]
    dwords[:, :groups] = _by_step(kind, _whole_tiles(rows.codes, tiles))
    stored["scales"][:, :groups] = _whole_tiles(rows.scales, tiles).swapaxes(1, 2)
    if rows.minima is None or rows.unit_scales is None or rows.unit_minima is None:
        return stored.reshape(-1).view(np.uint8)
    stored["minima"][:, :groups] = _whole_tiles(rows.minima, tiles).swapaxes(1, 2)
    blocks = np.empty((tiles, rows.unit_scales.shape[1]), _block(kind))
    blocks["header"]["scales"] = _whole_tiles(rows.unit_scales, tiles).swapaxes(1, 2)
    blocks["header"]["minima"] = _whole_tiles(rows.unit_minima, tiles).swapaxes(1, 2)
    blocks["groups"] = stored.reshape(tiles, -1, HEADER_GROUPS)
    used = kind.tile_nbytes(groups * GROUP_VALUES)
    return blocks.view(np.uint8).reshape(tiles, -1)[:, :used].reshape(-1)


def tiles_to_quantised(kind: PackedType, packed: Bytes, inputs: int) -> Quantised:
    """Tiles as quantised rows [tiles * 32]: the inverse of `quantised_to_tiles`."""
    tiles = packed.reshape(-1, kind.tile_nbytes(inputs))
    groups = kind.groups(inputs)
    if kind.header is None:
        stored = tiles.view(kind.group)
        return Quantised(_by_row(kind, stored["codes"]), _rows(stored["scales"]))
    block = _block(kind)
    whole = np.zeros((len(tiles), -(-groups // HEADER_GROUPS) * block.itemsize), np.uint8)
    whole[:, : tiles.shape[1]] = tiles
    blocks = whole.view(block)
    stored = blocks["groups"].reshape(len(tiles), -1)[:, :groups]
    return Quantised(
        _by_row(kind, stored["codes"]),
        _rows(stored["scales"]),
        _rows(stored["minima"]),
        _rows(blocks["header"]["scales"]),
        _rows(blocks["header"]["minima"]),
    )


def _groups_of_block(kind: PackedType) -> int:
    return 1 if kind.header is None else HEADER_GROUPS


def _block(kind: PackedType) -> np.dtype[Any]:
    """A header and its groups."""
    return np.dtype([("header", kind.header), ("groups", kind.group, HEADER_GROUPS)])


def _whole_tiles(rows: NDArray[Any], tiles: int) -> NDArray[Any]:
    """[rows, ...] as [tiles, 32, ...], filled with zeros."""
    if len(rows) < tiles * TILE_ROWS:
        filled = np.zeros((tiles * TILE_ROWS, *rows.shape[1:]), rows.dtype)
        filled[: len(rows)] = rows
        rows = filled
    return rows.reshape(tiles, TILE_ROWS, *rows.shape[1:])


def _by_step(kind: PackedType, codes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Codes [tiles, 32 rows, groups, 32 inputs] as dwords [tiles, groups, steps, 32 rows]."""
    dwords = np.ascontiguousarray(codes).view(np.uint32)
    if kind.bits == 4:
        dwords = dwords[..., ::2] | dwords[..., 1::2] << np.uint32(4)
    return dwords.transpose(0, 2, 3, 1)


def _by_row(kind: PackedType, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes [tiles, groups, steps, 32 rows, 4] as codes [tiles * 32 rows, groups, 32 inputs]."""
    tiles, groups, _, rows, _ = stored.shape
    codes = stored.transpose(0, 3, 1, 2, 4)
    if kind.bits == 4:
        codes = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=4)
    return codes.reshape(tiles * rows, groups, GROUP_VALUES)


def _rows(stored: NDArray[Any]) -> NDArray[Any]:
    """Numbers [tiles, groups or headers, 32 rows] as [tiles * 32, groups or headers]."""
    return stored.swapaxes(1, 2).reshape(-1, stored.shape[1])
