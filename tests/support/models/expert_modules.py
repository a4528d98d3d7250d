"""Experts of transformers' families that compute more than silu(gate) * up, with random weights."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from functions.kernels import Activation
from functions.kernels.packed_expert import Biases

LIMIT = 0.8
"""So low that it counts."""
FAMILIES: dict[str, tuple[type[torch.nn.Module], Activation]] = {
    "gpt_oss": (GptOssExperts, Activation(limit=LIMIT, alpha=1.702, up_offset=1.0)),
    "deepseek_v4": (DeepseekV4Experts, Activation(limit=LIMIT)),
    "gemma4": (Gemma4TextExperts, Activation("gelu_tanh")),
    "nemotron_h": (NemotronHExperts, Activation("relu2", gated=False)),
}


@dataclass(frozen=True)
class ExpertModule:
    """The experts of one layer."""

    module: Any
    activation: Activation

    @classmethod
    def random(
        cls, family: str, hidden_size: int, intermediate_size: int, num_experts: int, seed: int = 0
    ) -> "ExpertModule":
        kind, activation = FAMILIES[family]
        config = SimpleNamespace(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            moe_intermediate_size=intermediate_size,
            moe_latent_size=None,
            num_experts=num_experts,
            num_local_experts=num_experts,
            n_routed_experts=num_experts,
            hidden_act="silu",
            hidden_activation="gelu_pytorch_tanh",
            mlp_hidden_act="relu2",
            swiglu_limit=LIMIT,
            swiglu_alpha=1.702,
            _experts_implementation="eager",
        )
        module = kind(config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in module.named_parameters():
            inputs = 1 if name.endswith("bias") else hidden_size if "up" in name else intermediate_size
            parameter.data = torch.randn(parameter.shape, generator=generator) / inputs**0.5
            parameter.requires_grad = False
        return cls(module, activation)

    @property
    def has_bias(self) -> bool:
        return bool(self.module.has_bias)

    def matrices(self, expert: int) -> tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any]]:
        """Gate and up [I, H], and down [H, I], in float32; gate may be None."""
        module = self.module
        first = (module.gate_up_proj if module.has_gate else module.up_proj)[expert]
        down = module.down_proj[expert]
        if module.is_transposed:
            first, down = first.T, down.T
        return *self._split(first), down.contiguous().numpy()

    def biases(self, expert: int) -> Biases | None:
        if not self.has_bias:
            return None
        return Biases(
            *self._split(self.module.gate_up_proj_bias[expert]), self.module.down_proj_bias[expert].numpy()
        )

    def __call__(
        self, hidden_states: NDArray[Any], expert_index: NDArray[Any], expert_weight: NDArray[Any]
    ) -> NDArray[np.float32]:
        """The weighted sums [T, H] over experts [T, K] of rows [T, H]."""
        index = torch.from_numpy(expert_index.astype(np.int64))
        arguments = torch.from_numpy(hidden_states), index, torch.from_numpy(expert_weight)
        out: NDArray[np.float32] = self.module(*arguments).numpy()
        return out

    def _split(self, rows: torch.Tensor) -> tuple[NDArray[Any] | None, NDArray[Any]]:
        """Gate and up, from rows of both."""
        if not self.module.has_gate:
            return None, rows.contiguous().numpy()
        gate, up = rows.chunk(2) if self.module.is_concatenated else (rows[::2], rows[1::2])
        return gate.contiguous().numpy(), up.contiguous().numpy()
