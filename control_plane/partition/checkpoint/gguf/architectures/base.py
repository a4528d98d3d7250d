"""What most architectures have in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import changed, concatenated, renamed, reordered

Config = dict[str, Any]

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""The names of tensors outside of layers."""
ATTENTION = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
"""The names of a layer's modules."""
MLP = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}


@dataclass
class Layer:
    """The tensors of a layer, by GGUF's names without the layer's. `take` removes them."""

    number: int
    left: dict[str, Tensor]

    def name(self, module: str) -> str:
        """The whole name of a module, or of a tensor."""
        return f"model.layers.{self.number}.{module}"

    def take(self, *names: str) -> list[Tensor]:
        """All of these tensors; none if the first of them is missing. Raises PartitionError."""
        if names[0] not in self.left:
            return []
        for name in names:
            if name not in self.left:
                raise PartitionError(f"{self.left[names[0]].path}: layer {self.number} has no {name}")
        return [self.left.pop(name) for name in names]

    def change(self, names: Iterable[str], change: Callable[[Tensor], Tensor]) -> None:
        """Change those of these tensors that there are."""
        for name in names:
            if name in self.left:
                self.left[name] = change(self.left[name])

    def renamed(self, modules: Mapping[str, str]) -> Iterator[Tensor]:
        """All tensors that are left, by their names in transformers.

        `modules` has names of modules, whose weights and biases keep these names, or of whole tensors.
        """
        for name, tensor in sorted(self.left.items()):
            module, _, part = name.rpartition(".")
            if name in modules:
                yield renamed(tensor, self.name(modules[name]))
            elif module in modules and part in ("weight", "bias"):
                yield renamed(tensor, self.name(f"{modules[module]}.{part}"))
            else:
                raise PartitionError(f"{tensor.path}: {tensor.name[:80]!r} is no tensor that is known")


@dataclass(frozen=True)
class Architecture:
    """How a file of one architecture is read."""

    config: Callable[[Metadata, Mapping[str, Tensor]], Config]
    """What config.json has besides `base_config`, by the metadata and the tensors."""
    layer: Callable[[Layer, Config], Iterator[Tensor]]
    """The tensors of a layer by their names in transformers."""
    top: Mapping[str, str]
    """The names of the other tensors."""
    change_top: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """Changes of these, by GGUF's names."""


def base_config(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    """The keys of config.json that all models have."""
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise PartitionError(f"{metadata.path} has no token_embd.weight, or one that is no matrix")
    vocabulary, hidden = tensors["token_embd.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": metadata.number("block_count") - metadata.number("nextn_predict_layers", 0),
        "num_attention_heads": (heads := metadata.number("attention.head_count")),
        "num_key_value_heads": metadata.number("attention.head_count_kv", heads),
        "max_position_embeddings": metadata.number("context_length"),
        "rms_norm_eps": metadata.fraction("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": rope_parameters(metadata),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.token("bos"),
        "eos_token_id": metadata.token("eos"),
        "pad_token_id": metadata.token("padding"),
    }


def rope_parameters(metadata: Metadata) -> Config:
    """The rotary embeddings, as transformers 5 has them in config.json."""
    rope: Config = {"rope_type": "default", "rope_theta": metadata.fraction("rope.freq_base", 1e4)}
    key = f"{metadata.architecture}.rope.scaling.type"
    kind = metadata.text(key) or "none"
    if kind == "none":
        return rope
    if kind not in ("linear", "yarn"):
        raise PartitionError(f"{metadata.path}: the metadata's {key} is {kind[:40]!r}, not linear or yarn")
    rope |= {"rope_type": kind, "factor": metadata.fraction("rope.scaling.factor")}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = metadata.number("rope.scaling.original_context_length")
        for name in ("beta_fast", "beta_slow"):
            if metadata.has(f"rope.scaling.yarn_{name}"):
                rope[name] = metadata.fraction(f"rope.scaling.yarn_{name}")
    return rope


def expert_config(metadata: Metadata, tensors: Mapping[str, Tensor], count: str, width: str) -> Config:
    """The number of experts and their width, by the names that config.json has for them."""
    return {
        count: metadata.number("expert_count"),
        "num_experts_per_tok": metadata.number("expert_used_count"),
        width: expert_width(metadata, tensors),
    }


def expert_width(metadata: Metadata, tensors: Mapping[str, Tensor]) -> int:
    """The intermediate size of the routed experts. Raises PartitionError if there are none."""
    for name, tensor in tensors.items():
        if name.endswith(".ffn_down_exps.weight"):
            return tensor.columns
    raise PartitionError(f"{metadata.path} has no experts: only mixtures of experts can be split")


def fused_experts(layer: Layer, module: str = "mlp.experts") -> Iterator[Tensor]:
    """Experts [E, 2I, H], gate first, and [E, H, I], as most of transformers' modules have them."""
    for gate_up in layer.take("ffn_gate_up_exps.weight"):
        yield renamed(gate_up, layer.name(f"{module}.gate_up_proj"))
    if halves := layer.take("ffn_gate_exps.weight", "ffn_up_exps.weight"):
        yield concatenated(layer.name(f"{module}.gate_up_proj"), halves)
    for down in layer.take("ffn_down_exps.weight"):
        yield renamed(down, layer.name(f"{module}.down_proj"))


def rotating_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in transformers' order, of tensors [heads * D, K] or biases [heads * D].

    llama.cpp has the two values that rotate together side by side, transformers D / 2 apart.
    """
    rows = tensor.shape[0]
    if rows % (2 * heads):
        raise PartitionError(f"{tensor.path}: {tensor.name} has {rows} rows for {heads} heads")
    order = np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    if len(tensor.shape) == 1:
        return changed(tensor, lambda row: row[:, order])
    return reordered(tensor, order)
