"""Writes a checkpoint of random bf16 weights with a published model's dimensions, to measure with.

    python scripts/make_checkpoint.py --shape qwen1.5-moe-a2.7b --layers 3 --out /path/to/checkpoint

It streams: memory stays at a few megabytes beside transformers' own. The names are those of the published
checkpoints, one tensor per expert and matrix. The tokenizer takes a byte for a token.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from control_plane.partition.families import FAMILIES, Family
from control_plane.partition.tensor_writer import TensorEntry, TensorWriter
from functions.expert.kernels.packing import f32_to_bf16

_ROPE_1M = {"rope_type": "default", "rope_theta": 1_000_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 24,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "max_position_embeddings": 8192,
        "rope_parameters": _ROPE_1M,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "head_dim": 128,
        "norm_topk_prob": True,
        "max_position_embeddings": 40960,
        "rope_parameters": _ROPE_1M,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "num_hidden_layers": 32,
        "max_position_embeddings": 32768,
        "rope_parameters": _ROPE_1M,
    },
    "olmoe-1b-7b": {"model_type": "olmoe", "num_hidden_layers": 16, "intermediate_size": 1024},
}
"""Where they differ from the defaults of transformers' own config classes."""

_CHUNK_VALUES = 1 << 20
_STANDARD_DEVIATION = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="how many layers (default: all of the model's)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = dict(SHAPES[arguments.shape])
    if arguments.layers:
        shape["num_hidden_layers"] = arguments.layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape, dtype="bfloat16"))
    model.config.architectures = [type(model).__name__]
    arguments.out.mkdir()
    model.config.save_pretrained(arguments.out)
    byte_tokenizer().save_pretrained(arguments.out)
    write_weights(model, arguments.out / "model.safetensors", arguments.seed)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Text as its UTF-8 bytes: any will do for random weights."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write_weights(model: PreTrainedModel, path: Path, seed: int) -> None:
    """Write random values for a model's parameters to a new safetensors file; its own may be on meta."""
    family = next(family for family in FAMILIES if family.model_type == model.config.model_type)
    entries = [
        TensorEntry(name, "BF16", shape)
        for fused, tensor in model.state_dict().items()
        for name, shape in _published(family, fused, tuple(tensor.shape))
    ]
    generator = np.random.default_rng(seed)
    with TensorWriter(path, entries, {"format": "pt"}) as file:
        for entry in entries:
            for values in _random_values(entry, generator):
                file.write(f32_to_bf16(values))


def _published(family: Family, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a published checkpoint that make up one of the model's parameters."""
    name = name.replace(".mlp.", f".{family.modules[0]}.")
    prefix, dot, last = name.rpartition(".")
    if last not in ("gate_up_proj", "down_proj"):
        yield name, shape
        return
    experts, rows, columns = shape
    parts = [family.down] if last == "down_proj" else [family.gate, family.up]
    for expert in range(experts):
        for part in parts:
            yield f"{prefix}{dot}{expert}.{part}.weight", (rows // len(parts), columns)


def _random_values(entry: TensorEntry, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """All values of a tensor, a few megabytes at a time; norms are ones, as in a new model."""
    size = math.prod(entry.shape)
    for start in range(0, size, _CHUNK_VALUES):
        count = min(_CHUNK_VALUES, size - start)
        if entry.name.endswith("norm.weight"):
            yield np.ones(count, np.float32)
        else:
            yield generator.standard_normal(count, np.float32) * np.float32(_STANDARD_DEVIATION)


if __name__ == "__main__":
    main()
