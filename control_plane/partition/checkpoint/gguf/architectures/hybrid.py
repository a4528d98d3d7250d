"""Architectures with Mamba 2 or short convolutions in some layers, and Granite's without: granitemoe,
granitehybrid, nemotron_h_moe and lfm2moe."""

from collections.abc import Iterator, Mapping

import numpy as np

from control_plane.partition.checkpoint.gguf.architectures.base import (
    ATTENTION,
    SIGMOID,
    SOFTMAX,
    TOP,
    Architecture,
    Config,
    Layer,
    expert_config,
    fused_experts,
    head_dim_config,
    norm_epsilon,
)
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.architectures.plain import undo_permutation
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import changed, concatenated, renamed


def _mamba(module: str) -> dict[str, str]:
    return {
        "ssm_in": f"{module}.in_proj",
        "ssm_conv1d": f"{module}.conv1d",
        "ssm_dt.bias": f"{module}.dt_bias",
        "ssm_a": f"{module}.A_log",
        "ssm_d": f"{module}.D",
        "ssm_norm": f"{module}.norm",
        "ssm_out": f"{module}.out_proj",
    }


def _undo_mamba(layer: Layer) -> None:
    """The shapes and values of a Mamba 2 module's tensors in transformers."""
    layer.change(["ssm_a", "ssm_d", "ssm_norm.weight"], _as_vector)
    layer.change(["ssm_a"], lambda tensor: changed(tensor, lambda row: np.log(-row)))
    layer.change(["ssm_conv1d.weight"], _as_convolution)


def _as_vector(tensor: Tensor) -> Tensor:
    return renamed(tensor, tensor.name, (tensor.size,))


def _as_convolution(tensor: Tensor) -> Tensor:
    """A kernel [C, W] with the dimension of one input channel, [C, 1, W]."""
    return renamed(tensor, tensor.name, (tensor.shape[0], 1, tensor.columns))


