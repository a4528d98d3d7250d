"""Measures what a finer or coarser granularity costs, up to one expert a function: `make bench-granularity`.

The models are the bundled one, and one of random weights whose 8 layers have 60 experts each. Their
functions run on the embedded gateway; a control plane decodes one sequence, and six of as many tenants.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import click
import psutil
from transformers import AutoConfig

from bench.micro.cold_start import call_times, functions, megabytes, servers, until_ready
from bench.support import processes, requests
from bench.support.checkpoint import random_checkpoint
from bench.support.process_tree import ProcessTree
from bench.support.scrape import Scrape
from bench.support.shapes import SHAPES
from control_plane.faas.gateway_access import default_secret_file
from control_plane.formatting import table
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from functions.contract.secret import FunctionSecret

MODEL = Path(__file__).parents[2] / "models" / "demo"
SHAPE = "qwen1.5-moe-mini"
EXPERTS: Mapping[str, Sequence[int]] = {MODEL.name: (16, 4, 1), SHAPE: (60, 20, 10, 6, 2, 1)}
"""The experts of a layer in one function, by model."""
SEQUENCES = (1, 6)
PROMPT_TOKENS = 16
MAX_TOKEN = 256
"""Prompts are of lower tokens, which both models have."""
HEADER = [
    *("model", "experts a function", "functions", "ready after", "PSS of one", "of all, idle", "in use"),
    *("cold call", "warm call"),
    *(f"{what}, {number}" for number in SEQUENCES for what in ("tokens/s", "calls/token")),
]


@dataclass(frozen=True)
class Idle:
    """Functions that have not been called. Times are seconds, sizes megabytes."""

    ready_after: float
    """From the start of the gateway and the deployment."""
    one: float
    """The median of the functions' proportional set sizes."""
    all: float
    """The sum, with the process that they are forked from."""
    cold_call: float
    """The median of calls that find their function at zero."""
    warm_call: float


@dataclass(frozen=True)
class Decoding:
    """Decoding so many sequences at once."""

    tokens_per_second: float
    """The median of all rounds; a round's time includes that for the prompts."""
    calls_per_token: float
    """Calls of functions for each generated token, those of the prompts among them."""


@click.command()
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Of each answer.")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are shown."
)
def main(tokens: int, rounds: int) -> None:
    """Print memory, times of calls, and speed, by the number of experts in a function."""
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-") as folder:
        rows = []
        for name, checkpoint in _models(Path(folder)):
            for experts in EXPERTS[name]:
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    rows.append(
                        asyncio.run(_row(name, checkpoint, Path(out) / name, experts, tokens, rounds))
                    )
                click.echo(f"{name}, {experts} experts a function: measured", err=True)
    click.echo(f"{PROMPT_TOKENS} + {tokens} tokens, medians of {rounds}")
    for line in table(HEADER, rows):
        click.echo(line)


def _models(folder: Path) -> Iterator[tuple[str, Path | Checkpoint]]:
    yield MODEL.name, MODEL
    config = AutoConfig.for_model(**SHAPES[SHAPE], dtype="bfloat16")
    random = folder / "random"
    random.mkdir()
    yield SHAPE, random_checkpoint(config, random)


async def _row(
    name: str, checkpoint: Path | Checkpoint, folder: Path, experts: int, tokens: int, rounds: int
) -> list[str]:
    manifest = partition(checkpoint, folder, granularity=Granularity(experts, 1))
    started = time.perf_counter()
    async with processes.gateway(folder) as (gateway_pid, gateway_url):
        gateway = psutil.Process(gateway_pid)
        until_ready(gateway_url, manifest)
        ready_after = time.perf_counter() - started
        one = statistics.median(map(megabytes, functions(gateway)))
        every = sum(map(megabytes, [*functions(gateway), *servers(gateway)]))
        secret = FunctionSecret.read(default_secret_file())
        cold, warm = map(statistics.median, call_times(gateway_url, manifest, secret))
        tenants = [f"tenant-{number}" for number in range(max(SEQUENCES))]
        async with processes.control_plane(folder, gateway_url, tenants) as (_, url, keys):
            found = await _decodings(url, list(keys.values()), tokens, rounds)
            in_use = ProcessTree(gateway_pid).memory_bytes() / 1e6
    idle = Idle(ready_after, one, every, cold, warm)
    return _cells(name, experts, len(manifest.blocks), idle, in_use, found)


async def _decodings(url: str, keys: Sequence[str], tokens: int, rounds: int) -> list[Decoding]:
    """Decode each number of sequences once for warming up, and then in each round."""
    seconds: dict[int, list[float]] = {number: [] for number in SEQUENCES}
    calls: dict[int, list[float]] = {number: [] for number in SEQUENCES}
    async with requests.session() as client:
        for number in SEQUENCES:
            await _decode(client, url, keys[:number], tokens, 0)
        for seed in range(1, rounds + 1):
            for number in SEQUENCES:
                before, started = await _calls(client, url), time.perf_counter()
                await _decode(client, url, keys[:number], tokens, seed)
                seconds[number].append(time.perf_counter() - started)
                calls[number].append(await _calls(client, url) - before)
    return [
        Decoding(
            number * tokens / statistics.median(seconds[number]),
            statistics.median(calls[number]) / (number * tokens),
        )
        for number in SEQUENCES
    ]


async def _decode(
    client: aiohttp.ClientSession, url: str, keys: Sequence[str], tokens: int, seed: int
) -> None:
    prompts = [
        requests.random_prompt(PROMPT_TOKENS, 100 * seed + place, MAX_TOKEN) for place in range(len(keys))
    ]
    await asyncio.gather(
        *(
            requests.stream(client, url, key, prompt, tokens)
            for key, prompt in zip(keys, prompts, strict=True)
        )
    )


async def _calls(client: aiohttp.ClientSession, url: str) -> float:
    return (await Scrape.now(client, url)).total("faasmoe:function_invocations_total")


def _cells(
    name: str, experts: int, number: int, idle: Idle, in_use: float, found: Sequence[Decoding]
) -> list[str]:
    return [
        *(name, str(experts), str(number), f"{idle.ready_after:.1f} s"),
        *(f"{idle.one:.1f} MB", f"{idle.all:.0f} MB", f"{in_use:.0f} MB"),
        *(f"{1000 * seconds:.1f} ms" for seconds in (idle.cold_call, idle.warm_call)),
        *(
            cell
            for decoding in found
            for cell in (f"{decoding.tokens_per_second:.1f}", f"{decoding.calls_per_token:.1f}")
        ),
    ]


if __name__ == "__main__":
    main()
