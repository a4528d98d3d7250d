"""A real model of 135M parameters as a mixture of equal experts: reads SmolLM2 from a GGUF file.

Two experts with the same weights, which get every token, answer as the dense model does. The file's weights
are of four bits, with a scale and a minimum in groups of 32, so a type of the same groups would hold them
nearly without loss. The checkpoint has channels in another order, which changes no answer, but the groups.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file
from transformers import AutoTokenizer, MixtralConfig

from functions.kernels.bfloat16 import Float32

EXPERTS = 2
Convert = Callable[[str, Float32], Float32]
"""Changes a matrix, which gets its name in GGUF."""


def save_checkpoint(model: Path, out: Path, convert: Convert = lambda name, matrix: matrix) -> None:
    """Write the checkpoint, in float32, of a GGUF file of SmolLM2. `convert` changes its large matrices."""
    reader = gguf.GGUFReader(model)
    weights = {each.name: gguf.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    config = _config(reader)
    out.mkdir(parents=True)
    config.save_pretrained(out)
    AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(out)
    weights["output.weight"] = weights["token_embd.weight"]
    shuffled = {name: np.ascontiguousarray(values) for name, values in _shuffled(weights, config).items()}
    converted = {name: convert(name, each) if _is_large(name) else each for name, each in shuffled.items()}
    save_file(_named(converted, config), out / "model.safetensors", {"format": "pt"})


def _is_large(name: str) -> bool:
    """Whether it is a matrix that every token reads in full."""
    return "norm" not in name and name != "token_embd.weight"


def _config(reader: Any) -> MixtralConfig:
    def value(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    return MixtralConfig(
        architectures=["MixtralForCausalLM"],
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        sliding_window=None,
        num_local_experts=EXPERTS,
        num_experts_per_tok=EXPERTS,
        tie_word_embeddings=False,
    )


def _shuffled(weights: dict[str, Float32], config: MixtralConfig) -> dict[str, Float32]:
    """The same model with the hidden states, the FFNs' inner values and the heads' values in other orders."""
    random = np.random.default_rng(0)
    hidden = random.permutation(config.hidden_size)
    inner = random.permutation(config.intermediate_size)
    kv_heads, heads = config.num_key_value_heads, config.num_attention_heads
    head_dim = config.hidden_size // heads
    value = np.arange(kv_heads)[:, None] * head_dim + [random.permutation(head_dim) for _ in range(kv_heads)]
    # The heads that share a head of keys and values have their outputs in its order.
    shared = np.repeat(value % head_dim, heads // kv_heads, axis=0)
    output = (np.arange(heads)[:, None] * head_dim + shared).ravel()
    made = {}
    for name, each in weights.items():
        match name.split(".")[-2]:
            case "attn_norm" | "ffn_norm" | "output_norm":
                made[name] = each[hidden]
            case "attn_output":
                made[name] = each[hidden][:, output]
            case "ffn_down":
                made[name] = each[hidden][:, inner]
            case "ffn_gate" | "ffn_up":
                made[name] = each[:, hidden][inner]
            case "attn_v":
                made[name] = each[:, hidden][value.ravel()]
            case "attn_q":
                made[name] = _halves(each[:, hidden], heads)
            case "attn_k":
                made[name] = _halves(each[:, hidden], kv_heads)
            case _:
                made[name] = each[:, hidden]
    return made


def _halves(matrix: Float32, heads: int) -> Float32:
    """Rows of queries or keys, which GGUF has in pairs that rotate together, in transformers' order."""
    return matrix.reshape(heads, -1, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_EXPERT_NAMES = {"ffn_gate": "w1", "ffn_up": "w3", "ffn_down": "w2"}


def _named(weights: dict[str, Float32], config: MixtralConfig) -> dict[str, Float32]:
    """The weights by transformers' names, with experts that are equal and a router that is indifferent."""
    named = {}
    for name, each in weights.items():
        *block, kind, _ = name.split(".")
        if not block:
            named[f"{_NAMES[kind]}.weight"] = each
            continue
        layer = f"model.layers.{block[1]}"
        if kind in _NAMES:
            named[f"{layer}.{_NAMES[kind]}.weight"] = each
            continue
        for expert in range(EXPERTS):
            named[f"{layer}.block_sparse_moe.experts.{expert}.{_EXPERT_NAMES[kind]}.weight"] = each.copy()
    for number in range(config.num_hidden_layers):
        gate = np.zeros((EXPERTS, config.hidden_size), np.float32)
        named[f"model.layers.{number}.block_sparse_moe.gate.weight"] = gate
    return named
