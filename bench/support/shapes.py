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
    "qwen3.6-35b-a3b": {
        "model_type": "qwen3_5_moe_text",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000_000.0,
            "partial_rotary_factor": 0.25,
        },
    },
    "gpt-oss-20b": {"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32},
    "glm-4.7-flash": {
        "model_type": "glm4_moe_lite",
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "lfm2-8b-a1b": {
        "model_type": "lfm2_moe",
        "num_hidden_layers": 24,
        "layer_types": [
            "full_attention" if layer in (2, 6, 10, 14, 18, 21) else "conv" for layer in range(24)
        ],
        "max_position_embeddings": 32768,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 32768,
    },
}
"""Fields of transformers' config classes that differ from the defaults, by the name of the shape.

qwen1.5-moe-mini is not a published model. It has a third of the layers of qwen1.5-moe-a2.7b at half its
width, 2.3 GB in bf16.
"""
