"""deepseek2: DeepSeek-V2, DeepSeek-V3 and GLM-4.7-Flash, whose keys and values come from a latent vector."""

from collections.abc import Iterator, Mapping

from control_plane.errors import PartitionError
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
    fused_experts,
)
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.architectures.plain import (
    CORRECTION_BIAS,
    SHARED_EXPERTS,
    routing_config,
)
from control_plane.partition.checkpoint.gguf.architectures.rope import rope_parameters
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import concatenated, renamed, transposed

_LATENT = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}


def _config(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    key = "attention.key_length_mla" if metadata.has("attention.key_length_mla") else "attention.key_length"
    value = key.replace("key", "value")
    rotated = metadata.number("rope.dimension_count")
    return {
        **_family(metadata, tensors),
        # llama.cpp counts one head of keys and values where these are compressed.
        "num_key_value_heads": metadata.number("attention.head_count"),
        "intermediate_size": metadata.number("feed_forward_length"),
        "q_lora_rank": metadata.number("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": metadata.number("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": max(1, metadata.number(key) - rotated),
        "v_head_dim": metadata.number(value),
        "rope_parameters": _rope(metadata, tensors),
        **expert_config(metadata, tensors, "n_routed_experts", "moe_intermediate_size"),
    }


def _family(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    routing = routing_config(metadata)
    # Files of models whose config does not name the function have no such key.
    has_bias = any(name.endswith(".exp_probs_b.bias") for name in tensors)
    gating = metadata.number("expert_gating_func", SIGMOID if has_bias else SOFTMAX)
    if gating not in (SOFTMAX, SIGMOID):
        raise PartitionError(f"{metadata.path}: routers with the function of number {gating} are not known")
    if gating == SOFTMAX:
        metadata.check("expert_weights_norm", False)
        grouped = (
            {"topk_method": "group_limited_greedy"} if routing["n_group"] > 1 else {"topk_method": "greedy"}
        )
        return {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], **routing, **grouped}
    if metadata.text("tokenizer.ggml.pre") != "glm4":
        return {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], **routing}
    dense = routing["first_k_dense_replace"]
    layers = metadata.number("block_count") - metadata.number("nextn_predict_layers", 0)
    kinds = ["dense" if layer < dense else "sparse" for layer in range(layers)]
    routing["mlp_layer_types"] = kinds
    return {"model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"], **routing}


def _rope(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    """DeepSeek's models scale attention by the same logarithm twice, which llama.cpp has as one number."""
    rope = rope_parameters(metadata, tensors)
    if rope["rope_type"] == "yarn" and metadata.has("rope.scaling.yarn_log_multiplier"):
        scale = round(10 * metadata.fraction("rope.scaling.yarn_log_multiplier"), 6)
        rope |= {"mscale": scale, "mscale_all_dim": scale}
    return rope


def _layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    if parts := layer.take("attn_k_b.weight", "attn_v_b.weight"):
        keys, values = parts
        both = concatenated(layer.name("self_attn.kv_b_proj.weight"), [transposed(keys), values])
        yield renamed(both, both.name, (both.size // both.columns, both.columns))
    yield from fused_experts(layer)
    yield from layer.renamed(ATTENTION | MLP | SHARED_EXPERTS | CORRECTION_BIAS | _LATENT)


ARCHITECTURES = {"deepseek2": Architecture(_config, _layer, TOP)}
