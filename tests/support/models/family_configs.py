"""Tiny configurations of families of transformers."""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

VOCABULARY = 96
HYBRID = ("granitemoehybrid", "qwen3_next", "qwen3_5_moe", "lfm2_moe", "nemotron_h")
"""Families with states of fixed size besides keys and values; not all of them."""
LOCKSTEP = ("deepseek_v4", "jamba")
"""Families that lockstep alone serves; not all of them."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "unpadded_vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_hidden_size": 24,
    "expert_ffn_hidden_size": 24,
    "moe_intermediate_size": 24,
    "moe_intermediate_dim": 24,
    "moe_shared_expert_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "moe_shared_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_latent_size": None,
    "hidden_size_per_layer_input": 0,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 0,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "sliding_window": 8,
    "max_position_embeddings": 256,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 64,
    "num_experts": 6,
    "n_routed_experts": 6,
    "num_local_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "top_k_experts": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_router_topk": 2,
    "n_group": 2,
    "topk_group": 1,
    "enable_moe_block": True,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_expand": 2,
    "ssm_state_size": 8,
    "n_groups": 2,
    "conv_bias": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
"""Small values of the keys that families have. Each gets those that it knows."""

_ALTERNATING = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"] * 2}

_BY_FAMILY: Mapping[str, dict[str, Any]] = {
    "gemma4": {**_WINDOWED, "global_head_dim": 16, "num_global_key_value_heads": 1},
    "gpt_oss": _WINDOWED,
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "position_embedding_type": "rope"},
    "qwen3_5_moe": _ALTERNATING,
    "qwen3_next": _ALTERNATING,
    "bailing_hybrid": _ALTERNATING,
    "minimax": {**_ALTERNATING, "block_size": 4},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
    "dots1": {"n_shared_experts": 1},
    "kimi_linear": {**_ALTERNATING, "linear_head_dim": 8, "linear_num_heads": 4},
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 2},
    "dots3_note": {"num_key_value_heads": 4},
    "qwen4_exp": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
        "output_gate_type": "sigmoid",
    },
}


def family_config(family: str, **overrides: Any) -> PretrainedConfig:
    """A tiny configuration of a family's model for text."""
    for name in (f"{family}_text", family):
        if name in CONFIG_MAPPING and CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING:
            break
    else:
        raise NotImplementedError("no class for causal language models")
    kind: Any = CONFIG_MAPPING[name]
    known = {key for each in kind.__mro__ for key in getattr(each, "__annotations__", {})}
    values = {key: value for key, value in _SIZES.items() if key in known}
    if "qk_rope_head_dim" in known:
        values.pop("head_dim", None)
    if "kv_lora_rank" in known:
        # Latent attention expands keys to all heads.
        values["num_key_value_heads"] = values["num_attention_heads"]
    config: PretrainedConfig = kind(**{**values, **_BY_FAMILY.get(family, {}), **overrides})
    return config
