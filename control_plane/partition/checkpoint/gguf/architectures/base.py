"""What most architectures have in common."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.architectures.rope import rope_parameters
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
    fixed: Mapping[str, object] = field(default_factory=dict)
    """The only values that these keys of the metadata may have; what they say is part of the family."""


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
        "rms_norm_eps": norm_epsilon(metadata),
        "rope_parameters": rope_parameters(metadata, tensors),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": metadata.token("bos"),
        "eos_token_id": metadata.token("eos"),
        "pad_token_id": metadata.token("padding"),
    }


def norm_epsilon(metadata: Metadata) -> float:
    """Some files have it by the name of another kind of norm."""
    other = metadata.fraction("attention.layer_norm_epsilon", 1e-5)
    return metadata.fraction("attention.layer_norm_rms_epsilon", other)


def head_dim_config(metadata: Metadata) -> Config:
    """The width of heads where a file states it. Raises PartitionError if not all are of one width."""
    if not metadata.has("attention.key_length"):
        return {}
    head_dim = metadata.number("attention.key_length")
    metadata.check("attention.value_length", head_dim)
    return {"head_dim": head_dim}


def rotating_head_dim_config(metadata: Metadata) -> Config:
    """That of heads which rotate as a whole. Raises PartitionError also if only a part does."""
    config = head_dim_config(metadata)
    if config:
        metadata.check("rope.dimension_count", config["head_dim"])
    return config


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


SOFTMAX, SIGMOID = 1, 2
"""llama.cpp's numbers for what makes scores of a router's logits."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (1.0,),
    "attention.scale": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attention.value_scale": (1.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (1.0, 0.0),
    "expert_group_count": (1, 0),
    "expert_weights_scale": (1.0, 0.0),
    "final_logit_softcapping": (0.0,),
    "interleave_moe_layer_step": (1, 0),
    "leading_dense_block_count": (0,),
    "logit_scale": (1.0, 0.0),
    "moe_every_n_layers": (1, 0),
    "residual_scale": (1.0, 0.0),
    "rope.scaling.alpha": (0.0, 1.0),
    "router_logit_softcapping": (0.0,),
    "swiglu_clamp_exp": (),
    "swiglu_clamp_shexp": (),
    "use_parallel_residual": (False,),
}
"""Keys that change what a model computes, with the values with which they change nothing."""


def check_all_heeded(metadata: Metadata, architecture: Architecture) -> None:
    """Raises PartitionError if the metadata says what the config that was made of it does not have."""
    for key, value in architecture.fixed.items():
        metadata.check(key, value)
    for key, values in _NEUTRAL.items():
        if key not in metadata.read:
            metadata.check(key, *values)


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
