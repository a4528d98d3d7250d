"""Measures what structured answers cost over the HTTP API: `make bench-grammars`."""

import asyncio
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import click

from bench.support import requests
from bench.support.processes import Server, served_model
from control_plane.errors import FaaSMoEError
from control_plane.formatting import table

MODEL = Path(__file__).parents[2] / "models" / "demo"
SEQUENCES = 8
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["new", "paid", "late"]}, "maxItems": 4},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
    },
    "required": ["name", "age", "tags", "zip"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1000}
"""No answer that matches it is shorter than those of this benchmark."""


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint.")
@click.option("--output-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option(
    "--rounds", type=click.IntRange(1), default=7, show_default=True, help="Rounds; medians are shown."
)
def main(model: Path, output_tokens: int, rounds: int) -> None:
    """Print tokens per second of 8 sequences at once, free and held to a JSON schema, in turns."""
    asyncio.run(bench(model, output_tokens, rounds))


async def bench(model: Path, output_tokens: int, rounds: int) -> None:
    """Measure both in each round, so that other load slows both alike; print a table."""
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    prompts = [requests.random_prompt(32, number, vocab_size) for number in range(SEQUENCES)]
    kinds: dict[str, dict[str, Any]] = {"free": {}, "with a schema": {"structured_outputs": {"json": SCHEMA}}}
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    async with served_model(model, ["tenant"]) as server, requests.session() as client:
        for fields in kinds.values():
            await _speed(client, server, prompts, output_tokens, fields)
        for _ in range(rounds):
            for kind, fields in kinds.items():
                speeds[kind].append(await _speed(client, server, prompts, output_tokens, fields))
    free = median(speeds["free"])
    rows = [
        [kind, f"{median(values):.0f}", f"{median(values) / free:.2f}"] for kind, values in speeds.items()
    ]
    ratios = [held / free for free, held in zip(speeds["free"], speeds["with a schema"], strict=True)]
    click.echo(
        f"{model.name}: {SEQUENCES} x {output_tokens} tokens, medians of {rounds}; "
        f"the median of each round's ratio is {median(ratios):.2f}"
    )
    for line in table(["answers", "tokens/s", "x free"], rows):
        click.echo(line)


async def _speed(
    client: aiohttp.ClientSession,
    server: Server,
    prompts: list[list[int]],
    output_tokens: int,
    fields: dict[str, Any],
) -> float:
    """Generated tokens per second, including the time for the prompts."""
    (key,) = server.keys.values()
    headers = {"Authorization": f"Bearer {key}"}

    async def ask(number: int) -> None:
        body = {
            "prompt": prompts[number],
            "max_tokens": output_tokens,
            "seed": number,
            "ignore_eos": True,
            **fields,
        }
        async with client.post(f"{server.url}/v1/completions", json=body, headers=headers) as answer:
            read = await answer.json()
        if answer.status != 200 or read["usage"]["completion_tokens"] != output_tokens:
            raise FaaSMoEError(f"an answer is not as long as asked: {json.dumps(read)[:300]}")

    started = time.perf_counter()
    await asyncio.gather(*map(ask, range(len(prompts))))
    return len(prompts) * output_tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
