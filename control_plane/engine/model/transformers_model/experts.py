"""The hook in transformers' experts interface, which all families' MoE layers call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch

INTERFACE = "faasmoe"
"""The name of our functions in transformers' interfaces."""


ComputeExperts = Callable[[int, NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Computes the experts of a layer: for rows [T, H], the sums of the outputs of their experts [T, K] times
weights [T, K]; -1 is no expert. The rows have the partition's dtype, and so has the result."""


@dataclass
class ExpertsPath:
    """The way of a model's rows to the experts. All its layers share it."""

    compute: ComputeExperts


@dataclass(frozen=True)
class RemoteExperts:
    """Takes the place of the experts of one layer."""

    layer: int
    num_experts: int
    dtype: torch.dtype
    """The partition's, of the rows that are sent."""
    path: ExpertsPath

    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sums [T, H] for rows [T, H], as transformers' own experts return them."""
        # Numbers outside are those of no expert: families use them where a row has fewer.
        absent = (top_k_index < 0) | (top_k_index >= self.num_experts)
        index = top_k_index.to(torch.int64).masked_fill(absent, -1)
        weights = top_k_weights.to(torch.float32).masked_fill(absent, 0.0)
        rows = hidden_states.to(self.dtype)
        out = self.path.compute(self.layer, to_numpy(rows), to_numpy(index), to_numpy(weights))
        return to_torch(out).to(hidden_states.dtype)


def experts_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that use transformers' experts interface, by name, in the order of the layers."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")}


def attach_experts(model: PreTrainedModel, layers: Mapping[str, int], dtype: torch.dtype) -> ExpertsPath:
    """Have the experts' modules of these names send their rows, with these numbers of layers."""
    ALL_EXPERTS_FUNCTIONS.register(INTERFACE, _send)
    path = ExpertsPath(_zeros)
    modules: dict[str, Any] = experts_modules(model)
    for name, layer in layers.items():
        module = modules[name]
        module.remote_experts = RemoteExperts(layer, module.num_experts, dtype, path)
    model.set_experts_implementation(INTERFACE)
    return path


def _send(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    out: torch.Tensor = module.remote_experts(hidden_states, top_k_index, top_k_weights)
    return out


def _zeros(
    layer: int, hidden_states: NDArray[Any], index: NDArray[Any], weights: NDArray[Any]
) -> NDArray[Any]:
    """In place of experts while a model is measured, before it has a dispatcher."""
    return np.zeros_like(hidden_states)
