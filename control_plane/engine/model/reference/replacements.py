"""The modules of transformers models that FaaSMoE replaces, by model family."""

from torch import nn

from control_plane.engine.model.reference.attention import (
    RaggedMixtralAttention,
    RaggedOlmoeAttention,
    RaggedQwen2MoeAttention,
    RaggedQwen3MoeAttention,
)
from control_plane.engine.model.reference.layers import KernelRMSNorm
from control_plane.engine.model.reference.remote_experts import OverlappedQwen2MoeBlock, RemoteExperts

REPLACEMENTS: dict[str, dict[str, type[nn.Module]]] = {
    "qwen2_moe": {
        "Qwen2MoeExperts": RemoteExperts,
        "Qwen2MoeSparseMoeBlock": OverlappedQwen2MoeBlock,
        "Qwen2MoeAttention": RaggedQwen2MoeAttention,
        "Qwen2MoeRMSNorm": KernelRMSNorm,
    },
    "qwen3_moe": {
        "Qwen3MoeExperts": RemoteExperts,
        "Qwen3MoeAttention": RaggedQwen3MoeAttention,
        "Qwen3MoeRMSNorm": KernelRMSNorm,
    },
    "mixtral": {
        "MixtralExperts": RemoteExperts,
        "MixtralAttention": RaggedMixtralAttention,
        "MixtralRMSNorm": KernelRMSNorm,
    },
    "olmoe": {
        "OlmoeExperts": RemoteExperts,
        "OlmoeAttention": RaggedOlmoeAttention,
        "OlmoeRMSNorm": KernelRMSNorm,
    },
}
"""Names of transformers' classes, and the modules that replace them, by model type."""
