"""Measures function calls per token and memory, with packed experts and without: `make bench-packing`.

One half of the prompts goes into the profile. The other half is sent, one prompt after the other.
"""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import click
from yarl import URL

from bench.support import processes
from control_plane.cli.api_client import Client, Question
from control_plane.errors import FaaSMoEError
from control_plane.formatting import table
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from control_plane.partition.profile import Profile

MODEL = Path(__file__).parents[2] / "models" / "demo"
PROMPTS = Path(__file__).with_name("demo_prompts.jsonl")
SAMPLE_SECONDS = 0.2
HEADER = ["experts x layers", "functions", "packed", "calls/token", "awake", "experts held", "their memory"]


@dataclass(frozen=True)
class Traffic:
    """The prompts to send to a server, and how."""

    prompts: Sequence[str]
    max_tokens: int
    idle_timeout: float
    """Seconds without a call after which a function scales to zero."""
    raw: bool
    """Complete the prompts instead of answering them as chats, for models without a chat template."""


@dataclass(frozen=True)
class Held:
    """Replicas and memory of functions, as means over time."""

    awake: float
    """Functions with a replica."""
    experts: float
    """Number of experts in memory."""
    nbytes: float
    """Size of those experts."""


@dataclass(frozen=True)
class PackingResult:
    """The measurements of one partition."""

    calls_per_token: float
    held: Held


async def measure(folder: Path, traffic: Traffic) -> PackingResult:
    """Serve a partition, and send all prompts to it. Raises `FaaSMoEError`."""
    settings = {"idle_timeout": traffic.idle_timeout}
    async with processes.up(folder, settings) as (_, url), Client.connect(URL(url)) as client:
        reports: list[dict[str, Any]] = []
        sampling = asyncio.create_task(_sample(client, reports))
        try:
            usages = [
                await _usage(client, traffic, text, number) for number, text in enumerate(traffic.prompts)
            ]
        finally:
            sampling.cancel()
    calls = sum(usage["experts"]["invocations"] for usage in usages)
    # A prefill is one step, which generates the first token.
    return PackingResult(calls / sum(usage["completion_tokens"] for usage in usages), _held(reports))


async def _usage(client: Client, traffic: Traffic, text: str, number: int) -> dict[str, Any]:
    question = Question(text, "bench", traffic.max_tokens, temperature=1.0, seed=number, raw=traffic.raw)
    return (await client.ask(question)).usage


async def _sample(client: Client, reports: list[dict[str, Any]]) -> None:
    while True:
        reports.append(await client.status())
        await asyncio.sleep(SAMPLE_SECONDS)


def _held(reports: Sequence[dict[str, Any]]) -> Held:
    """Means over the second half. In the first half, functions still run because they were just deployed."""
    functions = [report["functions"] for report in reports[len(reports) // 2 :]]
    return Held(
        mean(sum(function["available_replicas"] > 0 for function in each) for each in functions),
        mean(sum(function["resident_experts"] for function in each) for each in functions),
        mean(sum(function["resident_bytes"] for function in each) for each in functions),
    )


def read_granularity(text: str) -> Granularity:
    """Parse experts x layers of a function, such as "8x1". Raises `click.BadParameter`."""
    experts, _, layers = text.partition("x")
    try:
        return Granularity(int(experts), int(layers))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not EXPERTSxLAYERS") from None


def row(granularity: Granularity, functions: int, packed: bool, outcome: PackingResult) -> list[str]:
    """One line of the table."""
    return [
        f"{granularity.experts_per_function} x {granularity.layers_per_function}",
        str(functions),
        "yes" if packed else "no",
        f"{outcome.calls_per_token:.2f}",
        f"{outcome.held.awake:.1f}",
        f"{outcome.held.experts:.1f}",
        f"{outcome.held.nbytes / 1e6:.2f} MB",
    ]


async def bench(
    model: Path, granularities: Sequence[Granularity], dtype: str, prompts: Path, traffic: Traffic
) -> None:
    """Record a profile, measure each granularity with it and without, and print a table."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="faasmoe-") as temporary:
        work = Path(temporary)
        profiled = work / "profiled"
        await asyncio.to_thread(partition, model, profiled, dtype=dtype)
        file = work / "profile.safetensors"
        options = ("--prompts", prompts, "--max-tokens", traffic.max_tokens, "-o", file)
        click.echo(await processes.output("profile", profiled, *options))
        for granularity in granularities:
            for profile in (None, Profile.load(file)):
                folder = work / f"partition-{len(rows)}"
                manifest = await asyncio.to_thread(
                    partition, model, folder, granularity=granularity, dtype=dtype, profile=profile
                )
                outcome = await measure(folder, traffic)
                rows.append(row(granularity, len(manifest.blocks), profile is not None, outcome))
    click.echo("\n".join(["", *table(HEADER, rows)]))


@click.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=MODEL,
    help="A checkpoint.  [default: the bundled one]",
)
@click.option(
    "--granularity",
    "granularities",
    multiple=True,
    default=["8x1", "2x3"],
    show_default=True,
    help="Experts x layers of a function; can be given several times.",
)
@click.option("--dtype", default="auto", show_default=True, help="Dtype of the experts.")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=PROMPTS,
    help='JSON lines, each an object with a "prompt".  [default: prompts for the bundled model]',
)
@click.option("--max-tokens", type=click.IntRange(1), default=48, show_default=True)
@click.option("--idle-timeout", type=float, default=2.0, show_default=True, help="Idle timeout, seconds.")
@click.option("--raw", is_flag=True, help="Complete the prompts, for a model without a chat template.")
def main(
    model: Path,
    granularities: tuple[str, ...],
    dtype: str,
    prompts: Path,
    max_tokens: int,
    idle_timeout: float,
    raw: bool,
) -> None:
    """Print calls per token and the memory of functions, with and without packing."""
    lines = prompts.read_text(encoding="utf-8").splitlines()
    half = len(lines) // 2
    asked = [json.loads(line)["prompt"] for line in lines[half:]]
    with tempfile.TemporaryDirectory(prefix="faasmoe-") as temporary:
        learned = Path(temporary) / "prompts.jsonl"
        learned.write_text("\n".join(lines[:half]), encoding="utf-8")
        traffic = Traffic(asked, max_tokens, idle_timeout, raw)
        cuts = [read_granularity(text) for text in granularities]
        try:
            asyncio.run(bench(model, cuts, dtype, learned, traffic))
        except FaaSMoEError as error:
            raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
