"""Measures the throughput of concurrent sequences over the HTTP API: `make bench-batch`."""

import asyncio
import json
import time
from pathlib import Path
from statistics import median

import aiohttp
import click

from bench.support import requests
from bench.support.processes import Server, served_model
from control_plane.formatting import table

MODEL = Path(__file__).parents[2] / "models" / "demo"
CONCURRENCY = (1, 2, 4, 8, 16, 32)


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--output-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Rounds; medians are shown."
)
def main(model: Path, prompt_tokens: int, output_tokens: int, rounds: int) -> None:
    """Print tokens per second of 1 to 32 sequences at once, which six tenants send in turn."""
    asyncio.run(bench(model, prompt_tokens, output_tokens, rounds))


async def bench(model: Path, prompt_tokens: int, output_tokens: int, rounds: int) -> None:
    """Measure all concurrencies in each round, so that other load slows all of them alike; print a table."""
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    prompts = [
        requests.random_prompt(prompt_tokens, number, vocab_size) for number in range(max(CONCURRENCY))
    ]
    speeds: dict[int, list[float]] = {concurrency: [] for concurrency in CONCURRENCY}
    async with (
        served_model(model, [f"tenant-{number}" for number in range(6)]) as server,
        requests.session() as client,
    ):
        await _speed(client, server, prompts, output_tokens)
        for _ in range(rounds):
            for concurrency in CONCURRENCY:
                speeds[concurrency].append(await _speed(client, server, prompts[:concurrency], output_tokens))
    single = median(speeds[1])
    rows = [
        [str(concurrency), f"{median(values):.0f}", f"{median(values) / single:.2f}"]
        for concurrency, values in speeds.items()
    ]
    click.echo(f"{model.name}: {prompt_tokens} + {output_tokens} tokens each, medians of {rounds}")
    for line in table(["sequences at once", "tokens/s", "x one"], rows):
        click.echo(line)


async def _speed(
    client: aiohttp.ClientSession, server: Server, prompts: list[list[int]], output_tokens: int
) -> float:
    """Generated tokens per second, including the time for the prompts."""
    keys = list(server.keys.values())
    started = time.perf_counter()
    await asyncio.gather(
        *(
            requests.stream(client, server.url, keys[number % len(keys)], prompt, output_tokens)
            for number, prompt in enumerate(prompts)
        )
    )
    return len(prompts) * output_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
