"""The modules that replace the routed experts of a transformers model."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from control_plane.engine.experts.dispatcher import Dispatcher, PendingExperts
from control_plane.engine.model.reference.tensor_views import to_numpy, to_torch


@dataclass(frozen=True, slots=True)
class PendingTensor:
    """`PendingExperts` whose result is a tensor."""

    experts: PendingExperts

    def wait(self) -> torch.Tensor:
        """The weighted sums [T, H]; see `PendingExperts.wait`."""
        return to_torch(self.experts.wait())


class RemoteExperts(nn.Module):
    """The routed experts of one layer. The module has no parameters: it sends the rows to functions.

    Its call has the signature of transformers' own modules: `experts(hidden_states [T, H],
    top_k_index [T, K], top_k_weights [T, K]) -> [T, H]`. transformers does not pass the layer's number to
    the constructor, so `attach` sets it.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()

    def attach(self, layer: int, dispatcher: Dispatcher) -> None:
        """Set the layer's number and its dispatcher. To be called once, before the first forward pass."""
        self._layer = layer
        self._dispatcher = dispatcher

    def begin(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> PendingTensor:
        """Send the rows, and leave it to the caller when to wait for the result."""
        weights = top_k_weights.to(torch.float32).numpy()
        pending = self._dispatcher.begin(self._layer, to_numpy(hidden_states), top_k_index.numpy(), weights)
        return PendingTensor(pending)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        return self.begin(hidden_states, top_k_index, top_k_weights).wait()


class OverlappedQwen2MoeBlock(Qwen2MoeSparseMoeBlock):
    """Qwen2-MoE's block, which computes the shared expert while the functions compute the routed ones."""

    experts: RemoteExperts  # type: ignore[assignment]  # Replaced in the model by the table below.

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows = hidden_states.view(-1, hidden_states.shape[-1])
        _, routing_weights, selected_experts = self.gate(rows)
        routed = self.experts.begin(rows, selected_experts, routing_weights)
        shared: torch.Tensor = F.sigmoid(self.shared_expert_gate(rows)) * self.shared_expert(rows)
        return (routed.wait() + shared).reshape(hidden_states.shape)