def _granite(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    scales = {
        "attention_multiplier": "attention.scale",
        "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }
    return {
        **expert_config(metadata, tensors, "num_local_experts", "intermediate_size"),
        **{name: metadata.fraction(key, 1.0) for name, key in scales.items()},
    }


def _granitemoe(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    shared = metadata.number("expert_shared_feed_forward_length", 0)
    if not shared:
        names = {"model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"]}
        return {**names, **_granite(metadata, tensors)}
    return {
        "model_type": "granitemoeshared",
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "shared_intermediate_size": shared,
        **_granite(metadata, tensors),
    }


def _granitehybrid(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    layers = metadata.number("block_count")
    inner, heads = metadata.number("ssm.inner_size"), metadata.number("ssm.time_step_rank")
    return {
        "model_type": "granitemoehybrid",
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "layer_types": [
            "full_attention" if heads else "linear_attention"
            for heads in metadata.by_layer("attention.head_count_kv", layers)
        ],
        "position_embedding_type": "rope" if metadata.flag("rope.scaling.finetuned", True) else "nope",
        "shared_intermediate_size": metadata.number("expert_shared_feed_forward_length"),
        "mamba_n_heads": heads,
        "mamba_d_head": inner // max(1, heads),
        "mamba_d_state": metadata.number("ssm.state_size"),
        "mamba_n_groups": metadata.number("ssm.group_count"),
        "mamba_d_conv": metadata.number("ssm.conv_kernel"),
        "mamba_expand": inner // max(1, metadata.number("embedding_length")),
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in tensors),
        **_granite(metadata, tensors),
    }


def _granite_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    undo_permutation(layer, config)
    _undo_mamba(layer)
    yield from fused_experts(layer, "block_sparse_moe.experts")
    if halves := layer.take("ffn_gate_shexp.weight", "ffn_up_shexp.weight"):
        yield concatenated(layer.name("shared_mlp.input_linear.weight"), halves)
    names = {"ffn_gate_inp": "block_sparse_moe.router", "ffn_down_shexp": "shared_mlp.output_linear"}
    yield from layer.renamed(ATTENTION | names | _mamba("mamba"))


def _nemotron(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    layers = metadata.number("block_count") - metadata.number("nextn_predict_layers", 0)
    kinds = zip(
        metadata.by_layer("attention.head_count_kv", layers),
        metadata.by_layer("feed_forward_length", layers),
        strict=True,
    )
    inner, heads = metadata.number("ssm.inner_size"), metadata.number("ssm.time_step_rank")
    return {
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "layers_block_type": [
            "full_attention" if heads else "moe" if width else "linear_attention" for heads, width in kinds
        ],
        **head_dim_config(metadata),
        "layer_norm_epsilon": norm_epsilon(metadata),
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // max(1, heads),
        "ssm_state_size": metadata.number("ssm.state_size"),
        "n_groups": metadata.number("ssm.group_count"),
        "conv_kernel": metadata.number("ssm.conv_kernel"),
        "use_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in tensors),
        **expert_config(metadata, tensors, "n_routed_experts", "moe_intermediate_size"),
        "moe_shared_expert_intermediate_size": metadata.number("expert_shared_feed_forward_length"),
        "moe_latent_size": metadata.number("moe_latent_size", 0) or None,
        "n_shared_experts": metadata.number("expert_shared_count", 1),
        "norm_topk_prob": metadata.flag("expert_weights_norm", False),
        "routed_scaling_factor": metadata.fraction("expert_weights_scale", 1.0),
        "n_group": metadata.number("expert_group_count", 1),
        "topk_group": metadata.number("expert_group_used_count", 1),
    }


_NEMOTRON = {
    "attn_norm": "norm",
    "attn_q": "mixer.q_proj",
    "attn_k": "mixer.k_proj",
    "attn_v": "mixer.v_proj",
    "attn_output": "mixer.o_proj",
    "ffn_up": "mixer.up_proj",
    "ffn_down": "mixer.down_proj",
    "ffn_gate_inp": "mixer.gate",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_up_exps.weight": "mixer.experts.up_proj",
    "ffn_down_exps.weight": "mixer.experts.down_proj",
    "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
    "ffn_latent_down": "mixer.fc1_latent_proj",
    "ffn_latent_up": "mixer.fc2_latent_proj",
}
_NEMOTRON_TOP = {
    "token_embd.weight": "model.embeddings.weight",
    "output_norm.weight": "model.norm_f.weight",
    "output.weight": "lm_head.weight",
}


def _nemotron_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    undo_permutation(layer, config)
    _undo_mamba(layer)
    yield from layer.renamed(_NEMOTRON | _mamba("mixer"))


def _lfm2moe(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    layers = metadata.number("block_count")
    return {
        "model_type": "lfm2_moe",
        "architectures": ["Lfm2MoeForCausalLM"],
        "layer_types": [
            "full_attention" if heads else "conv"
            for heads in metadata.by_layer("attention.head_count_kv", layers)
        ],
        "intermediate_size": metadata.number("feed_forward_length"),
        "norm_eps": norm_epsilon(metadata),
        "conv_L_cache": metadata.number("shortconv.l_cache"),
        "conv_bias": any(name.endswith(".shortconv.in_proj.bias") for name in tensors),
        "num_dense_layers": metadata.number("leading_dense_block_count", 0),
        "use_expert_bias": any(name.endswith(".exp_probs_b.bias") for name in tensors),
        **expert_config(metadata, tensors, "num_experts", "moe_intermediate_size"),
    }


_LFM2 = {
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "ffn_gate_inp": "feed_forward.gate",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
_LFM2_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "token_embd_norm.weight": "model.embedding_norm.weight",
    "output_norm.weight": "model.embedding_norm.weight",
    "output.weight": "lm_head.weight",
}


def _lfm2_layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    layer.change(["shortconv.conv.weight"], _as_convolution)
    yield from fused_experts(layer, "feed_forward.experts")
    yield from layer.renamed(_LFM2)


_SOFTMAX = {"expert_gating_func": SOFTMAX, "expert_weights_norm": True}
_SIGMOID = {"expert_gating_func": SIGMOID, "expert_weights_norm": True}
ARCHITECTURES = {
    "granitemoe": Architecture(_granitemoe, _granite_layer, TOP, fixed=_SOFTMAX),
    "granitehybrid": Architecture(_granitehybrid, _granite_layer, TOP, fixed=_SOFTMAX),
    "nemotron_h_moe": Architecture(
        _nemotron, _nemotron_layer, _NEMOTRON_TOP, fixed={"expert_gating_func": SIGMOID}
    ),
    "lfm2moe": Architecture(_lfm2moe, _lfm2_layer, _LFM2_TOP, fixed=_SIGMOID),
}
