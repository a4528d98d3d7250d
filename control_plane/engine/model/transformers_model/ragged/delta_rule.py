"""The gated delta rule of rows that decode, in our kernel, in the place of that of transformers' modules.

A kernel call reads the sequences' states where they lie and writes those after the step: they are the largest
part of what such a module reads.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from control_plane.engine.kernels import DeltaRows, DenseKernel
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch
from control_plane.engine.state.lane_states import StateShape

_RULES = ("torch_recurrent_gated_delta_rule", "recurrent_kimi_delta_attention")
"""transformers' functions that compute a step of the rule: for one row of each sequence of a batch."""


@dataclass
class StatePlaces:
    """A state of several sequences in memory that is shared by all, and the rows' places in it."""

    places: np.ndarray
    """[places, heads, key_size, value_size]"""
    sources: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class DeltaRule:
    """Takes the place of a function of `_RULES`."""

    kernel: DenseKernel
    threads: int
    places: Callable[[], StatePlaces]
    """Those of the rows that are computed now."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        initial_state: torch.Tensor,
        use_qk_l2norm_in_kernel: bool = False,
        **_: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As transformers' functions, but for the states: `initial_state` only has their shape, and so has
        what is returned. Raises `NotImplementedError` for keys that are not to have length 1."""
        if not use_qk_l2norm_in_kernel:
            raise NotImplementedError("the rule has keys of other lengths than 1")
        states = self.places()
        decay = g if g.ndim == key.ndim else g[..., None]
        rows = (to_numpy(each[:, 0].float()) for each in (query, key, value, decay, beta))
        out = self.kernel.delta_rule(
            states.places, DeltaRows(*rows), states.sources, states.targets, threads=self.threads
        )
        return to_torch(out)[:, None].to(query.dtype), initial_state


def can_be_replaced(module: nn.Module, shape: StateShape) -> bool:
    """Whether the module computes a step of the rule with such a state."""
    names = inspect.unwrap(type(module).forward).__code__.co_names
    return len(shape.sizes) == 3 and shape.dtype == np.float32 and any(name in names for name in _RULES)


def with_rule(module: nn.Module, rule: DeltaRule) -> Callable[..., Any]:
    """The module's forward pass, with this rule."""
    forward: Any = inspect.unwrap(type(module).forward)
    names = {**forward.__globals__, **dict.fromkeys(_RULES, rule)}
    replaced = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    replaced.__kwdefaults__ = forward.__kwdefaults__
    return replaced.__get__(module)
