"""The size of a sequence's state."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from control_plane.engine.model.transformers_model.lockstep.cache import PAGE_SIZE


class StateSize(NamedTuple):
    """The bytes that a sequence takes."""

    fixed: int
    """Whatever its length is."""
    per_token: int

    @property
    def page_nbytes(self) -> int:
        """Bytes of a page."""
        return PAGE_SIZE * max(self.per_token, 1)

    @property
    def pages_per_sequence(self) -> int:
        """Pages for what is fixed: twice, for a step has a copy of it."""
        return -(-2 * self.fixed // self.page_nbytes)


def state_size(
    short: DynamicCache, long: DynamicCache, num_tokens: tuple[int, int], context_length: int
) -> StateSize:
    """The size of states, from two of sequences with these numbers of tokens, in whole pages."""
    few, many = (_growing_nbytes(cache) for cache in (short, long))
    per_token = -(-(many - few) // (num_tokens[1] - num_tokens[0]))
    fixed = max(few - per_token * num_tokens[0], 0)
    return StateSize(fixed + _windows_nbytes(short, context_length), per_token)


def _growing_nbytes(cache: DynamicCache) -> int:
    """The bytes of all tensors but those that a window bounds."""
    storages = {}
    for layer in cache.layers:
        bounded = {id(tensor) for tensor in _windows(layer)}
        for tensor in _tensors(vars(layer)):
            if id(tensor) not in bounded:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _windows_nbytes(cache: DynamicCache, context_length: int) -> int:
    """The bytes of full windows."""
    return sum(
        tensor[:, :, :1].nbytes * min(layer.sliding_window, context_length)
        for layer in cache.layers
        for tensor in _windows(layer)
    )


def _windows(layer: Any) -> list[torch.Tensor]:
    """A layer's tensors that a window bounds."""
    is_bounded = isinstance(layer, DynamicSlidingWindowLayer) and layer.keys is not None
    return [layer.keys, layer.values] if is_bounded else []


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """All tensors in a layer's attributes."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
