"""Counts which experts the rows of a model are routed to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel


class RoutingRecorder:
    """Counts the choices of a model's routers in every forward pass after its construction."""

    def __init__(self, model: PreTrainedModel, moe_layers: Sequence[int], num_experts: int) -> None:
        self._counts = torch.zeros(len(moe_layers), num_experts, num_experts, dtype=torch.int64)
        for number, layer in enumerate(moe_layers):
            router: nn.Module = model.model.layers[layer].mlp.gate
            router.register_forward_hook(self._hook(number))

    @property
    def use(self) -> NDArray[np.int64]:
        """[layers, experts]: the rows that each expert was chosen for."""
        return self._counts.diagonal(dim1=1, dim2=2).numpy().copy()

    @property
    def together(self) -> NDArray[np.int64]:
        """[layers, experts, experts]: the rows that both experts were chosen for; 0 on the diagonal."""
        counts = self._counts.clone()
        counts.diagonal(dim1=1, dim2=2).zero_()
        return counts.numpy()

    def _hook(self, number: int) -> Any:
        def count(router: nn.Module, inputs: object, output: tuple[torch.Tensor, ...]) -> None:
            # transformers' routers return logits, weights and the chosen experts [rows, top_k].
            chosen = torch.zeros(len(output[2]), self._counts.shape[1], dtype=torch.float32)
            chosen.scatter_(1, output[2], 1.0)
            # Row by row, the product counts each pair of chosen experts; the diagonal counts single experts.
            self._counts[number] += (chosen.T @ chosen).to(torch.int64)

        return count
