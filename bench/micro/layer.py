"""Measures what a layer costs beyond reading its bytes, by part: `make bench-layer`.

Sequences decode at once, with all experts of a layer in one function. The parts are those of
`faasmoe:step_seconds_total` that repeat in every layer. "bytes" is the time in which a plain read of the
memory takes in what a layer reads: its dense weights, and the experts that its rows call if they call
different ones.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import numpy as np
from safetensors import safe_open

from control_plane.engine.engine import Engine
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.engine.state.stopwatch import StepPart
from control_plane.formatting import table
from control_plane.offline.engine import offline_engine
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.dense import PACKED
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.inspection import inspect
from control_plane.partition.partitioner import partition
from control_plane.partition.recipes import DENSE_DTYPES

MODEL = Path(__file__).parents[2] / "models" / "demo"
SEQUENCES = (1, 6, 32)
PROMPT_TOKENS = 16
PARTS = (StepPart.DENSE, StepPart.SEND, StepPart.SHARED, StepPart.WAIT, StepPart.ADD)
READ_BYTES = 256 << 20

Microseconds = dict[StepPart, float]


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint.")
@click.option(
    "--dtype",
    type=click.Choice(DENSE_DTYPES),
    default="int8",
    show_default=True,
    help="Of experts and dense part.",
)
@click.option("--tokens", type=click.IntRange(2), default=128, show_default=True, help="Of each answer.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds; medians are shown."
)
def main(model: Path, dtype: str, tokens: int, rounds: int) -> None:
    """Print the microseconds of a layer for 1 to 32 sequences at once."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "partition"
        checkpoint = Checkpoint.open(model)
        architecture = inspect(checkpoint)
        manifest = partition(
            checkpoint,
            out,
            granularity=Granularity(architecture.num_experts, 1),
            dtype=dtype,
            dense_dtype=dtype,
            architecture=architecture,
        )
        found = asyncio.run(bench(out, manifest, tokens, rounds))
        dense = _dense_nbytes(out / manifest.dense.file) / len(manifest.moe_layers)
    speed = _read_speed()
    click.echo(f"{model.name}, {dtype}: microseconds of a layer, medians of {rounds}")
    click.echo(f"A plain read takes in {speed / 1e9:.0f} GB/s.")
    rows = []
    for number, measured in found.items():
        parts = [median(one[part] for one in measured) for part in PARTS]
        experts = min(number * manifest.num_experts_per_tok, manifest.num_experts)
        read = (dense + experts * manifest.expert_nbytes) / speed * 1e6
        rows.append([str(number), *(f"{part:.0f}" for part in (*parts, read, sum(parts) - read))])
    for line in table(["sequences", *PARTS, "bytes", "beyond"], rows):
        click.echo(line)


async def bench(folder: Path, manifest: Manifest, tokens: int, rounds: int) -> dict[int, list[Microseconds]]:
    """For each number of sequences, a layer's microseconds by part in each round."""
    found: dict[int, list[Microseconds]] = {number: [] for number in SEQUENCES}
    async with offline_engine(folder, manifest) as (_, _, engine):
        await decode(engine, 1, tokens)
        for _ in range(rounds):
            for number in SEQUENCES:
                before, steps = engine.status().step_seconds, engine.status().steps
                await decode(engine, number, tokens)
                after, layers = engine.status(), len(manifest.moe_layers)
                scale = 1e6 / (after.steps - steps) / layers
                found[number].append(
                    {part: (after.step_seconds[part] - before[part]) * scale for part in PARTS}
                )
    return found


async def decode(engine: Engine, number: int, tokens: int) -> None:
    """Decode so many sequences at once, each of a random prompt of its own."""
    random = np.random.default_rng(number)
    params = SamplingParams(tokens, ignore_eos=True)

    async def answered(sequence: Sequence) -> None:
        async for _ in engine.submit([sequence]):
            pass

    prompts = random.integers(3, 60, (number, PROMPT_TOKENS)).tolist()
    await asyncio.gather(
        *(answered(Sequence(f"{index}", "bench", prompt, params)) for index, prompt in enumerate(prompts))
    )


def _dense_nbytes(path: Path) -> int:
    """Bytes of the packed matrices of all layers. Embeddings and head are in none, the rest is small."""
    with safe_open(path, framework="numpy") as file:
        names: list[str] = list(file.keys())
        packed = [name for name in names if ".layers." in name and name.endswith(PACKED)]
        return sum(file.get_slice(name).get_shape()[0] for name in packed)


def _read_speed() -> float:
    """Bytes a second of a plain read by one thread: the best of some."""
    memory = np.ones(READ_BYTES // 8, np.int64)
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        memory.max()
        seconds.append(time.perf_counter() - started)
    return READ_BYTES / min(seconds)


if __name__ == "__main__":
    main()
