"""Writes a Qwen2-MoE model's GGUF file: that of a checkpoint in bf16, or random weights in Q8_0:

    python -m bench.support.gguf --config PARTITION/config.json --router-skew 1 --out MODEL.gguf

With the seed and the skew of a partition it has that partition's weights. Run it with a Python that has gguf
(`pip install gguf`); of this project's requirements it needs none but NumPy. The file's tokens are only
numbers, since llama.cpp takes token ids. Memory stays at some tens of megabytes.
"""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.support.random_weights import RandomWeights
from control_plane.errors import ConfigError, UnsupportedModel
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensor_file import Tensor
from functions.kernels.bfloat16 import bf16_to_f32, f32_to_bf16

BLOCK_VALUES = 32
BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", BLOCK_VALUES)])
"""Q8_0: 32 values with one scale."""
NORMAL_TOKEN = 1
F32, BF16, Q8_0 = "F32", "BF16", "Q8_0"


class Weights(Protocol):
    """Where tensors are from."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """By its name in published checkpoints."""


@dataclass(frozen=True)
class StoredWeights:
    """A checkpoint's."""

    checkpoint: Checkpoint

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Raises `UnsupportedModel` when the checkpoint has none of that shape."""
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None or tensor.shape != shape:
            found = "none" if tensor is None else str(list(tensor.shape))
            raise UnsupportedModel(f"{self.checkpoint.folder}: {name} should be {list(shape)}, it is {found}")
        return tensor


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: those of a checkpoint one after the other."""

    name: str
    shape: tuple[int, ...]
    sources: Sequence[Tensor]
    kind: str
    """F32, BF16 or Q8_0."""

    @property
    def nbytes(self) -> int:
        size = math.prod(self.shape)
        if self.kind == Q8_0:
            return size // BLOCK_VALUES * BLOCK.itemsize
        return {F32: 4, BF16: 2}[self.kind] * size

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Its bytes, as the file has them."""
        for source in self.sources:
            for chunk in source.chunks():
                yield self._stored(chunk)

    def _stored(self, chunk: NDArray[Any]) -> NDArray[Any]:
        is_bf16 = chunk.dtype == np.uint16
        if self.kind == BF16:
            return chunk if is_bf16 else f32_to_bf16(chunk)
        values = bf16_to_f32(chunk) if is_bf16 else chunk
        return quantize(values) if self.kind == Q8_0 else values


@dataclass(frozen=True)
class Qwen2Moe:
    """The tensors of that architecture, by llama.cpp's names and by those of published checkpoints."""

    config: Mapping[str, Any]
    weights: Weights
    matrices: str = Q8_0
    """What they are stored as."""

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "Qwen2Moe":
        """In bf16. Raises `PartitionError`, `UnsupportedModel` for another architecture."""
        checkpoint = Checkpoint.open(folder)
        check_architecture(checkpoint.config, folder)
        return cls(checkpoint.config, StoredWeights(checkpoint), BF16)

    def tensors(self) -> Iterator[GgufTensor]:
        """In the order of the layers, with the shapes of published checkpoints."""
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
        """Vectors are float32."""
        kind = kind or (self.matrices if len(shape) > 1 else F32)
        stored = shape[1:] if shape[0] == 1 else shape
        return GgufTensor(name, stored, [self.weights.tensor(source, shape)], kind)

    def describe(self, writer: Any) -> None:
        """Give a gguf.GGUFWriter what llama.cpp reads of the model beside its tensors."""
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
        # Its server turns each token into text, whatever that is.
        tokens = [f"<{token}>" for token in range(config["vocab_size"])]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_token_types([NORMAL_TOKEN] * len(tokens))


def quantize(values: NDArray[np.float32]) -> NDArray[Any]:
    """Values [n] as Q8_0 blocks [n / 32]; n is a multiple of 32."""
    rows = values.reshape(-1, BLOCK_VALUES)
    scale = np.abs(rows).max(axis=1) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    blocks = np.empty(len(rows), BLOCK)
    blocks["scale"] = scale
    blocks["values"] = np.rint(rows * inverse[:, None])
    return blocks


def check_architecture(config: Mapping[str, Any], path: Path) -> None:
    """Raises `UnsupportedModel`, naming the path that the config is from."""
    if config.get("model_type") != "qwen2_moe":
        raise UnsupportedModel(
            f"{path}: for llama.cpp only 'qwen2_moe' is written, not {config.get('model_type')!r}"
        )


def write(model: Qwen2Moe, path: Path) -> None:
    """Write the file; what is written of one that fails is removed. Raises `ConfigError` without gguf."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--config", type=Path, required=True, help="config.json of a partition or a checkpoint"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--router-skew", type=float, default=0.0, metavar="S")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text())
    try:
        check_architecture(config, arguments.config)
    except UnsupportedModel as error:
        sys.exit(str(error))
    weights = RandomWeights(arguments.config, arguments.seed, arguments.router_skew)
    write(Qwen2Moe(config, weights), arguments.out)


if __name__ == "__main__":
    main()
