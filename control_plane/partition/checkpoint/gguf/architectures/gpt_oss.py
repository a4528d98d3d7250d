"""gpt-oss: experts with biases, which transformers has transposed and with gate and up in turn."""

from collections.abc import Iterator, Mapping

import numpy as np

from control_plane.partition.checkpoint.gguf.architectures.base import (
    ATTENTION,
    TOP,
    Architecture,
    Config,
    Layer,
    expert_config,
    rotating_head_dim_config,
)
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.architectures.rope import rope_parameters
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import ChangedRows, interleaved, renamed, transposed
from functions.kernels.bfloat16 import Float32


def _config(metadata: Metadata, tensors: Mapping[str, Tensor]) -> Config:
    rope = rope_parameters(metadata, tensors)
    if rope["rope_type"] == "yarn":
        rope = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, **rope}
    return {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "head_dim": 64,
        **rotating_head_dim_config(metadata),
        "rope_parameters": rope,
        "sliding_window": metadata.number("attention.sliding_window", 128),
        "attention_bias": True,
        **expert_config(metadata, tensors, "num_local_experts", "intermediate_size"),
    }


def _layer(layer: Layer, config: Config) -> Iterator[Tensor]:
    if halves := layer.take("ffn_gate_exps.weight", "ffn_up_exps.weight"):
        yield transposed(interleaved(layer.name("mlp.experts.gate_up_proj"), halves))
    for down in layer.take("ffn_down_exps.weight"):
        yield transposed(renamed(down, layer.name("mlp.experts.down_proj")))
    if biases := layer.take("ffn_gate_exps.bias", "ffn_up_exps.bias"):
        yield _in_turn(layer.name("mlp.experts.gate_up_proj_bias"), *biases)
    names = {
        "ffn_gate_inp": "mlp.router",
        "attn_sinks.weight": "self_attn.sinks",
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    }
    yield from layer.renamed(ATTENTION | names)


def _in_turn(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """Biases [E, I] of gate and up as [E, 2I]."""

    def change(gates: Float32, ups: Float32) -> Float32:
        return np.stack([gates, ups], axis=2).reshape(len(gates), -1)

    return ChangedRows(name, gate.path, gate.dtype, (*gate.shape[:-1], 2 * gate.columns), (gate, up), change)


ARCHITECTURES = {"gpt-oss": Architecture(_config, _layer, TOP)}
