"""Architectures with attention like Llama's: qwen2moe, qwen3moe, olmoe, llama, glm4moe, ernie4_5-moe.

llama with experts is Mixtral.
"""

from collections.abc import Iterator, Mapping
from functools import partial

from control_plane.partition.checkpoint.gguf.architectures.base import (
    ATTENTION,
    MLP,
    SIGMOID,
    SOFTMAX,
    TOP,
    Architecture,
    Config,
    Layer,
    expert_config,
    expert_width,
    fused_experts,
    head_dim_config,
    rotating_halves,
    rotating_head_dim_config,
)
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import renamed

SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
SHARED_EXPERTS = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
CORRECTION_BIAS = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}


def as_row(tensor: Tensor) -> Tensor:
    """A vector as a matrix of one row: GGUF has no dimensions of length one."""
    return renamed(tensor, tensor.name, (1, tensor.size))


def _layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    layer.change(["ffn_gate_inp_shexp.weight"], as_row)
    yield from fused_experts(layer)
    yield from layer.renamed(ATTENTION | MLP | SHARED_EXPERT)


def _qwen2moe(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    return {
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        **rotating_head_dim_config(metadata),
        "intermediate_size": metadata.number("feed_forward_length", 1),
        **expert_config(metadata, tensors, "num_experts", "moe_intermediate_size"),
        "shared_expert_intermediate_size": metadata.number("expert_shared_feed_forward_length", 0)
        or tensors["blk.0.ffn_up_shexp.weight"].shape[0],
        "norm_topk_prob": False,
    }


def _qwen3moe(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        **rotating_head_dim_config(metadata),
        "intermediate_size": metadata.number("feed_forward_length", 1),
        **expert_config(metadata, tensors, "num_experts", "moe_intermediate_size"),
        "norm_topk_prob": True,
    }


def _olmoe(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    clip = (
        {"clip_qkv": metadata.fraction("attention.clamp_kqv")} if metadata.has("attention.clamp_kqv") else {}
    )
    return {
        "model_type": "olmoe",
        "architectures": ["OlmoeForCausalLM"],
        **rotating_head_dim_config(metadata),
        **expert_config(metadata, tensors, "num_experts", "intermediate_size"),
        "norm_topk_prob": False,
        **clip,
    }


def _mixtral(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    head_dim = rotating_head_dim_config(metadata)
    if not head_dim and metadata.has("rope.dimension_count"):
        head_dim = {"head_dim": metadata.number("rope.dimension_count")}
    return {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        **head_dim,
        **expert_config(metadata, tensors, "num_local_experts", "intermediate_size"),
        "sliding_window": None,
    }


def undo_permutation(layer: Layer, config: Config) -> None:
    """Put the rows of queries and keys into transformers' order."""
    for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
        names = [f"attn_{part}.weight", f"attn_{part}.bias"]
        layer.change(names, partial(rotating_halves, heads=config[heads]))


def _mixtral_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    undo_permutation(layer, config)
    yield from _layer(layer, config)


def _glm4moe(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    return {
        "model_type": "glm4_moe",
        "architectures": ["Glm4MoeForCausalLM"],
        **head_dim_config(metadata),
        "rope_parameters": {
            "partial_rotary_factor": metadata.number("rope.dimension_count")
            / max(1, metadata.number("attention.key_length"))
        },
        "intermediate_size": metadata.number("feed_forward_length"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        **expert_config(metadata, tensors, "n_routed_experts", "moe_intermediate_size"),
        **routing_config(metadata),
    }


def routing_config(metadata: Metadata) -> Config:
    """How DeepSeek-V3's router, and those like it, choose and weigh experts."""
    return {
        "n_shared_experts": metadata.number("expert_shared_count", 0),
        "first_k_dense_replace": metadata.number("leading_dense_block_count", 0),
        "routed_scaling_factor": metadata.fraction("expert_weights_scale", 1.0),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "n_group": metadata.number("expert_group_count", 1),
        "topk_group": metadata.number("expert_group_used_count", 1),
    }


def _glm4moe_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    yield from fused_experts(layer)
    yield from layer.renamed(ATTENTION | MLP | SHARED_EXPERTS | CORRECTION_BIAS)


def _ernie(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    return {
        "model_type": "ernie4_5_moe",
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        **rotating_head_dim_config(metadata),
        "intermediate_size": metadata.number("feed_forward_length"),
        "moe_num_experts": metadata.number("expert_count"),
        "moe_k": metadata.number("expert_used_count"),
        "moe_intermediate_size": expert_width(metadata, tensors),
        "moe_num_shared_experts": metadata.number("expert_shared_count", 0),
        "moe_layer_start_index": metadata.number("leading_dense_block_count", 0),
        "moe_layer_interval": metadata.number("interleave_moe_layer_step", 1),
        "use_bias": "blk.0.attn_q.bias" in tensors,
    }


def _ernie_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    layer.change(["exp_probs_b.bias"], as_row)
    yield from fused_experts(layer)
    correction = {"exp_probs_b.bias": "mlp.gate.moe_statics.e_score_correction_bias"}
    yield from layer.renamed(ATTENTION | MLP | SHARED_EXPERTS | correction)


_SOFTMAX = {"expert_gating_func": SOFTMAX, "expert_weights_norm": False}
_NORMED_SOFTMAX = {"expert_gating_func": SOFTMAX, "expert_weights_norm": True}
ARCHITECTURES = {
    "qwen2moe": Architecture(_qwen2moe, _layer, TOP, fixed=_SOFTMAX),
    "qwen3moe": Architecture(_qwen3moe, _layer, TOP, fixed=_NORMED_SOFTMAX),
    "olmoe": Architecture(_olmoe, _layer, TOP, fixed=_SOFTMAX),
    "llama": Architecture(_mixtral, _mixtral_layer, TOP, fixed=_NORMED_SOFTMAX),
    "glm4moe": Architecture(_glm4moe, _glm4moe_layer, TOP, fixed={"expert_gating_func": SIGMOID}),
    "ernie4_5-moe": Architecture(_ernie, _ernie_layer, TOP, fixed=_NORMED_SOFTMAX),
}
