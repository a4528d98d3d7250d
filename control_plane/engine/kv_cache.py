"""The keys and values of all running sequences, in pages."""

from dataclasses import dataclass, field

import torch

from control_plane.engine.sequence import Sequence
from control_plane.errors import OutOfCache


@dataclass(frozen=True)
class KVCacheShape:
    """What one token keeps."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    page_size: int = 16
    """Tokens in a page."""

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        token = 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        return token * self.page_size


@dataclass(frozen=True)
class _PageTable:
    """Where one sequence's tokens are kept: the slot of each, in order."""

    slots: torch.Tensor
    first: int
    contiguous: int
    """How many slots follow each other from the first on."""

    @classmethod
    def of_pages(cls, pages: list[int], page_size: int) -> "_PageTable":
        breaks = (i for i in range(1, len(pages)) if pages[i] != pages[0] + i)
        contiguous = next(breaks, len(pages)) * page_size
        slots = (torch.tensor(pages)[:, None] * page_size + torch.arange(page_size)).flatten()
        return cls(slots, pages[0] * page_size, contiguous)


@dataclass
class KVCache:
    """Pages of `shape.page_size` tokens; a sequence holds whole pages, in the order of its tokens.

    A page's memory is touched when its first token is written, so the bound costs nothing in advance.
    """

    shape: KVCacheShape
    num_pages: int
    _free: list[int] = field(init=False)
    _tables: dict[Sequence, _PageTable] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._free = list(range(self.num_pages - 1, -1, -1))
        size = (self.num_pages * self.shape.page_size, self.shape.num_kv_heads, self.shape.head_dim)
        self._keys = [torch.empty(size, dtype=self.shape.dtype) for _ in range(self.shape.num_layers)]
        self._values = [torch.empty(size, dtype=self.shape.dtype) for _ in range(self.shape.num_layers)]

    @property
    def num_free_pages(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    @property
    def num_tokens(self) -> int:
        """Tokens that all pages hold."""
        return self.num_pages * self.shape.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.shape.page_size)

    def check_fits(self, sequence: Sequence) -> None:
        """Raises `OutOfCache` when the sequence could not run even alone."""
        if self.pages_for(sequence.max_length) > self.num_pages:
            raise OutOfCache(
                f"{sequence.max_length} tokens do not fit into the KV cache of "
                f"{self.num_pages * self.shape.page_size}"
            )

    def can_allocate(self, sequence: Sequence) -> bool:
        """Whether the sequence, at its full length, fits beside those that run."""
        return self.pages_for(sequence.max_length) <= len(self._free)

    def allocate(self, sequence: Sequence) -> None:
        """Reserve the pages of the sequence at its full length, so that it never has to stop half-way."""
        pages = [self._free.pop() for _ in range(self.pages_for(sequence.max_length))]
        self._tables[sequence] = _PageTable.of_pages(pages, self.shape.page_size)

    def free(self, sequence: Sequence) -> None:
        """Give the sequence's pages back; harmless for one that holds none."""
        table = self._tables.pop(sequence, None)
        if table is not None:
            pages = (table.slots[:: self.shape.page_size] // self.shape.page_size).tolist()
            # In order, so that the next sequence gets neighbouring pages, whose tokens need no gathering.
            self._free = sorted([*self._free, *pages], reverse=True)

    def write(
        self, layer: int, sequence: Sequence, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Keep the keys and values [n, kv_heads, head_dim] of the sequence's tokens from `start` on."""
        slots = self._tables[sequence].slots[start : start + len(keys)]
        self._keys[layer][slots] = keys
        self._values[layer][slots] = values

    def read(self, layer: int, sequence: Sequence, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [length, kv_heads, head_dim] of the first tokens; views where they can be."""
        table = self._tables[sequence]
        if length <= table.contiguous:
            rows = slice(table.first, table.first + length)
            return self._keys[layer][rows], self._values[layer][rows]
        slots = table.slots[:length]
        return self._keys[layer][slots], self._values[layer][slots]
