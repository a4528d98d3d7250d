"""Writes a checkpoint of random bf16 weights with a published model's dimensions, or a partition of it.

    python -m bench.support.checkpoint --shape qwen1.5-moe-a2.7b --layers 3 --out CHECKPOINT
    python -m bench.support.checkpoint --shape qwen1.5-moe-a2.7b --router-skew 1 --dtype int8 --partition OUT

It streams: memory stays at some tens of megabytes beside transformers' own. The names are those of published
checkpoints, one tensor per expert and matrix. The tokenizer takes a byte for a token.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bench.support.arguments import count
from bench.support.random_weights import RandomWeights
from control_plane.errors import FaaSMoEError
from control_plane.partition import commands
from control_plane.partition.checkpoint.families import FAMILIES, Family, ModelConfig
from control_plane.partition.checkpoint.reader import CONFIG_FILE, WEIGHTS_FILE, Checkpoint
from control_plane.partition.checkpoint.tensor_file import Tensor
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from control_plane.partition.plan import DENSE_DTYPES, DTYPES
from control_plane.partition.tensor_writer import TensorEntry, TensorWriter

ROUTER_SKEW_HELP = """how unequally experts are used: the exponent of a Zipf law over a layer's experts, in an
order of each layer's own (default: 0). With qwen1.5-moe-a2.7b the 15 most used of a layer's 60
experts get 32 percent of the routes at 0, 57 at 0.7 and 68 at 1, in all layers alike (measured with
24 layers of narrower experts)"""

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
    "qwen1.5-moe-mini": {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 8,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 2816,
        "moe_intermediate_size": 704,
        "shared_expert_intermediate_size": 2816,
        "vocab_size": 32000,
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
"""Where they differ from the defaults of transformers' own config classes.

The mini one is nobody's: a third of the layers of the first at half its width, 2.3 GB in bf16."""


def main() -> None:
    arguments = _parser().parse_args()
    shape = dict(SHAPES[arguments.shape])
    if arguments.layers:
        shape["num_hidden_layers"] = arguments.layers
    config = AutoConfig.for_model(**shape, dtype="bfloat16")
    try:
        if arguments.out:
            arguments.out.mkdir()
            checkpoint = random_checkpoint(config, arguments.out, arguments.seed, arguments.router_skew)
            write_weights(checkpoint.tensors, arguments.out / WEIGHTS_FILE)
        else:
            write_partition(config, arguments)
    except (FaaSMoEError, OSError) as error:
        sys.exit(f"bench.support.checkpoint: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=count, help="how many layers (default: all of the model's)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="the folder to make, with a checkpoint")
    target.add_argument(
        "--partition", type=Path, help="the folder to make, with a partition and no checkpoint"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--router-skew", type=float, default=0.0, metavar="S", help=ROUTER_SKEW_HELP)
    options = parser.add_argument_group("of a partition, as `faasmoe partition` takes them")
    options.add_argument("--dtype", choices=DTYPES, default="auto")
    options.add_argument("--dense-dtype", choices=DENSE_DTYPES, default="auto")
    options.add_argument("--experts-per-function", type=count, metavar="N")
    options.add_argument("--layers-per-function", type=count, metavar="N")
    return parser


def random_checkpoint(
    config: PretrainedConfig, folder: Path, seed: int = 0, router_skew: float = 0.0
) -> Checkpoint:
    """A checkpoint whose weights are made when they are read; config and tokenizer go to `folder`."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    stored = json.loads((folder / CONFIG_FILE).read_text())
    return Checkpoint(folder, stored, random_tensors(model, RandomWeights(folder, seed, router_skew)))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Text as its UTF-8 bytes: any will do for random weights."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def random_tensors(model: PreTrainedModel, weights: RandomWeights) -> dict[str, Tensor]:
    """The tensors of a published checkpoint of a model, which may be on meta, in the model's order."""
    family = next(family for family in FAMILIES if family.model_type == model.config.model_type)
    return {
        name: weights.tensor(name, shape)
        for fused, tensor in model.state_dict().items()
        for name, shape in _published(family, fused, tuple(tensor.shape))
    }


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write bf16 tensors to a new safetensors file."""
    entries = [TensorEntry(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    with TensorWriter(path, entries, {"format": "pt"}) as file:
        for tensor in tensors.values():
            for values in tensor.chunks():
                file.write(values)


def write_partition(config: PretrainedConfig, arguments: argparse.Namespace) -> None:
    """Write what `faasmoe partition` makes of the checkpoint, without the checkpoint."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, arguments.shape)
        folder.mkdir()
        checkpoint = random_checkpoint(config, folder, arguments.seed, arguments.router_skew)
        manifest = partition(
            checkpoint,
            arguments.partition,
            granularity=_granularity(checkpoint, arguments),
            dtype=arguments.dtype,
            dense_dtype=arguments.dense_dtype,
            progress=_show,
        )
    for line in commands.summary(manifest, arguments.partition):
        print(line)


def _granularity(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Granularity | None:
    experts, layers = arguments.experts_per_function, arguments.layers_per_function
    if experts is None and layers is None:
        return None
    return Granularity(experts or ModelConfig.from_json(checkpoint.config).num_experts, layers or 1)


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB", end=end, file=sys.stderr, flush=True)


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


if __name__ == "__main__":
    main()
