"""Two tenants on one server, one of them flooding it: `make bench-fairness`.

Each question is asked twice, of a server that shares fairly and of one that serves first come, first served.
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

MODEL = Path(__file__).parents[2] / "models" / "demo"
PROMPT_COST, OUTPUT_COST = 1.0, 2.0
"""Of a token, in units of service: the paper's, and the server's."""
MAX_SEQUENCES = 8
MAX_BATCH_TOKENS = 512
FLOOD_AT_ONCE = 10 * MAX_SEQUENCES
MEASURED_SECONDS = 40.0
LEAST_REQUESTS = 5
POLICIES = {"fair": "virtual token counters", "fcfs": "first come, first served"}
FLOOD, MODEST = "flood", "modest"


@dataclass
class ServiceCounter:
    """What a tenant has had, as its client sees it: prompt tokens and twice the generated ones."""

    total: float = 0.0
    _history: list[tuple[float, float]] = field(default_factory=list)

    def add(self, cost: float) -> None:
        """It has had so much more."""
        self.total += cost
        self._history.append((time.perf_counter(), self.total))

    def at(self, moment: float) -> float:
        """What it had by then."""
        return next((total for then, total in reversed(self._history) if then <= moment), 0.0)


@dataclass(frozen=True)
class TenantLoad:
    """Requests of one kind."""

    client: aiohttp.ClientSession
    server: Server
    vocab_size: int
    prompt_tokens: int
    output_tokens: int

    async def ask(
        self, tenant: str, seed: int, service: ServiceCounter | None = None
    ) -> requests.StreamTiming:
        """One request."""
        prompt = requests.random_prompt(self.prompt_tokens, seed, self.vocab_size)
        costs = itertools.chain([PROMPT_COST * self.prompt_tokens], itertools.repeat(OUTPUT_COST))
        on_token = (lambda: service.add(next(costs))) if service else (lambda: None)
        return await requests.stream(
            self.client, self.server.url, self.server.keys[tenant], prompt, self.output_tokens, on_token
        )

    async def keep_asking(self, tenant: str, service: ServiceCounter | None, seeds: Iterator[int]) -> None:
        """One request after the other, until cancelled."""
        for seed in seeds:
            await self.ask(tenant, seed, service)

    @asynccontextmanager
    async def backlog(
        self, tenant: str, requests_at_once: int, service: ServiceCounter | None = None
    ) -> AsyncIterator[None]:
        """Keep so many requests on the server for as long as the context lasts."""
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
    """Both tenants want more than half, the flood ten times as much: what each gets, and the widest gap."""
    flood, modest = ServiceCounter(), ServiceCounter()
    started = time.perf_counter()
    async with (
        load.backlog(FLOOD, FLOOD_AT_ONCE, flood),
        load.backlog(MODEST, MAX_SEQUENCES, modest),
    ):
        await asyncio.sleep(seconds)
    ended = time.perf_counter()
    # Both are backlogged once the first answers are on their way.
    moments = [started + 1 + step * 0.05 for step in range(int((ended - started - 1) / 0.05))]
    gaps = [flood.at(moment) - modest.at(moment) for moment in moments]
    return flood, modest, max(gaps) - min(gaps)


async def first_tokens(load: TenantLoad, flood: TenantLoad | None, count: int) -> list[float]:
    """Times to first token of the modest tenant, which asks for less than its share."""
    if flood is None:
        return await _first_tokens(load, count)
    async with flood.backlog(FLOOD, FLOOD_AT_ONCE):
        await asyncio.sleep(2)
        return await _first_tokens(load, count)


async def _first_tokens(load: TenantLoad, count: int) -> list[float]:
    """Of as many requests as fit into the time, but not of too few to tell."""
    times: list[float] = []
    deadline = time.perf_counter() + MEASURED_SECONDS
    while len(times) < count and (time.perf_counter() < deadline or len(times) < LEAST_REQUESTS):
        # Not in step with anything, and so seldom that its prompts are less than half of what is served.
        await asyncio.sleep(random.Random(len(times)).uniform(0.5, 1.5))
        times.append((await load.ask(MODEST, len(times))).time_to_first_token)
    return times


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint.")
@click.option("--seconds", type=click.FloatRange(3), default=20.0, show_default=True, help="Of sharing.")
@click.option(
    "--requests", "count", type=click.IntRange(20), default=30, show_default=True, help="Whose p95 is shown."
)
def main(model: Path, seconds: float, count: int) -> None:
    """Print how service is shared, and what a flood does to another tenant's time to first token."""
    asyncio.run(bench(model, seconds, count))


async def bench(model: Path, seconds: float, count: int) -> None:
    """Both questions under both policies."""
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
    """Both p95, their ratio, and of how many requests."""
    before, after = p95(alone), p95(flooded)
    counts = f"{len(alone)}, {len(flooded)}"
    return [f"{before * 1000:.0f} ms", f"{after * 1000:.0f} ms", f"{after / before:.2f}", counts]


def bound(prompt_tokens: int, output_tokens: int) -> float:
    """How far two backlogged tenants' service may differ, after arXiv 2401.00588.

    Twice the larger of one prompt's service and that of all the tokens which can run at once.
    """
    running = MAX_SEQUENCES * (prompt_tokens + output_tokens)
    return 2 * max(PROMPT_COST * prompt_tokens, OUTPUT_COST * running)


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return quantiles(values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    main()
