"""Measures speed and memory of a model that is larger than its memory limit: `make bench-memory`.

FaaSMoE serves the partition in a control group under each limit, with and without prefetch. A scenario can
be measured again, which replaces its earlier results. `make bench-peers` has other programs beside it.
"""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import click

from bench.memory_limit import scenarios
from bench.memory_limit.faasmoe import DecodeLoad, LimitedFaaSMoE
from bench.memory_limit.results import Machine, Results
from bench.memory_limit.scenarios import TITLES, Scenario
from bench.memory_limit.step_weights import StepWeights
from bench.support.requests import FAILURES, reasons
from control_plane.cli.options import Listed
from control_plane.errors import FaaSMoEError
from control_plane.inspection.bandwidth import disk_bandwidth, memory_bandwidth
from control_plane.signals import sigterm_exits

LIMITS = f"{scenarios.NO_LIMIT},16GB,8GB,5GB"
SHAPE = ["--shape", "qwen1.5-moe-a2.7b", "--router-skew", "1.0", "--dtype", "int8", "--dense-dtype", "int8"]
GRANULARITY = ["--experts-per-function", "60", "--layers-per-function", "2"]
"""Granularity of the partition, which has twelve functions."""


@dataclass(frozen=True)
class Bench:
    """Measures scenarios one after the other."""

    partition: Path
    weights: StepWeights
    load: DecodeLoad

    async def run(self, to_measure: Sequence[Scenario], results: Results) -> None:
        """Store each result when it is measured. If a scenario fails, its results contain the error."""
        blocks = sorted((self.partition / "blocks").iterdir())
        machine = Machine(0.0, 0.0)
        for scenario in to_measure:
            machine = machine.at_best(Machine(memory_bandwidth(), disk_bandwidth(blocks)))
            click.echo(
                f"{TITLES[scenario.system]}, limit {scenario.limit} (memory reads "
                f"{machine.memory_bandwidth / 1e9:.1f} GB/s, disk {machine.disk_bandwidth / 1e9:.2f} GB/s)"
            )
            missing = list(scenario.sequences)
            try:
                served = LimitedFaaSMoE(self.partition, scenario)
                async with aclosing(served.measure(self.load, self.weights, machine)) as measured:
                    async for result in measured:
                        missing.remove(result.sequences)
                        results.add([result])
                        click.echo(f"  {result.sequences} at once: {result.decode:.2f} tokens/s")
            except* FAILURES as failed:
                problem = reasons(failed)
                click.echo(f"  {problem}", err=True)
                results.add(scenario.result(count, problem=problem) for count in missing)


def make_partition(folder: Path) -> None:
    """Write a partition of random weights with the shape of Qwen1.5-MoE-A2.7B. Raises `FaaSMoEError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"writing {folder}")
    command = [
        sys.executable,
        "-m",
        "bench.support.checkpoint",
        *SHAPE,
        *GRANULARITY,
        "--partition",
        str(folder),
    ]
    if subprocess.run(command, check=False).returncode:
        raise FaaSMoEError(f"could not make the partition {folder}, see above")


@click.command()
@click.argument("partition", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--limits", type=Listed(scenarios.read_limit), default=LIMITS, show_default=True, help="Memory limits."
)
@click.option(
    "--only",
    type=Listed(scenarios.read_system),
    default=",".join(TITLES),
    show_default=True,
    help="Systems to measure.",
)
@click.option(
    "--sequences",
    type=Listed(int),
    help="Numbers of sequences at once.  [default: 1,6; without a limit also 32]",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are shown."
)
@click.option(
    "--output-tokens", type=click.IntRange(4), default=32, show_default=True, help="Tokens of an answer."
)
@click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Profile of the partition by `faasmoe profile`, to estimate which experts sequences share.  "
    "[default: uniform use]",
)
@click.option(
    "--results",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default="build/bench-memory.json",
    show_default=True,
    help="File that keeps the results from run to run.",
)
def main(
    partition: Path,
    limits: tuple[str, ...],
    only: tuple[str, ...],
    sequences: tuple[int, ...] | None,
    rounds: int,
    output_tokens: int,
    profile: Path | None,
    file: Path,
) -> None:
    """Measure speed, memory and disk reads of the PARTITION under several memory limits.

    If PARTITION does not exist, it is written first: 16 GB of random int8 weights with the shape of
    Qwen1.5-MoE-A2.7B and a skewed router.
    """
    to_measure = scenarios.plan(limits, only, sequences)
    try:
        results = Results(file)
        if not partition.exists():
            make_partition(partition)
        bench = Bench(partition, StepWeights.of(partition, profile), DecodeLoad(rounds, output_tokens))
        with sigterm_exits():
            asyncio.run(bench.run(to_measure, results))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"\n{results.markdown()}")


if __name__ == "__main__":
    main()
