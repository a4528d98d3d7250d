"""Functions called per token and memory held, with experts packed and without: `make bench-packing`.

The profile is made of one half of the prompts, the other half is asked, one prompt after the other.
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

ROOT = Path(__file__).parents[2]
SAMPLE_SECONDS = 0.2
HEADER = ["experts x layers", "functions", "packed", "calls/token", "awake", "experts held", "their memory"]


@dataclass(frozen=True)
class Traffic:
    """What is asked of a server, and how."""

    prompts: Sequence[str]
    max_tokens: int
    idle_timeout: float
    """Seconds after which a function goes to zero."""
    raw: bool
    """Whether prompts are continued: models without a chat template answer no chats."""


@dataclass(frozen=True)
class Held:
    """What functions hold, on average over the time."""

    awake: float
    experts: float
    nbytes: float


@dataclass(frozen=True)
class PackingResult:
    """Of all the traffic."""

    calls_per_token: float
    held: Held


async def measure(folder: Path, traffic: Traffic) -> PackingResult:
    """Ask all prompts of a server of this partition. Raises `FaaSMoEError`."""
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
    # A prompt is one step, which brings the first token.
    return PackingResult(calls / sum(usage["completion_tokens"] for usage in usages), _held(reports))


async def _usage(client: Client, traffic: Traffic, text: str, number: int) -> dict[str, Any]:
    question = Question(text, "bench", traffic.max_tokens, temperature=1.0, seed=number, raw=traffic.raw)
    return (await client.ask(question)).usage


async def _sample(client: Client, reports: list[dict[str, Any]]) -> None:
    while True:
        reports.append(await client.status())
        await asyncio.sleep(SAMPLE_SECONDS)


def _held(reports: Sequence[dict[str, Any]]) -> Held:
    """Of the second half: in the first, functions are awake because they have just been deployed."""
    functions = [report["functions"] for report in reports[len(reports) // 2 :]]
    return Held(
        mean(sum(function["available_replicas"] > 0 for function in each) for each in functions),
        mean(sum(function["resident_experts"] for function in each) for each in functions),
        mean(sum(function["resident_bytes"] for function in each) for each in functions),
    )


def read_granularity(text: str) -> Granularity:
    """ "8x1" as experts x layers of a function. Raises `click.BadParameter`."""
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
    """Profile, then measure each granularity both ways; prints a table."""
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
    default=ROOT / "models" / "demo",
    help="A checkpoint.  [default: the bundled one]",
)
@click.option("--granularity", "granularities", multiple=True, default=["8x1", "2x3"], show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="Of the experts.")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=ROOT / "bench" / "demo_prompts.jsonl",
    help='A JSON object a line, with a "prompt".  [default: the demo model\'s]',
)
@click.option("--max-tokens", type=click.IntRange(1), default=48, show_default=True)
@click.option("--idle-timeout", type=float, default=2.0, show_default=True, help="Of functions, in seconds.")
@click.option("--raw", is_flag=True, help="Continue prompts, for a model without a chat template.")
def main(
    model: Path,
    granularities: tuple[str, ...],
    dtype: str,
    prompts: Path,
    max_tokens: int,
    idle_timeout: float,
    raw: bool,
) -> None:
    """Print calls per token and what functions hold, with and without packing."""
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
