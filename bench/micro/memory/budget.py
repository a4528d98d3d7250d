"""Measures whether a memory budget is held in mixed traffic: `make bench-budget`.

Busy times and pauses alternate. In each pause, all functions scale to zero. The proportional set size of all
processes is sampled twice a second. The bundled model is served in float32: of its experts' 21 MB, the
default budget leaves room for a few in each function, so that they are read and evicted all the time.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import click

from bench.micro.memory.mixed_load import MixedLoad
from bench.support import requests
from bench.support.open_server import OpenServer
from bench.support.process_tree import ProcessTree, Sample, sampled
from bench.support.processes import up
from control_plane.errors import FaaSMoEError
from control_plane.formatting import format_bytes, table
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition as write_partition
from control_plane.quantities import parse_bytes
from functions.contract.manifest import MANIFEST_FILE

MODEL = Path(__file__).parents[3] / "models" / "demo"
SAMPLE_SECONDS = 0.5
BUSY_SECONDS = 60.0
IDLE_SECONDS = 8.0
"""Idle timeout of the functions."""
RELEASE_SECONDS = 10.0
"""How long the functions may take after the idle timeout to scale to zero."""
WARM_REQUESTS = 5
START_SECONDS = 600.0
KV_CACHE_MB = 32
MAX_OVER = 0.03
"""Aim: how far memory may exceed the budget, as a share of it."""
MAX_IDLE_BYTES = 60_000_000
"""Aim: idle memory of everything but the control plane."""
MAX_DELAY_S = 1.0
"""Aim: delay of the first token after a pause, in seconds."""


@dataclass(frozen=True)
class Pause:
    """Idle memory in one pause, and the time to first token after it."""

    control_plane_bytes: int
    """Memory of the control plane, with its gateway."""
    other_bytes: int
    """Memory of all other processes."""
    cold_s: float | None
    """Time to first token of the first request after the pause, in seconds; None if it failed."""
    warm_s: float | None
    """Median time to first token of later requests; None if all failed."""


@dataclass
class BudgetRun:
    """The measurements of a run with one memory budget."""

    budget: int
    """Memory budget in bytes."""
    samples: Sequence[Sample]
    pauses: list[Pause] = field(default_factory=list)
    answered: int = 0
    errors: Sequence[str] = ()

    def rows(self) -> list[list[str]]:
        """Rows of the table: name, value, and whether it is within the aim."""
        sizes = [sample.nbytes for sample in self.samples]
        over = [nbytes for nbytes in sizes if nbytes > self.budget]
        idle = max(pause.other_bytes for pause in self.pauses)
        delays = [pause.cold_s - pause.warm_s for pause in self.pauses if pause.cold_s and pause.warm_s]
        delay = median(delays) if delays else float("inf")
        highest = max(sizes)
        return [
            [
                "memory, highest",
                f"{format_bytes(highest)} = {highest / self.budget:.1%} of the budget",
                verdict(highest <= self.budget * (1 + MAX_OVER), "103%"),
            ],
            ["memory, mean", f"{format_bytes(mean(sizes))}", ""],
            ["samples over the budget", f"{len(over)} of {len(sizes)}", ""],
            ["requests answered", str(self.answered), ""],
            ["requests failed", str(len(self.errors)), verdict(not self.errors, "none")],
            [
                "idle: control plane and gateway",
                format_bytes(max(p.control_plane_bytes for p in self.pauses)),
                "",
            ],
            [
                "idle: all the rest",
                format_bytes(idle),
                verdict(idle <= MAX_IDLE_BYTES, format_bytes(MAX_IDLE_BYTES)),
            ],
            [
                "first token after idleness, later than warm by",
                f"{delay:.2f} s",
                verdict(delay <= MAX_DELAY_S, f"{MAX_DELAY_S:.0f} s"),
            ],
        ]


def verdict(held: bool, aim: str) -> str:
    """Says whether an aim is met."""
    return f"met (at most {aim})" if held else f"MISSED (at most {aim})"


async def bench(folder: Path, budget: int, minutes: float) -> BudgetRun:
    """Serve a partition within the budget, with busy times and pauses in turn. Raises `FaaSMoEError`."""
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    options = ["--memory-budget", str(budget), "--idle-timeout", f"{IDLE_SECONDS:.0f}s"]
    async with (
        up(folder, {"kv_cache_mb": KV_CACHE_MB}, options, start_seconds=START_SECONDS) as (pid, url),
        requests.session() as client,
    ):
        server = OpenServer(client, url, vocab_size, ProcessTree(pid))
        load = MixedLoad(server)
        with sampled(server.tree, SAMPLE_SECONDS) as samples:
            run = BudgetRun(budget, samples)
            end = time.monotonic() + 60 * minutes
            while not run.pauses or time.monotonic() < end:
                await load.run(min(BUSY_SECONDS, 60 * minutes))
                run.pauses.append(await pause(server, load))
        run.answered, run.errors = load.answered, load.errors
        return run


async def pause(server: OpenServer, load: MixedLoad) -> Pause:
    """Wait until functions have scaled to zero, and measure memory, then the cold and warm first tokens."""
    await asyncio.sleep(IDLE_SECONDS + RELEASE_SECONDS)
    memory = server.tree.memory_by_process()
    control_plane = memory.pop(server.tree.pid, 0)
    cold = await load.first_token()
    warm = [seconds for _ in range(WARM_REQUESTS) if (seconds := await load.first_token()) is not None]
    return Pause(control_plane, sum(memory.values()), cold, median(warm) if warm else None)


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path), default=MODEL)
@click.option("--memory-budget", default="285MB", show_default=True, help="As for `faasmoe up`.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long traffic lasts.",
)
def main(model: Path, memory_budget: str, minutes: float) -> None:
    """Print whether `faasmoe up MODEL` keeps its memory budget. MODEL is a partition or a checkpoint."""
    try:
        budget = parse_bytes(memory_budget)
        with tempfile.TemporaryDirectory(prefix="faasmoe-") as temporary:
            folder = model
            if not (model / MANIFEST_FILE).exists():
                folder = Path(temporary) / model.name
                write_partition(model, folder, dtype="f32")
            name = Manifest.load(folder).name
            run = asyncio.run(bench(folder, budget, minutes))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name} within {format_bytes(budget)}, {minutes:g} minutes, {len(run.pauses)} pauses")
    for line in table(["", "measured", "aim"], run.rows()):
        click.echo(line)
    for problem in run.errors[:10]:
        click.echo(f"failed: {problem}", err=True)


if __name__ == "__main__":
    main()
