"""Models of transformers as llama.cpp's conversion script writes them: metadata, names and values.

This is the inverse of what `control_plane.partition.checkpoint.gguf.architectures` does, written from what
llama.cpp reads.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from bench.support.gguf.metadata import ARCHITECTURES, Metadata, described
from functions.kernels.bfloat16 import Float32

Tensors = dict[str, Float32]
MODEL_TYPES = tuple(ARCHITECTURES)

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.embeddings": "token_embd",
    "model.norm": "output_norm",
    "model.norm_f": "output_norm",
    "model.embedding_norm": "token_embd_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "operator_norm": "attn_norm",
    "norm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "ffn_norm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.sinks": "attn_sinks.weight",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "block_sparse_moe.router": "ffn_gate_inp",
    "feed_forward.gate": "ffn_gate_inp",
    "mixer.gate": "ffn_gate_inp",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "feed_forward.expert_bias": "exp_probs_b.bias",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "shared_mlp.output_linear": "ffn_down_shexp",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_ba": "ssm_ba",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "mixer.q_proj": "attn_q",
    "mixer.k_proj": "attn_k",
    "mixer.v_proj": "attn_v",
    "mixer.o_proj": "attn_output",
}
_NAMES |= {
    f"mlp.{shared}.{part}_proj": f"ffn_{part}_shexp"
    for shared in ("shared_expert", "shared_experts")
    for part in ("gate", "up", "down")
}
_NAMES |= {f"mixer.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("up", "down")}
for _module in ("linear_attn", "mamba", "mixer"):
    _NAMES |= {
        f"{_module}.in_proj": "ssm_in",
        f"{_module}.conv1d": "ssm_conv1d",
        f"{_module}.dt_bias": "ssm_dt.bias",
        f"{_module}.A_log": "ssm_a",
        f"{_module}.D": "ssm_d",
        f"{_module}.norm": "ssm_norm",
        f"{_module}.out_proj": "ssm_out",
    }


def converted(model: PreTrainedModel) -> tuple[str, Metadata, Tensors]:
    """The architecture, metadata and values that llama.cpp would have for a model."""
    config: Any = model.config
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    tensors: Tensors = {}
    for name, values in state.items():
        if is_stored(name, config):
            tensors |= converted_tensor(name, values, config)
    return *described(config), tensors


def is_stored(name: str, config: Any) -> bool:
    """Whether llama.cpp has a tensor of its own for one of the model's."""
    return not (config.tie_word_embeddings and name == "lm_head.weight")


def converted_tensor(name: str, values: NDArray[Any], config: Any) -> dict[str, NDArray[Any]]:
    """One of a model's tensors by the names, and with the values, that llama.cpp would have.

    Where only rows change their places, the values may also be the bytes of blocks. Where nothing changes,
    they are the same object. Values may be those of some of the experts of a tensor with all of them.
    """
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    prefix, rest = (f"blk.{layer[1]}.", layer[2]) if layer else ("", name)
    return {prefix + each: part for each, part in _converted(rest, values, config).items()}


def _converted(name: str, values: Float32, config: Any) -> Tensors:
    """A tensor of a layer, or one outside of them, by llama.cpp's names."""
    kind = config.model_type
    if special := _special(name, values, config, kind):
        return special
    values = _changed(name, values, config, kind)
    module, _, part = name.rpartition(".")
    found = _NAMES.get(name) or f"{_NAMES[module]}.{part}"
    if kind in ("qwen3_next", "qwen3_5_moe_text", "gpt_oss", "glm4_moe"):
        found = found.replace("ffn_norm", "post_attention_norm")
    return {found: values}


