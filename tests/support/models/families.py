"""All families of MoE language models that transformers can build, with configs of their own defaults."""

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

_MARKS = ("expert", "moe")
"""A family's config has a key with one of these in its name."""
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    # Their default configs are no models with experts, or none at all.
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "hidden_size_per_layer_input": 0,
    },
    # Those of Granite 3, but for attention, whose factor would hide differences of scores.
    "granitemoe": {
        "embedding_multiplier": 12.0,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.5,
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 16},
    "hunyuan_v1_moe": {"num_experts": 16, "moe_topk": 2, "head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
        "output_gate_type": "sigmoid",
    },
}
NOT_MODELS = frozenset({"gemma4_assistant"})
"""Configs that need another model to belong to."""

PROGRAMS = frozenset(
    {
        "afmoe",
        "aria_text",
        "dots1",
        "ernie4_5_moe",
        "exaone_moe",
        "flex_olmo",
        "glm4_moe",
        "granitemoe",
        "granitemoeshared",
        "hunyuan_v1_moe",
        "hy_v3",
        "kolibri1",
        "laguna",
        "mellum",
        "minimax_m2",
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
        "sarvam_moe",
        "solar_open",
    }
)
"""Families whose layers can be programs."""


def _has_experts(config_class: Any) -> bool:
    names = {name for each in config_class.__mro__ for name in getattr(each, "__annotations__", {})}
    return any(mark in name for name in names for mark in _MARKS)


MOE_FAMILIES = sorted(
    name
    for name, config_class in CONFIG_MAPPING.items()
    if config_class in MODEL_FOR_CAUSAL_LM_MAPPING and _has_experts(config_class) and name not in NOT_MODELS
)


def family_config(model_type: str) -> PretrainedConfig:
    """The family's default config, with what makes it a model with experts."""
    config: PretrainedConfig = CONFIG_MAPPING[model_type](**_CHANGES.get(model_type, {}))
    return config
