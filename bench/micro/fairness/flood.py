"""Measures nine tenants that flood a server beside one that asks once a second: `make bench-fairness`.

The flood holds as many requests open as its connections allow, with long prompts and answers. It sends a
refused request again after the server's Retry-After. The modest tenant sends a short request each second, and
never twice: a refusal counts against the server.
"""

import asyncio
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import click

from bench.support import requests
from bench.support.processes import Server, served_model
from control_plane.errors import FaaSMoEError
from control_plane.formatting import table

MODEL = Path(__file__).parents[3] / "models" / "demo"
MODEST = "modest"
PERIOD_SECONDS = 1.0
SETTLE_SECONDS = 5.0
"""How long the flood runs before the measurement."""
MODEST_PROMPT, MODEST_OUTPUT = 16, 8
FLOOD_OUTPUT = 200


@dataclass
class Outcome:
    """What the modest tenant saw."""

    times: list[float] = field(default_factory=list)
    """Seconds to the first token of each answered request."""
    refusals: list[str] = field(default_factory=list)

    @property
    def p95(self) -> float:
        """The 95th percentile of the times to first token, in seconds."""
        return quantiles(self.times, n=20, method="inclusive")[-1] if len(self.times) > 1 else math.nan

    @property
    def p50(self) -> float:
        """The median of the times to first token, in seconds."""
        return median(self.times) if self.times else math.nan


@dataclass(frozen=True)
class Flood:
    """Tenants that each keep `at_once` requests open."""

    client: aiohttp.ClientSession
    server: Server
    vocab_size: int
    prompt_tokens: int
    at_once: int
    statuses: Counter[int] = field(default_factory=Counter)
    """How many requests had each status."""

    @asynccontextmanager
    async def running(self, tenants: list[str]) -> AsyncIterator[None]:
        """Flood the server until the end of the context."""
        seeds = itertools.count(1_000_000)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._keep_asking(self.server.keys[tenant], seeds))
                for tenant in tenants
                for _ in range(self.at_once)
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _keep_asking(self, key: str, seeds: Iterator[int]) -> None:
        """Send one request after the other. Answers come whole: the flood's clients need little time then."""
        for seed in seeds:
            prompt = requests.random_prompt(self.prompt_tokens, seed, self.vocab_size)
            body = {"prompt": prompt, "max_tokens": FLOOD_OUTPUT, "temperature": 0, "ignore_eos": True}
            headers = {"Authorization": f"Bearer {key}"}
            url = f"{self.server.url}/v1/completions"
            async with self.client.post(url, json=body, headers=headers) as answer:
                await answer.read()
            self.statuses[answer.status] += 1
            if answer.status != 200:
                await asyncio.sleep(float(answer.headers.get("Retry-After", PERIOD_SECONDS)))


async def ask_each_second(
    client: aiohttp.ClientSession, server: Server, vocab_size: int, count: int
) -> Outcome:
    """Send `count` short requests of the modest tenant, one each second."""
    outcome = Outcome()

    async def ask(number: int) -> None:
        prompt = requests.random_prompt(MODEST_PROMPT, number, vocab_size)
        try:
            timing = await requests.stream(client, server.url, server.keys[MODEST], prompt, MODEST_OUTPUT)
        except FaaSMoEError as error:
            outcome.refusals.append(str(error))
        else:
            outcome.times.append(timing.time_to_first_token)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(max(0.0, started + number * PERIOD_SECONDS - time.perf_counter()))
            group.create_task(ask(number))
    return outcome


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint.")
@click.option("--tenants", type=click.IntRange(1), default=9, show_default=True, help="Tenants that flood.")
@click.option("--at-once", type=click.IntRange(1), default=64, show_default=True, help="Requests of each.")
@click.option(
    "--prompt-tokens", type=click.IntRange(1), default=400, show_default=True, help="Of the flood's requests."
)
@click.option(
    "--requests", "count", type=click.IntRange(2), default=30, show_default=True, help="Of the modest tenant."
)
@click.option("--max-queued", type=click.IntRange(1), help="The server's setting.")
def main(**options: Any) -> None:
    """Print the modest tenant's refusals and times to first token, alone and beside the flood."""
    asyncio.run(bench(**options))


async def bench(
    model: Path, tenants: int, at_once: int, prompt_tokens: int, count: int, max_queued: int | None
) -> None:
    """Run the modest tenant alone, then beside the flood."""
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    names = [f"flood-{number}" for number in range(tenants)]
    settings = {"log_level": "error"} | ({"max_queued": max_queued} if max_queued else {})
    async with served_model(model, [MODEST, *names], settings) as server, requests.session() as client:
        await ask_each_second(client, server, vocab_size, 3)  # Functions start and read their weights.
        outcomes = {"alone": await ask_each_second(client, server, vocab_size, count)}
        flood = Flood(client, server, vocab_size, prompt_tokens, at_once)
        async with flood.running(names):
            await asyncio.sleep(SETTLE_SECONDS)
            outcomes["beside the flood"] = await ask_each_second(client, server, vocab_size, count)
    for line in report(outcomes):
        click.echo(line)
    click.echo(
        f"\np95 beside the flood: {outcomes['beside the flood'].p95 / outcomes['alone'].p95:.2f} times alone"
    )
    click.echo(f"the flood's answers by status: {dict(sorted(flood.statuses.items()))}")
    for refusal in dict.fromkeys(outcomes["beside the flood"].refusals):
        click.echo(f"refused: {refusal}")


def report(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """A table of refusals and times to first token."""
    yield from table(
        ["modest tenant", "requests", "refusals", "p50", "p95", "longest"],
        [
            [
                name,
                str(len(outcome.times) + len(outcome.refusals)),
                str(len(outcome.refusals)),
                *(
                    f"{seconds * 1000:.0f} ms"
                    for seconds in (outcome.p50, outcome.p95, max(outcome.times, default=math.nan))
                ),
            ]
            for name, outcome in outcomes.items()
        ],
    )


if __name__ == "__main__":
    main()
