"""Writes a GGUF file of random Q8_0 weights for llama.cpp, for a Qwen2-MoE model.

\b
  python -m bench.support.gguf --config PARTITION/config.json --router-skew 1 --out MODEL.gguf

With the same seed and skew, the file has the same weights as a random partition. The vocabulary is made up,
since benchmarks send token ids. Weights are streamed to disk, so memory stays at some tens of megabytes.
Needs the package gguf (faasmoe's extra bench).
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np

from bench.support.gguf_tensors import BF16, F32, Q8_0, GgufTensor
from bench.support.random_weights import RandomWeights
from control_plane.errors import ConfigError, FaaSMoEError, UnsupportedModel
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensors.tensor import Tensor

NORMAL_TOKEN = 1
"""llama.cpp's type of a token that is neither special nor a byte."""


class Weights(Protocol):
    """The source of a model's weights."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor with this name in published checkpoints, and this shape."""


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a checkpoint."""

    checkpoint: Checkpoint

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The checkpoint's tensor. Raises `UnsupportedModel` if it is missing or has another shape."""
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None or tensor.shape != shape:
            found = "none" if tensor is None else str(list(tensor.shape))
            raise UnsupportedModel(f"{self.checkpoint.folder}: {name} should be {list(shape)}, it is {found}")
        return tensor


@dataclass(frozen=True)
class Qwen2Moe:
    """The tensors of this architecture, with llama.cpp's names and those of published checkpoints."""

    config: Mapping[str, Any]
    weights: Weights
    matrices: str = Q8_0
    """Format in which matrices are stored."""

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "Qwen2Moe":
        """The model of a checkpoint, in bf16. Raises `PartitionError`, or its `UnsupportedModel`."""
        checkpoint = Checkpoint.open(folder)
        check_architecture(checkpoint.config, folder)
        return cls(checkpoint.config, StoredWeights(checkpoint), BF16)

    def tensors(self) -> Iterator[GgufTensor]:
        """All tensors, layer by layer, with the shapes of published checkpoints."""
        hidden, vocab = self.config["hidden_size"], self.config["vocab_size"]
        yield self._tensor("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden))
        for layer in range(self.config["num_hidden_layers"]):
            yield from self._attention(f"blk.{layer}.", f"model.layers.{layer}.", hidden)
            yield from self._experts(f"blk.{layer}.", f"model.layers.{layer}.mlp.", hidden)
        yield self._tensor("output_norm.weight", "model.norm.weight", (hidden,))
        yield self._tensor("output.weight", "lm_head.weight", (vocab, hidden))

    def _attention(self, block: str, layer: str, hidden: int) -> Iterator[GgufTensor]:
        heads = self.config["num_attention_heads"]
        widths = {"q": hidden, "k": hidden * self.config["num_key_value_heads"] // heads}
        widths["v"] = widths["k"]
        yield self._tensor(f"{block}attn_norm.weight", f"{layer}input_layernorm.weight", (hidden,))
        for part, width in widths.items():
            source = f"{layer}self_attn.{part}_proj"
            yield self._tensor(f"{block}attn_{part}.weight", f"{source}.weight", (width, hidden))
            yield self._tensor(f"{block}attn_{part}.bias", f"{source}.bias", (width,))
        yield self._tensor(f"{block}attn_output.weight", f"{layer}self_attn.o_proj.weight", (hidden, hidden))
        yield self._tensor(f"{block}ffn_norm.weight", f"{layer}post_attention_layernorm.weight", (hidden,))

    def _experts(self, block: str, mlp: str, hidden: int) -> Iterator[GgufTensor]:
        experts, width = self.config["num_experts"], self.config["moe_intermediate_size"]
        shared = self.config["shared_expert_intermediate_size"]
        yield self._tensor(f"{block}ffn_gate_inp.weight", f"{mlp}gate.weight", (experts, hidden), F32)
        yield self._tensor(
            f"{block}ffn_gate_inp_shexp.weight", f"{mlp}shared_expert_gate.weight", (1, hidden), F32
        )
        for part in ("gate", "up", "down"):
            shape = (hidden, width) if part == "down" else (width, hidden)
            sources = [
                self.weights.tensor(f"{mlp}experts.{expert}.{part}_proj.weight", shape)
                for expert in range(experts)
            ]
            yield GgufTensor(f"{block}ffn_{part}_exps.weight", (experts, *shape), sources, self.matrices)
            shape = (hidden, shared) if part == "down" else (shared, hidden)
            source = f"{mlp}shared_expert.{part}_proj.weight"
            yield self._tensor(f"{block}ffn_{part}_shexp.weight", source, shape)

    def _tensor(self, name: str, source: str, shape: tuple[int, ...], kind: str | None = None) -> GgufTensor:
        """A tensor with one source. Vectors are stored as float32."""
        kind = kind or (self.matrices if len(shape) > 1 else F32)
        stored = shape[1:] if shape[0] == 1 else shape
        return GgufTensor(name, stored, [self.weights.tensor(source, shape)], kind)

    def describe(self, writer: Any) -> None:
        """Add the model's metadata to a gguf.GGUFWriter."""
        config = self.config
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
        # llama.cpp's server turns each token into text, so each needs one.
        tokens = [f"<{token}>" for token in range(config["vocab_size"])]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_token_types([NORMAL_TOKEN] * len(tokens))


def check_architecture(config: Mapping[str, Any], path: Path) -> None:
    """Raises `UnsupportedModel` unless the config is of a Qwen2-MoE model. The error names the path."""
    if config.get("model_type") != "qwen2_moe":
        raise UnsupportedModel(
            f"{path}: for llama.cpp only 'qwen2_moe' is written, not {config.get('model_type')!r}"
        )


def write(model: Qwen2Moe, path: Path) -> None:
    """Write the file, or nothing if that fails. Raises `ConfigError` without the package gguf."""
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as error:
        raise ConfigError("a model for llama.cpp needs the package gguf (faasmoe's extra bench)") from error
    writer = gguf.GGUFWriter(None, "qwen2moe")
    model.describe(writer)
    tensors = list(model.tensors())
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        for tensor in tensors:
            writer.write_padding(file, file.tell())
            for values in tensor.chunks():
                values.tofile(file)
        writer.write_padding(file, file.tell())
        writer.close()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@click.command(help=__doc__)
@click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="config.json of a partition or a checkpoint.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--router-skew", type=float, default=0.0, show_default=True, help="See bench.support.checkpoint."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
def main(file: Path, seed: int, router_skew: float, out: Path) -> None:
    config = json.loads(file.read_text())
    try:
        check_architecture(config, file)
        write(Qwen2Moe(config, RandomWeights(file, seed, router_skew)), out)
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
