"""Writes a checkpoint of random bf16 weights with the shape of a published model, or a partition of it.

\b
  python -m bench.support.checkpoint --shape qwen1.5-moe-a2.7b --layers 3 --out CHECKPOINT
  python -m bench.support.checkpoint --shape qwen1.5-moe-a2.7b --router-skew 1 --dtype int8 --partition OUT

Weights are streamed to disk, so memory stays at some tens of megabytes besides that of transformers. Tensors
have the names of published checkpoints, one for each matrix of each expert. The tokenizer makes each byte a
token.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import click
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.core_model_loading import revert_weight_conversion

from bench.support.random_weights import RandomWeights, kind
from bench.support.shapes import SHAPES
from control_plane.architecture.model import empty_model, model_class
from control_plane.architecture.shrink import shrunk
from control_plane.errors import FaaSMoEError
from control_plane.partition import commands
from control_plane.partition.checkpoint.reader import CONFIG_FILE, WEIGHTS_FILE, Checkpoint
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.granularity import Granularity
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.model.inspection import inspect
from control_plane.partition.partitioner import partition
from control_plane.partition.recipes import DENSE_DTYPES, DTYPES
from control_plane.partition.tensor_writer import TensorEntry, TensorWriter

_COUNT = click.IntRange(1)
_FOLDER = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--shape", type=click.Choice(list(SHAPES)), required=True, help="Shape of the model.")
@click.option("--layers", type=_COUNT, help="Number of layers.  [default: all]")
@click.option("--out", type=_FOLDER, help="New folder for a checkpoint.")
@click.option("--partition", "target", type=_FOLDER, help="New folder for a partition, without a checkpoint.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--router-skew",
    type=float,
    default=0.0,
    show_default=True,
    help="How unequally experts are used: the exponent of a Zipf law over each layer's experts, in an order "
    "that differs from layer to layer. With qwen1.5-moe-a2.7b, the 15 most used of a layer's 60 experts get "
    "32% of the routes at 0, 57% at 0.7 and 68% at 1 (measured with 24 layers of narrower experts).",
)
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="For --partition."
)
@click.option(
    "--dense-dtype",
    type=click.Choice(DENSE_DTYPES),
    default="auto",
    show_default=True,
    help="For --partition.",
)
@click.option("--experts-per-function", type=_COUNT, help="For --partition.")
@click.option("--layers-per-function", type=_COUNT, help="For --partition.")
def main(
    shape: str,
    layers: int | None,
    out: Path | None,
    target: Path | None,
    seed: int,
    router_skew: float,
    dtype: str,
    dense_dtype: str,
    experts_per_function: int | None,
    layers_per_function: int | None,
) -> None:
    if (out is None) == (target is None):
        raise click.UsageError("expected either --out or --partition")
    fields = SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
    config = AutoConfig.for_model(**fields, dtype="bfloat16")
    try:
        if out is not None:
            out.mkdir()
            checkpoint = random_checkpoint(config, out, seed, router_skew)
            write_weights(checkpoint.tensors, out / WEIGHTS_FILE)
        if target is not None:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary, shape)
                folder.mkdir()
                checkpoint = random_checkpoint(config, folder, seed, router_skew)
                architecture = inspect(checkpoint)
                manifest = partition(
                    checkpoint,
                    target,
                    architecture=architecture,
                    granularity=_granularity(architecture, experts_per_function, layers_per_function),
                    dtype=dtype,
                    dense_dtype=dense_dtype,
                    progress=_show_progress,
                )
            click.echo("\n".join(commands.summary(manifest, target)))
    except (FaaSMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error


def random_checkpoint(
    config: PretrainedConfig, folder: Path, seed: int = 0, router_skew: float = 0.0
) -> Checkpoint:
    """A checkpoint whose weights are generated when read. Writes config and tokenizer to `folder`."""
    model = empty_model(config)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    stored = json.loads((folder / CONFIG_FILE).read_text())
    weights = RandomWeights(folder, seed, router_skew, initial_vectors(config))
    return Checkpoint(folder, stored, random_tensors(model, weights))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that makes each UTF-8 byte a token, which is enough for random weights."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


def random_tensors(model: PreTrainedModel, weights: RandomWeights) -> dict[str, Tensor]:
    """The tensors of a published checkpoint of a model. The model may be on meta."""
    published = revert_weight_conversion(model, model.state_dict())
    return {name: weights.tensor(name, tuple(tensor.shape)) for name, tensor in published.items()}


def initial_vectors(config: PretrainedConfig) -> dict[str, float]:
    """The means of vectors in a new small model, by the kinds of their names."""
    model = model_class(config)(shrunk(config))
    published = revert_weight_conversion(model, model.state_dict())
    vectors = {kind(name): tensor for name, tensor in published.items() if tensor.ndim == 1}
    return {name: tensor.float().mean().item() for name, tensor in vectors.items()}


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write bf16 tensors to a new safetensors file."""
    entries = [TensorEntry(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    with TensorWriter(path, entries, {"format": "pt"}) as file:
        for tensor in tensors.values():
            for values in tensor.chunks():
                file.write(values)


def _granularity(architecture: Architecture, experts: int | None, layers: int | None) -> Granularity | None:
    """The granularity that the options ask for; None for the default."""
    if experts is None and layers is None:
        return None
    return Granularity(experts or architecture.num_experts, layers or 1)


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
