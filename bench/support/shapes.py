"""Shapes of published models, for models of random weights."""

from typing import Any

_ROPE_1M = {"rope_type": "default", "rope_theta": 1_000_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 24,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "max_position_embeddings": 8192,
        "rope_parameters": _ROPE_1M,
    },
    "qwen1.5-moe-mini": {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 8,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 2816,
        "moe_intermediate_size": 704,
        "shared_expert_intermediate_size": 2816,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
        "rope_parameters": _ROPE_1M,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "head_dim": 128,
        "norm_topk_prob": True,
        "max_position_embeddings": 40960,
        "rope_parameters": _ROPE_1M,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "num_hidden_layers": 32,
        "max_position_embeddings": 32768,
        "rope_parameters": _ROPE_1M,
    },
    "olmoe-1b-7b": {"model_type": "olmoe", "num_hidden_layers": 16, "intermediate_size": 1024},
}
"""Fields of transformers' config classes that differ from the defaults, by the name of the shape.

qwen1.5-moe-mini is not a published model. It has a third of the layers of qwen1.5-moe-a2.7b at half its
width, 2.3 GB in bf16.
"""
