"""Architectures with gated DeltaNet in most layers: qwen3next and qwen35moe."""

from collections.abc import Iterator, Mapping

import numpy as np

from control_plane.partition.checkpoint.gguf.architectures.base import (
    ATTENTION,
    MLP,
    SOFTMAX,
    TOP,
    Architecture,
    Config,
    Layer,
    expert_config,
    fused_experts,
    head_dim_config,
)
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.architectures.plain import SHARED_EXPERT, as_row
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import (
    Indices,
    changed,
    concatenated,
    renamed,
    reordered,
)
from functions.kernels.bfloat16 import Float32

_SHIFTED_NORMS = (
    "attn_norm.weight",
    "post_attention_norm.weight",
    "attn_q_norm.weight",
    "attn_k_norm.weight",
)
"""The norms that llama.cpp has with one added."""
_DELTA = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_in": "linear_attn.in_proj_qkvz",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


def _config(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    head_dim, values = metadata.number("attention.key_length"), metadata.number("ssm.time_step_rank")
    return {
        **head_dim_config(metadata),
        "rope_parameters": {
            "partial_rotary_factor": metadata.number("rope.dimension_count") / max(1, head_dim)
        },
        **_kinds_of_layers(metadata),
        "linear_conv_kernel_dim": metadata.number("ssm.conv_kernel"),
        "linear_key_head_dim": metadata.number("ssm.state_size"),
        "linear_num_key_heads": metadata.number("ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_value_head_dim": metadata.number("ssm.inner_size") // max(1, values),
        **expert_config(metadata, tensors, "num_experts", "moe_intermediate_size"),
        "shared_expert_intermediate_size": metadata.number("expert_shared_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _kinds_of_layers(metadata: Metadata) -> Config:
    """Which layers have which kind of attention, by layer or by an interval."""
    if not metadata.has("attention.recurrent_layers"):
        return {"full_attention_interval": metadata.number("full_attention_interval", 4)}
    layers = metadata.number("block_count") - metadata.number("nextn_predict_layers", 0)
    return {
        "layer_types": [
            "linear_attention" if is_recurrent else "full_attention"
            for is_recurrent in metadata.flags("attention.recurrent_layers", layers)
        ]
    }


def _qwen3next(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    return {
        "model_type": "qwen3_next",
        "architectures": ["Qwen3NextForCausalLM"],
        "intermediate_size": metadata.number("feed_forward_length", 1),
        **_config(metadata, tensors),
    }


def _qwen35moe(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    config = _config(metadata, tensors)
    if metadata.has("rope.dimension_sections"):
        sections = [length for length in metadata.by_layer("rope.dimension_sections", 3) if length]
        config["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}
    return {
        "model_type": "qwen3_5_moe_text",
        "architectures": ["Qwen3_5MoeForCausalLM"],
        **config,
    }


def _without_one(tensor: Tensor) -> Tensor:
    def change(rows: Float32) -> Float32:
        return rows - np.float32(1)

    return changed(tensor, change)


def _common_layer(layer: Layer) -> Iterator[Tensor]:
    layer.change(_SHIFTED_NORMS, _without_one)
    layer.change(["ssm_a"], lambda tensor: changed(tensor, lambda row: np.log(-row)))
    layer.change(
        ["ssm_conv1d.weight"],
        lambda tensor: renamed(tensor, tensor.name, (tensor.shape[0], 1, tensor.columns)),
    )
    layer.change(["ffn_gate_inp_shexp.weight"], as_row)
    yield from fused_experts(layer)
    yield from layer.renamed(ATTENTION | MLP | SHARED_EXPERT | _DELTA)


def _qwen3next_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    """The projection of q, k, v and z has those of each key head together; llama.cpp has them apart."""
    if parts := layer.take("attn_qkv.weight", "attn_gate.weight"):
        yield reordered(
            concatenated(layer.name("linear_attn.in_proj_qkvz.weight"), parts), _by_key_head(config)
        )
    yield from _common_layer(layer)


def _by_key_head(config: Config) -> Indices:
    """Where the rows of q, k, v and z of each key head are, if those of all q come first, then all k, ..."""
    heads = config["linear_num_key_heads"]
    key = heads * config["linear_key_head_dim"]
    value = config["linear_num_value_heads"] * config["linear_value_head_dim"]
    starts = np.cumsum([0, key, key, value])
    parts = [
        start + np.arange(length).reshape(heads, -1)
        for start, length in zip(starts, (key, key, value, value), strict=True)
    ]
    return np.concatenate(parts, axis=1).reshape(-1)


def _qwen35moe_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    """llama.cpp has the value heads of all key heads in turn, transformers those of a key head together."""
    heads, width = _value_heads(config), config["linear_value_head_dim"]
    values = (heads[:, None] * width + np.arange(width)).reshape(-1)
    keys = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    after_keys = np.concatenate([np.arange(keys), keys + values])
    layer.change(["ssm_alpha.weight", "ssm_beta.weight"], lambda tensor: reordered(tensor, heads))
    layer.change(["ssm_a", "ssm_dt.bias"], lambda tensor: changed(tensor, lambda row: row[:, heads]))
    layer.change(["attn_gate.weight"], lambda tensor: reordered(tensor, values))
    layer.change(["attn_qkv.weight", "ssm_conv1d.weight"], lambda tensor: reordered(tensor, after_keys))
    layer.change(["ssm_out.weight"], lambda tensor: changed(tensor, lambda rows: rows[:, values]))
    yield from _common_layer(layer)


def _value_heads(config: Config) -> Indices:
    """Where llama.cpp has each value head."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    return np.arange(values).reshape(-1, keys).T.reshape(-1)


_ROUTING = {"expert_gating_func": SOFTMAX, "expert_weights_norm": True}
_CHANGE_TOP = {"output_norm.weight": _without_one}
ARCHITECTURES = {
    "qwen3next": Architecture(_qwen3next, _qwen3next_layer, TOP, _CHANGE_TOP, _ROUTING),
    "qwen35moe": Architecture(_qwen35moe, _qwen35moe_layer, TOP, _CHANGE_TOP, _ROUTING),
}
