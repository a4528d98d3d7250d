"""Functions of transformers that compute a step of a state for rows that decode, replaced by our kernels.

A kernel call reads the sequences' states where they lie and writes those after the step. transformers'
functions would have copies of both, and a state is the largest part of what such a function reads.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from control_plane.engine.kernels import DeltaRows, DenseKernel, ShortConvolution
from control_plane.engine.model.transformers_model.ragged.state_cache import StateKey
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch
from control_plane.engine.state.lane_states import StateShape

_DELTA_RULES = ("torch_recurrent_gated_delta_rule", "recurrent_kimi_delta_attention")
"""For one row of each sequence of a batch."""
_CONVOLUTIONS = ("causal_conv1d_update",)


@dataclass
class StatePlaces:
    """A state of several sequences in memory that is shared by all, and the rows' places in it."""

    places: NDArray[Any]
    """[places, *sizes]"""
    sources: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class DeltaRule:
    """Takes the place of a function of `_DELTA_RULES`."""

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
        """As transformers' functions, but for the states: `initial_state` has their shape alone, and is
        returned. Raises `NotImplementedError` unless keys and queries are to be normalised."""
        if not use_qk_l2norm_in_kernel:
            raise NotImplementedError("the rule does not normalise its keys")
        states = self.places()
        decay = g if g.ndim == key.ndim else g[..., None]
        rows = (to_numpy(each[:, 0].float()) for each in (query, key, value, decay, beta))
        out = self.kernel.delta_rule(
            states.places, DeltaRows(*rows), states.sources, states.targets, threads=self.threads
        )
        return to_torch(out)[:, None].to(query.dtype), initial_state


@dataclass(frozen=True)
class Convolution:
    """Takes the place of a function of `_CONVOLUTIONS`."""

    kernel: DenseKernel
    function: Callable[..., torch.Tensor]
    """transformers' own, for what the kernel does not compute."""
    places: Callable[[], StatePlaces]
    """Those of the rows that are computed now."""

    def __call__(
        self,
        hidden_states: torch.Tensor,
        conv_state: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
    ) -> torch.Tensor:
        """As transformers' function, but for the state: `conv_state` only has its shape and type."""
        states = self.places()
        is_known = activation in (None, "silu", "swish") and weight.shape == conv_state.shape[1:]
        if not is_known or weight.dtype != conv_state.dtype:
            places, targets = to_torch(states.places), torch.from_numpy(states.targets)
            state = places[torch.from_numpy(states.sources)]
            out = self.function(hidden_states, state, weight, bias, activation)
            places.index_copy_(0, targets, state)
            return out
        convolution = ShortConvolution(
            to_numpy(weight), None if bias is None else to_numpy(bias), silu=activation is not None
        )
        x = to_numpy(hidden_states[..., 0].to(conv_state.dtype))
        columns = self.kernel.short_convolution(states.places, x, convolution, states.sources, states.targets)
        return to_torch(columns)[..., None].to(hidden_states.dtype)


@dataclass(frozen=True)
class StepFunctions:
    """Replaces the functions that modules' forward passes call."""

    kernel: DenseKernel
    threads: int
    """The most of a kernel call."""
    places: Callable[[StateKey], StatePlaces]
    """Those of the rows that are computed now."""

    def replaced_in(
        self, module: nn.Module, shapes: Mapping[StateKey, StateShape]
    ) -> tuple[Callable[..., Any], set[StateKey]]:
        """The forward pass of a module with these states, with all functions replaced that can be, and the
        states that it then needs nothing but the places of."""
        forward: Any = inspect.unwrap(type(module).forward)
        kinds = Counter(key.kind for key in shapes)
        functions, keys = {}, set()
        for key, shape in shapes.items():
            for name in set(forward.__code__.co_names) & forward.__globals__.keys():
                function = self._function(name, forward.__globals__[name], key, shape)
                # Of several states of a kind, it is not known which a call has.
                if function and kinds[key.kind] == 1:
                    functions[name] = function
                    keys.add(key)
        if not functions:
            return module.forward, keys
        names = {**forward.__globals__, **functions}
        replaced = FunctionType(
            forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
        )
        replaced.__kwdefaults__ = forward.__kwdefaults__
        return replaced.__get__(module), keys

    def _function(
        self, name: str, own: Callable[..., Any], key: StateKey, shape: StateShape
    ) -> Callable[..., Any] | None:
        places = partial(self.places, key)
        if name in _DELTA_RULES and len(shape.sizes) == 3 and shape.dtype == np.float32:
            return DeltaRule(self.kernel, self.threads, places)
        if name in _CONVOLUTIONS and len(shape.sizes) == 2:
            return Convolution(self.kernel, own, places)
        return None
