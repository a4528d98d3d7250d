"""Times a decoding step in each way to compute a model that keeps states: `python -m bench.micro.ways`.

A model with the shape of Qwen3.6-35B-A3B, but few layers and experts, is served in lockstep and in the ragged
way. Beside it is a model that keeps nothing but keys and values, ragged, too: of Qwen3-MoE's kind, with the
same experts and about the same bytes of other weights. All have random weights and real functions.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import click
from msgspec.structs import replace
from transformers import AutoConfig

from bench.micro.layer import decode
from bench.support.checkpoint import random_checkpoint
from bench.support.shapes import SHAPES
from control_plane.formatting import format_bytes, table
from control_plane.offline.engine import offline_engine
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.architecture import Way
from control_plane.partition.model.inspection import inspect
from control_plane.partition.partitioner import partition
from control_plane.partition.recipes import DENSE_DTYPES

_COUNT = click.IntRange(1)
SMALL = {"vocab_size": 4096, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "dtype": "bfloat16"}
"""A small vocabulary, so that the head does not hide what layers cost."""
HYBRID = SHAPES["qwen3.6-35b-a3b"]
PLAIN = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "moe_intermediate_size": 512,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
}


@click.command()
@click.option("--layers", type=_COUNT, default=4, show_default=True, help="Three of four keep states.")
@click.option("--experts", type=click.IntRange(8), default=64, show_default=True, help="Of each layer.")
@click.option("--sequences", type=_COUNT, default=8, show_default=True, help="Sequences at once.")
@click.option(
    "--dtype",
    type=click.Choice(DENSE_DTYPES),
    default="int4",
    show_default=True,
    help="Of experts and dense part.",
)
@click.option("--tokens", type=click.IntRange(2), default=256, show_default=True, help="Of each answer.")
@click.option(
    "--rounds", type=_COUNT, default=3, show_default=True, help="Rounds, in turns; medians are shown."
)
def main(layers: int, experts: int, sequences: int, dtype: str, tokens: int, rounds: int) -> None:
    """Print the milliseconds of a step, and how many times those of the plain model it takes."""
    size = {"num_hidden_layers": layers, "num_experts": experts, **SMALL}
    with tempfile.TemporaryDirectory() as folder:
        hybrid = make({**HYBRID, **size}, Path(folder) / "hybrid", dtype)
        plain = make({**PLAIN, **size}, Path(folder) / "plain", dtype)
        ways = {
            "lockstep": in_way(hybrid, "lockstep"),
            "ragged": in_way(hybrid, "ragged"),
            "plain, ragged": in_way(plain, "ragged"),
        }
        found = asyncio.run(bench(ways, sequences, tokens, rounds))
        dense = {name: Manifest.load(each).dense.nbytes for name, each in ways.items()}
    click.echo(f"{layers} layers of {experts} experts, {dtype}, {sequences} sequences, medians of {rounds}")
    least = found["plain, ragged"]
    rows = [
        [name, f"{1e3 * seconds:.1f}", f"{seconds / least:.2f}", format_bytes(dense[name])]
        for name, seconds in found.items()
    ]
    for line in table(["way", "ms a step", "x plain", "dense part"], rows):
        click.echo(line)


def make(shape: Mapping[str, Any], folder: Path, dtype: str) -> Path:
    """A partition of a model with random weights."""
    source = folder / "checkpoint"
    source.mkdir(parents=True)
    checkpoint = random_checkpoint(AutoConfig.for_model(**shape), source)
    architecture = inspect(checkpoint)
    partition(
        checkpoint,
        folder / "partition",
        granularity=Granularity(architecture.num_experts, 1),
        dtype=dtype,
        dense_dtype=dtype,
        architecture=architecture,
    )
    return folder / "partition"


def in_way(folder: Path, way: Way) -> Path:
    """The same partition, to be computed in this way."""
    target = folder.with_name(way)
    shutil.copytree(folder, target, copy_function=os.link)
    manifest = replace(Manifest.load(folder), way=way, program=None)
    # The link is replaced, not the file that both folders have.
    (target / "manifest.json").unlink()
    manifest.save(target)
    return target


async def bench(ways: Mapping[str, Path], sequences: int, tokens: int, rounds: int) -> dict[str, float]:
    """The seconds of a step in each way."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    async with AsyncExitStack() as stack:
        engines = {}
        for name, folder in ways.items():
            served = offline_engine(folder, Manifest.load(folder))
            _, _, engines[name] = await stack.enter_async_context(served)
            await decode(engines[name], sequences, 2)
        for _ in range(rounds):
            for name, engine in engines.items():
                before = engine.status()
                await decode(engine, sequences, tokens)
                after = engine.status()
                seconds = sum(after.step_seconds.values()) - sum(before.step_seconds.values())
                found[name].append(seconds / (after.steps - before.steps))
    return {name: median(seconds) for name, seconds in found.items()}


if __name__ == "__main__":
    main()
