"""Finds the modules of a model that keep states of a sequence, by what they ask of transformers' cache."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from control_plane.engine.model.transformers_model.ragged.state_cache import StateCache, StateKey
from control_plane.engine.state.lane_states import StateShape

_DTYPES: Mapping[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.bfloat16: np.dtype(np.uint16),
}


class StateSearch(StateCache):
    """The cache of a forward pass of one row, in which it is seen who keeps what."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers: dict[nn.Module, list[StateKey]] = {}
        """The modules that keep states, and which."""
        self.shapes: dict[StateKey, StateShape] = {}
        """The states of one sequence."""
        self._running: list[nn.Module] = []
        """The modules whose forward pass has begun, the innermost last."""

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """See which modules run until the context ends."""
        hooks = []
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(lambda module, _: self._running.append(module)))
            hooks.append(module.register_forward_hook(lambda *_: self._end()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._running.clear()

    def read(self, key: StateKey) -> None:
        """There is none before the first row."""

    def write(self, key: StateKey, state: torch.Tensor) -> None:
        """Raises `NotImplementedError` for a state that is not a sequence's alone, or of another type."""
        if len(state) != 1 or state.dtype not in _DTYPES:
            raise NotImplementedError(f"a state is {list(state.shape)} of {state.dtype}")
        self.mixers.setdefault(self._running[-1], []).append(key)
        self.shapes[key] = StateShape(tuple(state.shape[1:]), _DTYPES[state.dtype])

    def _end(self) -> Any:
        self._running.pop()
