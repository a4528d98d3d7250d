"""Compares FaaSMoE with llama.cpp and ik_llama.cpp at their best: `make bench-peers`.

Systems take turns, for several rounds. Without a limit, all weights are in memory once, in the layout that
the program prefers; under a limit, llama.cpp and ik_llama.cpp map them from the file.
"""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench.memory_limit import scenarios
from bench.memory_limit.results import Machine
from bench.memory_limit.step_weights import StepWeights
from bench.peers.batched_bench import IK_LLAMA_CPP, LLAMA_CPP, BatchedBench
from bench.peers.faasmoe import FaaSMoE
from bench.peers.table import Speeds, Table, rows
from bench.support.requests import FAILURES, reasons
from control_plane.cli.options import FILE, FOLDER, Listed
from control_plane.errors import FaaSMoEError
from control_plane.inspection.bandwidth import disk_bandwidth, memory_bandwidth
from control_plane.signals import sigterm_exits

LIMITS = f"{scenarios.NO_LIMIT},8GB,5GB"


@dataclass(frozen=True)
class Bench:
    """Measures all systems, one at a time."""

    ours: FaaSMoE
    peers: Sequence[BatchedBench]
    limits: Sequence[str]
    table: Table

    async def run(self, rounds: int) -> None:
        """Fill the table. A system that fails has no speeds in that round."""
        blocks = sorted((self.ours.partition / "blocks").iterdir())
        machine = Machine(0.0, 0.0)
        for number in range(1, rounds + 1):
            machine = machine.at_best(Machine(memory_bandwidth(), disk_bandwidth(blocks)))
            click.echo(
                f"round {number} (memory reads {machine.memory_bandwidth / 1e9:.1f} GB/s, "
                f"disk {machine.disk_bandwidth / 1e9:.2f} GB/s)"
            )
            for limit in self.limits:
                await self._turn(self.ours.title, self.ours.speeds(limit, machine))
                for peer in self.peers:
                    await self._turn(peer.title, peer.speeds(limit))

    async def _turn(self, column: str, measuring: Awaitable[Speeds]) -> None:
        try:
            speeds = await measuring
        except* FAILURES as failed:
            click.echo(f"  {column}: {reasons(failed)}", err=True)
        else:
            self.table.add(column, speeds)
            for row, speed in speeds.items():
                click.echo(f"  {column}: {row}: {speed.value:.2f} tokens/s")


@click.command()
@click.argument("partition", type=FOLDER)
@click.option(
    "--gguf",
    "files",
    type=FILE,
    multiple=True,
    help="Model of the same shape, as written by bench.support.gguf and llama-quantize. May be repeated.",
)
@click.option("--llama-cpp", type=FILE, help="llama.cpp's program llama-batched-bench.")
@click.option("--ik-llama-cpp", type=FILE, help="ik_llama.cpp's program llama-batched-bench.")
@click.option(
    "--limits",
    type=Listed(scenarios.read_limit),
    default=LIMITS,
    show_default=True,
    help="Memory limits. Those other than none need root, and are measured with one sequence.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are shown."
)
@click.option(
    "--output-tokens",
    type=click.IntRange(4),
    default=32,
    show_default=True,
    help="Tokens that each sequence generates.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=os.cpu_count(),
    show_default="all cores",
    help="Threads of the others' programs.",
)
def main(
    partition: Path,
    files: tuple[Path, ...],
    llama_cpp: Path | None,
    ik_llama_cpp: Path | None,
    limits: tuple[str, ...],
    rounds: int,
    output_tokens: int,
    threads: int,
) -> None:
    """Measure the tokens per second of the PARTITION beside other programs with models of as many bits."""
    programs = [(LLAMA_CPP, llama_cpp), (IK_LLAMA_CPP, ik_llama_cpp)]
    peers = [
        BatchedBench(dialect, program, file, threads, output_tokens)
        for file in files
        for dialect, program in programs
        if program
    ]
    try:
        ours = FaaSMoE(partition, StepWeights.of(partition, None), output_tokens)
        table = Table(ours.title, [peer.title for peer in peers])
        with sigterm_exits():
            asyncio.run(Bench(ours, peers, limits, table).run(rounds))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"\n{table.markdown(rows(limits))}")


if __name__ == "__main__":
    main()
