"""The metadata that llama.cpp's conversion script writes for a model's config, by the model's type."""

from collections.abc import Callable, Mapping
from typing import Any

Metadata = dict[str, Any]


def _common(config: Any) -> Metadata:
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        **_norm(config),
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        "expert_count": config.num_local_experts
        if hasattr(config, "num_local_experts")
        else config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _norm(config: Any) -> Metadata:
    if hasattr(config, "layer_norm_epsilon"):
        return {"attention.layer_norm_epsilon": config.layer_norm_epsilon}
    return {"attention.layer_norm_rms_epsilon": getattr(config, "norm_eps", None) or config.rms_norm_eps}


def _heads(config: Any) -> Metadata:
    return {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}


def _sizes(config: Any, **others: Any) -> Metadata:
    return {"feed_forward_length": config.intermediate_size, **others}


def _moe_sizes(config: Any, **others: Any) -> Metadata:
    return _sizes(config, expert_feed_forward_length=config.moe_intermediate_size, **others)


def _delta(config: Any) -> Metadata:
    return {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
        **_heads(config),
        "rope.dimension_count": int(config.head_dim * config.rope_parameters["partial_rotary_factor"]),
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
        "full_attention_interval": 4,
        "attention.recurrent_layers": [kind == "linear_attention" for kind in config.layer_types],
        **(
            _sizes(config)
            if config.model_type == "qwen3_next"
            else {"rope.dimension_sections": [11, 11, 10, 0]}
        ),
    }


def _latent(config: Any) -> Metadata:
    rope = config.rope_parameters
    scaling: Metadata = {}
    if rope["rope_type"] == "yarn":
        scaling = {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"],
        }
    dense = (
        config.mlp_layer_types.count("dense")
        if config.model_type == "glm4_moe_lite"
        else config.first_k_dense_replace
    )
    return {
        **scaling,
        **_moe_sizes(config),
        "attention.head_count_kv": 1,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.kv_lora_rank": config.kv_lora_rank,
        **({"attention.q_lora_rank": config.q_lora_rank} if config.q_lora_rank else {}),
        "rope.dimension_count": config.qk_rope_head_dim,
        "leading_dense_block_count": dense,
        **_routing(config),
        "expert_gating_func": 1 if config.model_type == "deepseek_v2" else 2,
        "tokenizer.ggml.pre": "glm4" if config.model_type == "glm4_moe_lite" else "deepseek-v3",
    }


def _routing(config: Any) -> Metadata:
    return {
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": bool(config.norm_topk_prob),
        "expert_group_count": config.n_group or 1,
        "expert_group_used_count": config.topk_group or 1,
    }


def _granite(config: Any) -> Metadata:
    shared = getattr(config, "shared_intermediate_size", 0)
    return {
        **_sizes(config),
        "rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
        **({"expert_shared_feed_forward_length": shared} if shared else {}),
    }


def _by_kind(config: Any, kinds: list[str], kind: str, value: int) -> list[int]:
    return [value if each == kind else 0 for each in kinds]


def _granite_hybrid(config: Any) -> Metadata:
    return {
        **_granite(config),
        "attention.head_count_kv": _by_kind(
            config, config.layer_types, "full_attention", config.num_key_value_heads
        ),
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.time_step_rank": config.mamba_n_heads,
        "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head,
        "rope.scaling.finetuned": False,
    }


def _nemotron(config: Any) -> Metadata:
    kinds = config.layers_block_type
    return {
        "attention.head_count_kv": _by_kind(config, kinds, "full_attention", config.num_key_value_heads),
        "feed_forward_length": _by_kind(config, kinds, "moe", config.moe_intermediate_size),
        **_heads(config),
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_feed_forward_length": config.moe_shared_expert_intermediate_size,
        **_routing(config),
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.state_size": config.ssm_state_size,
        "ssm.group_count": config.n_groups,
        "ssm.time_step_rank": config.mamba_num_heads,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
    }


def _lfm2(config: Any) -> Metadata:
    return _moe_sizes(config) | {
        "attention.head_count_kv": _by_kind(
            config, config.layer_types, "full_attention", config.num_key_value_heads
        ),
        "leading_dense_block_count": config.num_dense_layers,
        "expert_gating_func": 2,
        "shortconv.l_cache": config.conv_L_cache,
    }


def _gpt_oss(config: Any) -> Metadata:
    rope = config.rope_parameters
    return {
        "expert_feed_forward_length": config.intermediate_size,
        "feed_forward_length": config.intermediate_size,
        **_heads(config),
        "attention.sliding_window": config.sliding_window,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope["factor"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.yarn_beta_fast": float(rope["beta_fast"]),
        "rope.scaling.yarn_beta_slow": float(rope["beta_slow"]),
    }


def _glm4(config: Any) -> Metadata:
    return {
        **_moe_sizes(config),
        **_routing(config),
        **_heads(config),
        "rope.dimension_count": int(config.head_dim * config.rope_parameters["partial_rotary_factor"]),
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_gating_func": 2,
    }


def _ernie(config: Any) -> Metadata:
    return {
        **_moe_sizes(config),
        "expert_count": config.moe_num_experts,
        "expert_used_count": config.moe_k,
        "interleave_moe_layer_step": config.moe_layer_interval,
        "leading_dense_block_count": config.moe_layer_start_index,
        "expert_shared_count": config.moe_num_shared_experts,
        "expert_shared_feed_forward_length": config.moe_num_shared_experts * config.moe_intermediate_size,
    }


ARCHITECTURES: Mapping[str, tuple[str, Callable[[Any], Metadata]]] = {
    "qwen2_moe": (
        "qwen2moe",
        lambda c: _moe_sizes(c, expert_shared_feed_forward_length=c.shared_expert_intermediate_size),
    ),
    "qwen3_moe": ("qwen3moe", lambda c: _moe_sizes(c) | _heads(c)),
    "mixtral": ("llama", lambda c: _sizes(c) | _heads(c) | {"rope.dimension_count": c.head_dim}),
    "olmoe": ("olmoe", _sizes),
    "qwen3_next": ("qwen3next", _delta),
    "qwen3_5_moe_text": ("qwen35moe", _delta),
    "deepseek_v2": ("deepseek2", _latent),
    "deepseek_v3": ("deepseek2", _latent),
    "glm4_moe_lite": ("deepseek2", _latent),
    "glm4_moe": ("glm4moe", _glm4),
    "gpt_oss": ("gpt-oss", _gpt_oss),
    "granitemoe": ("granitemoe", _granite),
    "granitemoeshared": ("granitemoe", _granite),
    "granitemoehybrid": ("granitehybrid", _granite_hybrid),
    "nemotron_h": ("nemotron_h_moe", _nemotron),
    "lfm2_moe": ("lfm2moe", _lfm2),
    "ernie4_5_moe": ("ernie4_5-moe", _ernie),
}


def described(config: Any) -> tuple[str, Metadata]:
    """The architecture and the metadata for a config of transformers."""
    architecture, describe = ARCHITECTURES[config.model_type]
    return architecture, {**_common(config), **describe(config)}
