"""The memory for the keys and values of all running sequences.

Each running sequence has a lane: ranges of addresses for the longest possible sequence. Only the part that
has been written takes memory, so the operating system's page table does the paging, and a sequence's keys
stay contiguous as it grows (as vAttention, arXiv 2405.04437, does on GPUs). `KVPages` counts the memory in
use. A freed lane's memory is returned to the operating system, which zeroes it, so no sequence can read
another's.
"""

import math
import mmap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.kernels import DenseKernel, Scores
from control_plane.engine.state.kv_cache_shape import Block, KVCacheShape, Place, places_of
from control_plane.engine.state.kv_pages import Holder, KVPages
from control_plane.engine.state.sequence_memory import SequenceMemory

_MAP_NORESERVE = 0x4000
"""Linux's value; Python's mmap module names it from 3.13 on."""


@dataclass(frozen=True)
class CacheRows:
    """The places of a batch's rows in the cache."""

    lanes: np.ndarray
    """int64 [T]: the lane of each row's sequence."""
    positions: np.ndarray
    """int64 [T]: each row's position in its sequence."""

    def part(self, rows: slice | NDArray[np.int64]) -> "CacheRows":
        """Those of some rows."""
        return CacheRows(self.lanes[rows], self.positions[rows])


class _LaneArray:
    """The lanes' ranges for layers of one size."""

    def __init__(self, lanes: int, layers: int, block: Block, length: int, dtype: np.dtype[Any]) -> None:
        """Raises `OSError` or `OverflowError` if the machine cannot reserve that many addresses."""
        shape = (lanes, layers, block.parts, block.heads, length, block.size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
        # A huge page would take memory for many tokens that `pages` does not count.
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._memory, dtype).reshape(shape)

    def free(self, lane: int) -> None:
        """Return a lane's memory to the operating system."""
        nbytes = self.array[lane].nbytes
        self._memory.madvise(mmap.MADV_DONTNEED, lane * nbytes, nbytes)

    def free_behind(self, lane: int, token: int) -> None:
        """Return the memory of a lane's tokens from this one on, which begins a page of memory."""
        layers, parts, heads, length, _ = self.array.shape[1:]
        row = self.array[0, 0, 0, 0, 0].nbytes
        for head in range(layers * parts * heads if token < length else 0):
            start = ((lane * layers * parts * heads + head) * length + token) * row
            self._memory.madvise(mmap.MADV_DONTNEED, start, (length - token) * row)


@dataclass
class KVCache(SequenceMemory):
    """Lanes of memory: `num_pages` pages in all, and at most `max_length` tokens in each lane."""

    shape: KVCacheShape
    num_pages: int
    num_lanes: int
    max_length: int
    """Tokens of the longest sequence."""
    kernel: DenseKernel
    threads: int
    """The most threads of attention."""
    pages: KVPages = field(init=False)
    _arrays: dict[Block, _LaneArray] = field(init=False)
    """Layers of one size share an array: that of most models is the only one."""
    _places: list[tuple[Place, Place]] = field(init=False)
    """Where the keys and the values of each layer are."""
    _states: list[tuple[NDArray[Any], NDArray[Any]]] = field(init=False)
    """Views of them [lanes, kv_heads, tokens, size]."""

    def __post_init__(self) -> None:
        """Raises `OSError` or `OverflowError` if the machine cannot reserve that many addresses."""
        self.pages = KVPages(self.num_pages, self.shape.page_size, self.num_lanes, self.pages_per_sequence)
        self.max_length = min(self.max_length, self.pages.num_tokens)
        self._places, layers = places_of(self.shape)
        length = self.shape.lane_length(max(self.max_length, 1))
        self._arrays = {
            block: _LaneArray(self.num_lanes, number, block, length, self.shape.dtype)
            for block, number in layers.items()
        }
        self._states = [
            (self._array(keys), self._array(values)[..., : layer.value_size])
            for layer, (keys, values) in zip(self.shape.layers, self._places, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.shape.page_nbytes

    @property
    def pages_per_sequence(self) -> int:
        """Pages that a sequence needs besides those of its tokens."""
        return 0

    @property
    def keeps_prefixes(self) -> bool:
        return True

    def usable(self, holder: Holder, length: int) -> int:
        return length

    def pages_to_keep(self, holder: Holder) -> int:
        return 0

    def keep(self, holder: Holder) -> None:
        """It has what belongs to each part."""

    def drop_kept(self, holder: Holder) -> int:
        return 0

    def free(self, holder: Holder) -> None:
        lane = self.pages.free(holder)
        if lane is not None:
            for array in self._arrays.values():
                array.free(lane)

    def trim(self, holder: Holder, length: int) -> None:
        super().trim(holder, length)
        first_free = self.shape.lane_length(length)
        for array in self._arrays.values():
            array.free_behind(self.pages.lane(holder), first_free)

    def copy(self, source: Holder, target: Holder, length: int) -> None:
        for lanes in self._arrays.values():
            tokens = lanes.array[:, :, :, :, :length]
            tokens[self.pages.lane(target)] = tokens[self.pages.lane(source)]

    def kernel_layer(self, layer: int) -> tuple[NDArray[Any], int]:
        """An array [lanes, layers, 2, kv_heads, tokens, head_dim], and the layer's number in it.

        Raises `ValueError` for a layer whose keys and values are not in one array.
        """
        (block, number, _), _ = self._places[layer]
        if block.parts != 2:
            raise ValueError(f"keys and values of layer {layer} are not in one array")
        return self._arrays[block].array, number

    def attend(
        self,
        layer: int,
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any] | None,
        rows: CacheRows,
        scores: Scores,
    ) -> NDArray[Any]:
        """Store keys and values of all rows as `write` does, and compute the attention of their queries.

        The queries [T, heads, key_size] attend to their past and themselves: [T, heads, value_size].
        """
        return self.kernel.attention(
            self._states[layer],
            query,
            key,
            value,
            rows.lanes,
            rows.positions,
            scores,
            threads=self.threads,
        )

    def write(self, layer: int, rows: CacheRows, key: NDArray[Any], value: NDArray[Any] | None) -> None:
        """Store keys [T, kv_heads, key_size] and values [T, kv_heads, value_size] of all rows.

        There is no `value` for a layer whose values are in its keys.
        """
        keys, values = self._states[layer]
        keys[rows.lanes, :, rows.positions] = key
        if value is not None:
            values[rows.lanes, :, rows.positions] = value

    def read(self, layer: int, lane: int, length: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Views of the keys and values [kv_heads, length, size] of the lane's first tokens."""
        keys, values = (states[lane, :, :length] for states in self._states[layer])
        return keys, values

    def _array(self, place: Place) -> NDArray[Any]:
        """[lanes, kv_heads, tokens, size]"""
        return self._arrays[place.block].array[:, place.number, place.part]
