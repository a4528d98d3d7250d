"""transformers' cache of one sequence, so that a step can add to it, and take it back."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

PAGE_SIZE = 16
"""Tokens in a page."""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values with room behind them, so that a token is added without copying those before it.

    Copies of a state share the room: what one of them writes there, the others do not count as theirs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values [1, heads, n, size]; returns those of all tokens."""
        past = self.get_seq_length()
        length = past + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self._buffers or self._buffers[0].shape[2] < length:
            self._buffers = [
                _roomy(old, new, length)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            ]
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)
        self.keys[:, :, past:] = key_states
        self.values[:, :, past:] = value_states
        return self.keys, self.values


def _roomy(old: torch.Tensor | None, new: torch.Tensor, length: int) -> torch.Tensor:
    """A tensor [1, heads, whole pages, size] that begins with the old tokens."""
    pages = -(-length // PAGE_SIZE)
    buffer = new.new_empty(*new.shape[:2], pages * PAGE_SIZE, new.shape[3])
    if old is not None and old.numel():
        buffer[:, :, : old.shape[2]] = old
    return buffer


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty state of a sequence."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def working_copy(cache: DynamicCache) -> DynamicCache:
    """A copy that a step may change without changing the original.

    It shares the tensors that are replaced and not changed, which are those that grow with each token. Of
    others, it has no more than their values, though some are views of all that the last step computed.
    """
    copies = {id(tensor): tensor for layer in cache.layers for tensor in _replaced(layer)}
    copies |= {id(tensor): tensor.clone() for tensor in tensors_of(cache) if id(tensor) not in copies}
    return copy.deepcopy(cache, copies)


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    """All tensors of a cache, or of a layer's attributes."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)
    elif isinstance(value, DynamicCache):
        yield from tensors_of([vars(layer) for layer in value.layers])


def _replaced(layer: object) -> Iterator[torch.Tensor]:
    """The tensors of a layer that an update replaces, or in which it only writes behind those in use."""
    tensors: list[Any] = []
    if isinstance(layer, DynamicLayer):
        tensors += [layer.keys, layer.values]
    if isinstance(layer, GrowingLayer):
        tensors += layer._buffers
    if isinstance(layer, DynamicIndexedLayer):
        tensors += [layer.indexer_keys, layer.indexer_position_ids]
    return (tensor for tensor in tensors if tensor is not None)
