"""Measures whether processes stay as small as they are in mixed traffic: `make soak`.

Busy times and pauses alternate. In each pause, functions go to zero; the next request wakes them.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from bench.robustness.soak import growth
from bench.robustness.soak.growth import Samples, Series
from bench.robustness.soak.traffic import Traffic
from bench.robustness.stack import ended_by_sigterm, stack
from bench.support import requests
from bench.support.process_tree import repeated
from control_plane.errors import FaaSMoEError
from control_plane.partition.partitioner import partition

MODEL = Path(__file__).parents[3] / "models" / "demo"
TENANTS = ("chat", "batch", "clumsy")
CLIENTS = 8
BUSY_SECONDS = 20.0
PAUSE_SECONDS = 10.0
IDLE_TIMEOUT = 3.0
"""Seconds without a call before a function goes to zero."""
SAMPLE_SECONDS = 1.0
MAX_SAMPLING_SHARE = 0.1
MAX_EXAMPLES = 10


@dataclass(frozen=True)
class SoakResult:
    """The result of a soak."""

    seconds: float
    sent: Mapping[str, int]
    """Requests by kind."""
    unexpected: Sequence[str]
    series: Sequence[Series]

    @property
    def held(self) -> bool:
        """Whether everything is flat, and every answer was the right kind."""
        return not self.unexpected and all(series.flat for series in self.series)

    def to_json(self) -> dict[str, Any]:
        """Everything, for `--output`."""
        series = [{**asdict(each), "slope": each.slope, "flat": each.flat} for each in self.series]
        return {**asdict(self), "series": series, "held": self.held}


async def soak(model: Path, seconds: float, seed: int) -> SoakResult:
    """Serve a checkpoint to mixed traffic, and sample all its processes. Raises `FaaSMoEError`."""
    with tempfile.TemporaryDirectory(prefix="faasmoe-soak-") as temporary:
        folder = Path(temporary)
        await asyncio.to_thread(partial(partition, model, folder / "partition"))
        async with (
            ended_by_sigterm(),
            stack(folder, folder / "partition", TENANTS, {"idle_timeout": IDLE_TIMEOUT}) as served,
            requests.session() as client,
        ):
            traffic = Traffic(client, served.control_plane.url, served.keys)
            samples = Samples({"control plane": served.control_plane.pid, "gateway": served.gateway.pid})
            began = time.monotonic()

            def sample() -> None:
                samples.add(time.monotonic() - began)

            with repeated(sample, 0.0, SAMPLE_SECONDS, MAX_SAMPLING_SHARE):
                while (left := seconds - (time.monotonic() - began)) > 0:
                    await traffic.run(CLIENTS, min(left, BUSY_SECONDS), seed)
                    seed += 1
                    await asyncio.sleep(min(left, PAUSE_SECONDS))
    return SoakResult(time.monotonic() - began, traffic.sent, traffic.unexpected, samples.series())


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path), default=MODEL)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=1800.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Determines the requests.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the samples.")
def main(model: Path, seconds: float, seed: int, output: Path | None) -> None:
    """Print whether memory, threads and open files of each process stay the same while MODEL is served.

    The exit status is 1 if one grows faster than its bound, or an answer is not what it should be.
    """
    try:
        result = asyncio.run(soak(model, seconds, seed))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error
    for line in growth.lines(result.series):
        click.echo(line)
    counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(result.sent.items()))
    click.echo(f"\n{sum(result.sent.values())} requests in {result.seconds:.0f} s: {counts}")
    for problem in result.unexpected[:MAX_EXAMPLES]:
        click.echo(f"unexpected: {problem}")
    click.echo("FLAT" if result.held else "NOT FLAT, or unexpected answers")
    if output is not None:
        output.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    if not result.held:
        sys.exit(1)


if __name__ == "__main__":
    main()
