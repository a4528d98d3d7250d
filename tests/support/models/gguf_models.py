"""Tiny models of each architecture that llama.cpp has and that can be read from its files."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

_COMMON: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_ROUTED: dict[str, Any] = {"n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24}
_LATENT: dict[str, Any] = {
    **_ROUTED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_DELTA: dict[str, Any] = {
    "num_experts": 4,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 28,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
_YARN = {"rope_type": "yarn", "rope_theta": 5e4, "factor": 4.0, "original_max_position_embeddings": 32}
_GRANITE: dict[str, Any] = {
    "num_local_experts": 4,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
_BY_TYPE: Mapping[str, Mapping[str, Any]] = {
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 28},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 12, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "head_dim": 12},
    "olmoe": {"num_experts": 4},
    "qwen3_next": _DELTA,
    "qwen3_5_moe_text": {
        **_DELTA,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    },
    "deepseek_v2": {
        **_LATENT,
        "q_lora_rank": None,
        "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v3": {**_LATENT, "q_lora_rank": 20, "n_group": 2, "routed_scaling_factor": 2.5},
    "glm4_moe_lite": {**_LATENT, "q_lora_rank": 20},
    "glm4_moe": {**_ROUTED, "head_dim": 16, "use_qk_norm": True, "attention_bias": True},
    "gpt_oss": {
        "num_local_experts": 4,
        "head_dim": 16,
        "rope_parameters": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    },
    "granitemoe": _GRANITE,
    "granitemoeshared": {**_GRANITE, "shared_intermediate_size": 20},
    "granitemoehybrid": {
        **_GRANITE,
        "shared_intermediate_size": 20,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 6,
        "mamba_n_groups": 2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "position_embedding_type": "nope",
    },
    "nemotron_h": {
        "layer_norm_epsilon": 1e-6,
        **_ROUTED,
        "moe_shared_expert_intermediate_size": 28,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 6,
        "n_groups": 2,
        "head_dim": 12,
    },
    "lfm2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
    },
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 2,
    },
}


def gguf_config(model_type: str, **others: Any) -> PretrainedConfig:
    """The config of a tiny model, with others of its keys."""
    config: PretrainedConfig = AutoConfig.for_model(
        model_type, **{**_COMMON, **_BY_TYPE[model_type], **others}
    )
    return config


def tiny_model(model_type: str) -> PreTrainedModel:
    """A random model, whose norms and biases are random, too."""
    torch.manual_seed(0)
    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(gguf_config(model_type)).eval()
    with torch.no_grad():
        for values in [
            *model.parameters(),
            *(buffer for buffer in model.buffers() if buffer.is_floating_point()),
        ]:
            values.copy_(torch.rand(values.shape) * 0.5 + 0.1)
    return model
