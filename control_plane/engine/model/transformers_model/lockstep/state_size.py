"""The size of a sequence's state."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from control_plane.engine.model.transformers_model.lockstep.cache import PAGE_SIZE, tensors_of


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


def state_size(states: Mapping[int, DynamicCache], context_length: int) -> StateSize:
    """The size of states, from some of sequences with these numbers of tokens.

    The fewest and the most tokens, whole pages, show what each token adds. Those between show more of what
    comes and goes: some families gather up to 128 tokens before they compress them.
    """
    nbytes = {length: _growing_nbytes(cache) for length, cache in states.items()}
    few, many = min(nbytes), max(nbytes)
    per_token = -(-(nbytes[many] - nbytes[few]) // (many - few))
    fixed = max(0, *(total - per_token * length for length, total in nbytes.items()))
    return StateSize(fixed + _windows_nbytes(states[few], context_length), per_token)


def _growing_nbytes(cache: DynamicCache) -> int:
    """The bytes of all tensors but those that a window bounds."""
    sizes: dict[int, int] = {}
    for layer in cache.layers:
        bounded = {id(tensor) for tensor in _windows(layer)}
        for tensor in tensors_of(vars(layer)):
            if id(tensor) not in bounded:
                # Some are views of others. A view of a step's tensors keeps those only until the next step.
                address = tensor.data_ptr()
                sizes[address] = max(tensor.nbytes, sizes.get(address, 0))
    return sum(sizes.values())


def _windows_nbytes(cache: DynamicCache, context_length: int) -> int:
    """The bytes of full windows."""
    layers: list[Any] = cache.layers
    return sum(
        tensor[:, :, :1].nbytes * min(layer.sliding_window, context_length)
        for layer in layers
        for tensor in _windows(layer)
    )


def _windows(layer: Any) -> list[torch.Tensor]:
    """A layer's tensors that a window bounds."""
    is_bounded = isinstance(layer, DynamicSlidingWindowLayer) and layer.keys is not None
    return [layer.keys, layer.values] if is_bounded else []
