"""The memory for the keys and values of all running sequences.

Each running sequence has a lane: a range of addresses for the longest possible sequence. Only the part that
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

from control_plane.engine.kernels import DenseKernel
from control_plane.engine.state.kv_pages import KVPages
from control_plane.engine.state.sequence import Sequence
from control_plane.errors import OutOfCache

_MAP_NORESERVE = 0x4000
"""Linux's value; Python's mmap module names it from 3.13 on."""
_LEAST_PAGE_SIZE = 16


@dataclass(frozen=True)
class KVCacheShape:
    """The size of one token's keys and values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: np.dtype[Any]
    """float32, or uint16 for the bits of bfloat16."""

    @property
    def page_size(self) -> int:
        """Tokens in a page: as many as fill one page of the machine's memory with one head's values."""
        return max(_LEAST_PAGE_SIZE, mmap.PAGESIZE // self._row_nbytes)

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self._row_nbytes * self.page_size

    def lane_length(self, num_tokens: int) -> int:
        """Tokens of the shortest lane for `num_tokens` that ends at the end of a page of memory.

        Lanes then share no page, and each can be returned to the operating system alone.
        """
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, self._row_nbytes)
        return -(-num_tokens // step) * step

    @property
    def _row_nbytes(self) -> int:
        return self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class CacheRows:
    """The places of a batch's rows in the cache, and the rows that attend in the kernel."""

    lanes: np.ndarray
    """int64 [T]: the lane of each row's sequence."""
    positions: np.ndarray
    """int64 [T]: each row's position in its sequence."""
    attending: np.ndarray
    """int64 [N]: the numbers of the attending rows, in ascending order."""


@dataclass
class KVCache:
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
    _memory: mmap.mmap = field(init=False)
    array: NDArray[Any] = field(init=False)
    """The lanes [lanes, layers, keys and values, kv_heads, tokens, head_dim]: see `DenseKernel.attention`."""

    def __post_init__(self) -> None:
        """Raises `OSError` or `OverflowError` if the machine cannot reserve that many addresses."""
        self.pages = KVPages(self.num_pages, self.shape.page_size, self.num_lanes)
        self.max_length = min(self.max_length, self.pages.num_tokens)
        shape = self.shape
        length = shape.lane_length(self.max_length)
        size = (self.num_lanes, shape.num_layers, 2, shape.num_kv_heads, length, shape.head_dim)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._memory = mmap.mmap(-1, math.prod(size) * shape.dtype.itemsize, flags=flags)
        # A huge page would take memory for many tokens that `pages` does not count.
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array = np.frombuffer(self._memory, shape.dtype).reshape(size)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, which the cache takes when it is full."""
        return self.num_pages * self.shape.page_nbytes

    def check_fits(self, sequence: Sequence) -> None:
        """Raises `OutOfCache` if the sequence could not run even alone."""
        if sequence.max_length > self.max_length:
            raise OutOfCache(
                f"{sequence.max_length} tokens do not fit into the KV cache of {self.pages.num_tokens}"
            )

    def free(self, sequence: Sequence) -> None:
        """Free the sequence's lane and memory. Does nothing for a sequence that holds none."""
        lane = self.pages.free(sequence)
        if lane is not None:
            nbytes = self.array[lane].nbytes
            self._memory.madvise(mmap.MADV_DONTNEED, lane * nbytes, nbytes)

    def copy(self, source: Sequence, target: Sequence, length: int) -> None:
        """Copy the keys and values of the first tokens to another sequence, which must have room for them."""
        lanes = self.array[:, :, :, :, :length]
        lanes[self.pages.lane(target)] = lanes[self.pages.lane(source)]

    def attend(
        self,
        layer: int,
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any],
        rotation: tuple[NDArray[Any], NDArray[Any]],
        rows: CacheRows,
        scaling: float,
        window: int | None = None,
    ) -> NDArray[Any]:
        """Store keys and values [T, kv_heads, head_dim] of all rows, and compute attention of some rows.

        Of the queries [T, heads, head_dim], the N rows in `rows.attending` attend to their past and
        themselves: [N, heads, head_dim]. `rotation` holds the cosines and sines [T, head_dim] of the rotary
        embedding, which is applied to queries and keys. `window` is the most tokens that a row sees, its own
        included.
        """
        return self.kernel.attention(
            self.array,
            layer,
            query,
            key,
            value,
            rotation,
            rows.lanes,
            rows.positions,
            rows.attending,
            scaling=scaling,
            window=window,
            threads=self.threads,
        )

    def read(self, layer: int, lane: int, length: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Views of the keys and values [kv_heads, length, head_dim] of the lane's first tokens."""
        keys, values = self.array[lane, layer, :, :, :length]
        return keys, values