def _special(name: str, values: Float32, config: Any, kind: str) -> Tensors:
    """Tensors that become several, or other ones."""
    if name.endswith("experts.gate_up_proj"):
        if kind == "gpt_oss":
            rows = values.swapaxes(1, 2)
            return {"ffn_gate_exps.weight": rows[:, ::2], "ffn_up_exps.weight": rows[:, 1::2]}
        gate, up = np.split(values, 2, axis=1)
        return {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
    if name.endswith("experts.down_proj"):
        return {"ffn_down_exps.weight": values.swapaxes(1, 2) if kind == "gpt_oss" else values}
    if name.endswith("experts.up_proj"):
        return {"ffn_up_exps.weight": values}
    if name.endswith("gate_up_proj_bias"):
        return {"ffn_gate_exps.bias": values[:, ::2], "ffn_up_exps.bias": values[:, 1::2]}
    if name.endswith("down_proj_bias"):
        return {"ffn_down_exps.bias": values}
    if name == "shared_mlp.input_linear.weight":
        gate, up = np.split(values, 2)
        return {"ffn_gate_shexp.weight": gate, "ffn_up_shexp.weight": up}
    if name == "self_attn.kv_b_proj.weight":
        both = values.reshape(config.num_attention_heads, -1, values.shape[1])
        nope = config.qk_nope_head_dim
        return {"attn_k_b.weight": both[:, :nope].swapaxes(1, 2), "attn_v_b.weight": both[:, nope:]}
    if name == "linear_attn.in_proj_qkvz.weight":
        heads, key = config.linear_num_key_heads, config.linear_key_head_dim
        value = config.linear_num_value_heads // heads * config.linear_value_head_dim
        by_head = values.reshape(heads, 2 * key + 2 * value, -1)
        q, k, v, z = np.split(by_head, np.cumsum([key, key, value]), axis=1)
        q, k, v, z = (each.reshape(-1, values.shape[1]) for each in (q, k, v, z))
        return {"attn_qkv.weight": np.concatenate([q, k, v]), "attn_gate.weight": z}
    return {}


def _changed(name: str, values: Float32, config: Any, kind: str) -> Float32:
    """A tensor with the values, or in the order, that llama.cpp has."""
    if kind in ("mixtral", "granitemoe", "granitemoeshared", "granitemoehybrid", "nemotron_h"):
        if re.search(r"\bq_proj\.", name):
            values = _pairs(values, config.num_attention_heads)
        if re.search(r"\bk_proj\.", name):
            values = _pairs(values, config.num_key_value_heads)
    is_shifted = name.endswith("norm.weight") and name != "linear_attn.norm.weight"
    if kind in ("qwen3_next", "qwen3_5_moe_text") and is_shifted:
        values = values + np.float32(1)
    if kind == "qwen3_5_moe_text" and "linear_attn" in name:
        values = _tiled_values(name, values, config)
    if name.endswith("A_log"):
        values = -np.exp(values)
    if "conv1d.weight" in name or "conv.conv" in name:
        values = values.squeeze(1)
    if "shared_expert_gate" in name or "moe_statics" in name:
        values = values.squeeze(0)
    if kind in ("granitemoehybrid", "nemotron_h"):
        if name.endswith(("A_log", ".D")):
            values = values[:, None]
        if name in ("mamba.norm.weight", "mixer.norm.weight"):
            groups = config.mamba_n_groups if kind == "granitemoehybrid" else config.n_groups
            values = values.reshape(groups, -1)
    return values


def _pairs(values: Float32, heads: int) -> Float32:
    """Rows whose values rotate together side by side."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _tiled_values(name: str, values: Float32, config: Any) -> Float32:
    """The value heads of all key heads in turn."""
    keys, count = config.linear_num_key_heads, config.linear_num_value_heads

    def tiled(part: Float32, axis: int, width: int) -> Float32:
        shape = part.shape
        split = part.reshape(*shape[:axis], keys, count // keys, width, *shape[axis + 1 :])
        return split.swapaxes(axis, axis + 1).reshape(shape)

    after = 2 * keys * config.linear_key_head_dim
    width = config.linear_value_head_dim
    if "in_proj_qkv" in name or "conv1d" in name:
        return np.concatenate([values[:after], tiled(values[after:], 0, width)])
    if "in_proj_z" in name:
        return tiled(values, 0, width)
    if "out_proj" in name:
        return tiled(values, 1, width)
    if name.endswith("norm.weight"):
        return values
    return tiled(values, 0, 1)
