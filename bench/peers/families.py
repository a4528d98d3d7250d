"""Measures models of several families within 8 GB: `make bench-families`.

Each shape is partitioned with random weights and a skewed router in 4 bits, served by real processes in a
control group, and asked over HTTP. llama.cpp may follow, with the same weights under the same limit.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from bench.memory_limit import scenarios
from bench.memory_limit.faasmoe import DecodeLoad, LimitedFaaSMoE
from bench.memory_limit.results import Machine, Result
from bench.memory_limit.scenarios import FAASMOE, SEQUENCES, Scenario
from bench.memory_limit.step_weights import StepWeights
from bench.peers.random_gguf import RandomGguf
from bench.support.requests import FAILURES, reasons
from bench.support.shapes import SHAPES
from control_plane.cli.options import Listed
from control_plane.errors import FaaSMoEError
from control_plane.inspection.bandwidth import disk_bandwidth, memory_bandwidth
from control_plane.partition.manifest import Manifest
from control_plane.signals import sigterm_exits

FAMILIES = "qwen3.6-35b-a3b,gpt-oss-20b,glm-4.7-flash,qwen3-30b-a3b,lfm2-8b-a1b,deepseek-v2-lite"
KV_CACHE_MB, LARGE_KV_CACHE_MB = 512, 1024
"""Memory for six sequences."""
LARGE_STATES = frozenset({"qwen3.6-35b-a3b"})
"""Shapes that need more of it: the states of a sequence take 130 MB."""


@dataclass
class Family:
    """What is measured of a shape."""

    name: str
    partition: Path
    partition_seconds: float | None = None
    """Time to make the partition; None if it was there."""
    results: list[Result] = field(default_factory=list)
    problem: str = ""
    """Why there are no results; empty if there are."""

    def make(self) -> None:
        """Write the partition, if it does not exist. Raises `FaaSMoEError`."""
        if self.partition.exists():
            return
        command = [sys.executable, "-m", "bench.support.checkpoint", "--shape", self.name]
        command += ["--router-skew", "1", "--dtype", "int4", "--dense-dtype", "int4"]
        command += ["--partition", str(self.partition)]
        began = time.monotonic()
        if subprocess.run(command, check=False).returncode:
            raise FaaSMoEError(f"could not make the partition {self.partition}, see above")
        self.partition_seconds = time.monotonic() - began

    async def measure(self, limit: str, load: DecodeLoad) -> None:
        """Serve the partition under the limit. Raises `FaaSMoEError`, or a group of the requests' errors."""
        machine = Machine(memory_bandwidth(), disk_bandwidth(sorted((self.partition / "blocks").iterdir())))
        kv_cache_mb = LARGE_KV_CACHE_MB if self.name in LARGE_STATES else KV_CACHE_MB
        served = LimitedFaaSMoE(self.partition, Scenario(FAASMOE, limit, SEQUENCES), kv_cache_mb)
        weights = StepWeights.of(self.partition, None)
        async with aclosing(served.measure(load, weights, machine)) as results:
            async for result in results:
                self.results.append(result)

    def cells(self) -> list[str]:
        """The shape's row of the table."""
        manifest = Manifest.load(self.partition)
        size = sum(file.stat().st_size for file in self.partition.rglob("*") if file.is_file())
        made = "-" if self.partition_seconds is None else f"{self.partition_seconds:.0f} s"
        described = [self.name, manifest.way, f"{size / 1e9:.1f} GB", made]
        if not self.results:
            return [*described, self.problem]
        alone, *_ = self.results
        by_sequences = {result.sequences: result for result in self.results}
        measured = [by_sequences.get(count) for count in SEQUENCES]
        cells = [
            *described,
            f"{alone.start_seconds or 0:.0f} s",
            f"{alone.prefill_long or 0:.1f}",
            *(f"{each.decode or 0:.1f}" if each else "-" for each in measured),
            *(f"{(each.expert_bytes_read or 0) / 1e6:.0f} MB" if each else "-" for each in measured),
            f"{max(result.memory_peak or 0 for result in self.results) / 1e9:.2f} GB",
            f"{max(result.charged or 0 for result in self.results) / 1e9:.2f} GB",
        ]
        return [*cells, self.problem] if self.problem else cells


HEADER = [
    "shape",
    "way",
    "partition",
    "to make it",
    "to start",
    "prefill of 512, tokens/s",
    *(f"decode, {count} at once" for count in SEQUENCES),
    *(f"read per token, {count} at once" for count in SEQUENCES),
    "memory, peak",
    "charged",
]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--shapes", type=Listed(str), default=FAMILIES, show_default=True, help="See bench.support.shapes."
)
@click.option(
    "--limit", type=scenarios.read_limit, default="8GB", show_default=True, help="Memory limit; needs root."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds; medians are shown."
)
@click.option(
    "--output-tokens", type=click.IntRange(4), default=32, show_default=True, help="Tokens of an answer."
)
@click.option("--keep", is_flag=True, help="Keep the partitions, which are up to 20 GB each.")
@click.option(
    "--llama-cpp",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="llama.cpp's program llama-batched-bench. Takes as much room again for its model.",
)
def main(
    folder: Path,
    shapes: tuple[str, ...],
    limit: str,
    rounds: int,
    output_tokens: int,
    keep: bool,
    llama_cpp: Path | None,
) -> None:
    """Measure the time to make partitions of several shapes in FOLDER, and their speed within a limit."""
    unknown = sorted(set(shapes) - SHAPES.keys())
    if unknown:
        raise click.ClickException(f"shapes are {', '.join(SHAPES)}, not {', '.join(unknown)}")
    folder.mkdir(parents=True, exist_ok=True)
    rows, load = [], DecodeLoad(rounds, output_tokens)
    with sigterm_exits():
        for family in (Family(name, folder / name) for name in shapes):
            with removed(family, keep):
                rows.append(measured(family, limit, load))
                if llama_cpp and family.partition.exists():
                    peer = RandomGguf(family.name, family.partition, llama_cpp, os.cpu_count() or 1)
                    rows.append(measured_in_llama_cpp(peer, limit, load))
    click.echo("\n" + "\n".join(_table(rows)))


def measured(family: Family, limit: str, load: DecodeLoad) -> Sequence[str]:
    """A shape's row. If it fails, the row says why."""
    click.echo(family.name)
    try:
        family.make()
        asyncio.run(family.measure(limit, load))
    except* FAILURES as failed:
        family.problem = reasons(failed)
    cells = family.cells() if family.partition.exists() else [family.name, family.problem]
    click.echo("  " + ", ".join(cells[1:]))
    return cells


def measured_in_llama_cpp(peer: RandomGguf, limit: str, load: DecodeLoad) -> Sequence[str]:
    """llama.cpp's row of a shape. If it fails, the row says why. Its model is removed."""
    try:
        peer.make()
        asyncio.run(peer.measure(limit, load))
        cells = peer.cells(limit, len(HEADER))
    except* FAILURES as failed:
        peer.problem = reasons(failed)
        cells = peer.cells(limit, len(HEADER))
    finally:
        peer.file.unlink(missing_ok=True)
    click.echo("  " + ", ".join(cells))
    return cells


@contextmanager
def removed(family: Family, keep: bool) -> Iterator[None]:
    """Remove a partition at the end that was not there before, unless it is to be kept."""
    stays = keep or family.partition.exists()
    try:
        yield
    finally:
        if not stays:
            shutil.rmtree(family.partition, ignore_errors=True)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (HEADER, ["---"] * len(HEADER), *rows):
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
