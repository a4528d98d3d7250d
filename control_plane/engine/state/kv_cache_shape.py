"""The size of what each layer of a model keeps of a token, and where it is."""

import math
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

_LEAST_PAGE_SIZE = 16


class KVLayer(NamedTuple):
    """What one layer keeps of a token."""

    num_kv_heads: int
    key_size: int
    """Values in a head's key."""
    value_size: int
    values_in_keys: bool = False
    """A head's value is the first part of its key, as that of a latent, and takes no memory of its own."""

    @property
    def stored(self) -> tuple[int, ...]:
        """The sizes of what a head keeps."""
        return (self.key_size,) if self.values_in_keys else (self.key_size, self.value_size)


class Block(NamedTuple):
    """The size of what a layer keeps of a token in one place: keys and values (2 parts), or one of them."""

    parts: int
    heads: int
    size: int


class Place(NamedTuple):
    """Where the keys of a layer are, or its values."""

    block: Block
    """The array's."""
    number: int
    """The layer's in the array."""
    part: int


@dataclass(frozen=True)
class KVCacheShape:
    """The size of one token's keys and values."""

    layers: tuple[KVLayer, ...]
    dtype: np.dtype[Any]
    """float32, or uint16 for the bits of bfloat16."""

    @classmethod
    def uniform(
        cls, num_layers: int, num_kv_heads: int, head_dim: int, dtype: np.dtype[Any]
    ) -> "KVCacheShape":
        """The shape of a model whose layers are alike."""
        return cls((KVLayer(num_kv_heads, head_dim, head_dim),) * num_layers, dtype)

    @property
    def page_size(self) -> int:
        """Tokens in a page: as many as fill one page of the machine's memory with one head's values."""
        return max(_LEAST_PAGE_SIZE, mmap.PAGESIZE // min(self._row_nbytes))

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        values = sum(layer.num_kv_heads * sum(layer.stored) for layer in self.layers)
        return values * self.dtype.itemsize * self.page_size

    def lane_length(self, num_tokens: int) -> int:
        """Tokens of the shortest lane for `num_tokens` that ends at the end of a page of memory.

        Lanes then share no page, and each can be returned to the operating system alone.
        """
        # Each step is a power of two, so the longest is a multiple of the others.
        step = max(mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, nbytes) for nbytes in self._row_nbytes)
        return -(-num_tokens // step) * step

    @property
    def _row_nbytes(self) -> set[int]:
        """Bytes of a head's key or value, for all layers."""
        return {size * self.dtype.itemsize for layer in self.layers for size in layer.stored}


def places_of(shape: KVCacheShape) -> tuple[list[tuple[Place, Place]], Counter[Block]]:
    """Where the keys and values of each layer are, and the number of layers in each array."""
    layers: Counter[Block] = Counter()

    def added(blocks: list[Block]) -> Iterator[int]:
        for block in blocks:
            yield layers[block]
            layers[block] += 1

    places = []
    for heads, key_size, value_size, values_in_keys in shape.layers:
        if values_in_keys:
            block = Block(1, heads, key_size)
            (number,) = added([block])
            places.append((Place(block, number, 0), Place(block, number, 0)))
        elif key_size == value_size:
            block = Block(2, heads, key_size)
            (number,) = added([block])
            places.append((Place(block, number, 0), Place(block, number, 1)))
        else:
            keys, values = blocks = [Block(1, heads, key_size), Block(1, heads, value_size)]
            of_keys, of_values = added(blocks)
            places.append((Place(keys, of_keys, 0), Place(values, of_values, 0)))
    return places, layers
