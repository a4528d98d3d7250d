"""Measures two tenants on one server, one of which floods it: `make bench-fairness`.

Both measurements, the shares of service and the time to first token, run under fair scheduling and under
first come, first served.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles

import aiohttp
import click

from bench.support import requests
from bench.support.processes import Server, served_model
from control_plane.formatting import table

MODEL = Path(__file__).parents[3] / "models" / "demo"
PROMPT_COST, OUTPUT_COST = 1.0, 2.0
"""Cost of a token in units of service, the same as in arXiv 2401.00588 and in the scheduler."""
MAX_SEQUENCES = 8
MAX_BATCH_TOKENS = 512
FLOOD_AT_ONCE = 10 * MAX_SEQUENCES
MEASURED_SECONDS = 40.0
MIN_REQUESTS = 5
POLICIES = {"fair": "virtual token counters", "fcfs": "first come, first served"}
FLOOD, MODEST = "flood", "modest"


@dataclass
class ServiceCounter:
    """The service that a tenant has received, as its client sees it."""

    total: float = 0.0
    _history: list[tuple[float, float]] = field(default_factory=list)

    def add(self, cost: float) -> None:
        """Count the cost of more tokens."""
        self.total += cost
        self._history.append((time.perf_counter(), self.total))

    def at(self, moment: float) -> float:
        """Service received until a moment of time.perf_counter()."""
        return next((total for then, total in reversed(self._history) if then <= moment), 0.0)


@dataclass(frozen=True)
class TenantLoad:
    """Sends requests of one size."""

    client: aiohttp.ClientSession
    server: Server
    vocab_size: int
    prompt_tokens: int
    output_tokens: int

    async def ask(
        self, tenant: str, seed: int, service: ServiceCounter | None = None
    ) -> requests.StreamTiming:
        """Send one request, and count its service."""
        prompt = requests.random_prompt(self.prompt_tokens, seed, self.vocab_size)
        costs = itertools.chain([PROMPT_COST * self.prompt_tokens], itertools.repeat(OUTPUT_COST))
        on_token = (lambda: service.add(next(costs))) if service else (lambda: None)
        return await requests.stream(
            self.client, self.server.url, self.server.keys[tenant], prompt, self.output_tokens, on_token
        )

    async def keep_asking(self, tenant: str, service: ServiceCounter | None, seeds: Iterator[int]) -> None:
        """Send one request after the other, until cancelled."""
        for seed in seeds:
            await self.ask(tenant, seed, service)

    @asynccontextmanager
    async def backlog(
        self, tenant: str, requests_at_once: int, service: ServiceCounter | None = None
    ) -> AsyncIterator[None]:
        """Keep `requests_at_once` requests on the server until the end of the context."""
        seeds = itertools.count(1_000_000)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.keep_asking(tenant, service, seeds)) for _ in range(requests_at_once)
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()


async def share_service(load: TenantLoad, seconds: float) -> tuple[ServiceCounter, ServiceCounter, float]:
    """Service of flood and modest tenant, and the range of its difference over time.

    Both tenants send more than half of what the server can do, the flood ten times as much as the other.
    """
    flood, modest = ServiceCounter(), ServiceCounter()
    started = time.perf_counter()
    async with (
        load.backlog(FLOOD, FLOOD_AT_ONCE, flood),
        load.backlog(MODEST, MAX_SEQUENCES, modest),
    ):
        await asyncio.sleep(seconds)
    ended = time.perf_counter()
    # After a second, both tenants are backlogged.
    moments = [started + 1 + step * 0.05 for step in range(int((ended - started - 1) / 0.05))]
    gaps = [flood.at(moment) - modest.at(moment) for moment in moments]
    return flood, modest, max(gaps) - min(gaps)


async def first_tokens(load: TenantLoad, flood: TenantLoad | None, count: int) -> list[float]:
    """Times to first token of the modest tenant, which sends less than its share."""
    if flood is None:
        return await _first_tokens(load, count)
    async with flood.backlog(FLOOD, FLOOD_AT_ONCE):
        await asyncio.sleep(2)
        return await _first_tokens(load, count)


async def _first_tokens(load: TenantLoad, count: int) -> list[float]:
    """Times of up to `count` requests: as many as fit into the time, but at least MIN_REQUESTS."""
    times: list[float] = []
    deadline = time.perf_counter() + MEASURED_SECONDS
    while len(times) < count and (time.perf_counter() < deadline or len(times) < MIN_REQUESTS):
        # At random intervals, long enough that the tenant uses less than half of the service.
        await asyncio.sleep(random.Random(len(times)).uniform(0.5, 1.5))
        times.append((await load.ask(MODEST, len(times))).time_to_first_token)
    return times


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint.")
@click.option(
    "--seconds",
    type=click.FloatRange(3),
    default=20.0,
    show_default=True,
    help="How long shares of service are measured.",
)
@click.option(
    "--requests",
    "count",
    type=click.IntRange(20),
    default=30,
    show_default=True,
    help="Requests for each p95 of the time to first token.",
)
def main(model: Path, seconds: float, count: int) -> None:
    """Print each tenant's share of service, and the effect of a flood on another's time to first token."""
    asyncio.run(bench(model, seconds, count))


async def bench(model: Path, seconds: float, count: int) -> None:
    """Run both measurements under both policies, and print two tables."""
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    shared, times = [], []
    for policy, name in POLICIES.items():
        settings = {
            "scheduling": policy,
            "max_sequences": MAX_SEQUENCES,
            "max_batch_tokens": MAX_BATCH_TOKENS,
        }
        async with served_model(model, [FLOOD, MODEST], settings) as server, requests.session() as client:
            load = partial(TenantLoad, client, server, vocab_size)
            flood, modest, gap = await share_service(load(64, 32), seconds)
            shared.append(
                [name, f"{flood.total:.0f}", f"{modest.total:.0f}", f"{gap:.0f}", f"{bound(64, 32):.0f}"]
            )
            for prompt_tokens in (32, 256, 512):
                small = load(prompt_tokens, 8)
                alone = await first_tokens(small, None, count)
                flooded = await first_tokens(small, load(64, 32), count)
                times.append([name, str(prompt_tokens), *latency_cells(alone, flooded)])
    click.echo(f"service in {seconds:.0f} s, both tenants backlogged (prompt tokens + 2 x generated ones)")
    for line in table(["scheduling", "flood", "modest", "widest gap", "VTC's bound"], shared):
        click.echo(line)
    click.echo("\nthe modest tenant's time to first token, p95")
    header = ["scheduling", "prompt tokens", "alone", "under the flood", "ratio", "requests"]
    for line in table(header, times):
        click.echo(line)


def latency_cells(alone: list[float], flooded: list[float]) -> list[str]:
    """Cells of a row: both p95, their ratio, and both numbers of requests."""
    before, after = p95(alone), p95(flooded)
    counts = f"{len(alone)}, {len(flooded)}"
    return [f"{before * 1000:.0f} ms", f"{after * 1000:.0f} ms", f"{after / before:.2f}", counts]


def bound(prompt_tokens: int, output_tokens: int) -> float:
    """The bound of arXiv 2401.00588 on the difference in service between two backlogged tenants.

    It is twice the larger of one prompt's cost and the cost of all tokens that can run at once.
    """
    running = MAX_SEQUENCES * (prompt_tokens + output_tokens)
    return 2 * max(PROMPT_COST * prompt_tokens, OUTPUT_COST * running)


def p95(values: list[float]) -> float:
    """The 95th percentile of at least two values."""
    return quantiles(values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    main()
